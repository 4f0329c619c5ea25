"""Screen "Energy and cost": what predictions, reports and rounds cost, each figure with how it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from umbel_server.access.permissions import Permission
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.seen.energy import (
    ARRIVED,
    SEALED,
    SERIALIZED,
    TRAINED,
    Spent,
    energy_chart,
    spent,
    traffic,
)
from umbel_server.console.seen.watched import Made, Watched, WatchedOf, made

router = APIRouter(route_class=ScreenRoute)

COLUMNS = ("figure", "of", "value", "unit", "method")
_READ = [may(Permission.TELEMETRY_READ)]


@router.get("/energy", dependencies=_READ)
def show_energy(request: Request, service: ServiceOf, watched: WatchedOf) -> Response:
    """Show what predictions, reports and rounds cost."""
    wanted = request.query_params.get("format", "")
    found = _made(service, watched, patient=bool(wanted)) if watched.model else Made(None)
    file = export(request, "energy", COLUMNS, _rows(found.value))
    if file is not None:
        return file
    return page(
        request,
        "energy.html",
        window=watched.window,
        live="energy",
        watched=watched,
        found=found,
        seen=found.value,
        methods={"up": SEALED, "down": ARRIVED, "rounds": SERIALIZED},
    )


@router.get("/energy/traffic.json", dependencies=_READ)
def get_traffic(service: ServiceOf, watched: WatchedOf) -> dict[str, Any]:
    """Give the chart of bytes up and down."""
    found = _made(service, watched, patient=True)
    return traffic(found.value) if found.value is not None else {"kind": "bar", "empty": _why(found)}


@router.get("/energy/days.json", dependencies=_READ)
def get_days(service: ServiceOf, watched: WatchedOf) -> dict[str, Any]:
    """Give the chart of the energy that devices tell of."""
    found = _made(service, watched, patient=True)
    return energy_chart(found.value) if found.value is not None else {"kind": "bar", "empty": _why(found)}


def _made(service: Service, watched: Watched, *, patient: bool) -> Made:
    key = ("energy", *watched.key)
    return made(service.fleet, service.store, key, spent, watched, patient=patient)


def _why(found: Made) -> str:
    return found.why or "It is still being computed: ask again in a moment."


def _rows(seen: Spent | None) -> Iterator[tuple[object, ...]]:
    if seen is None:
        return
    cost = seen.operations.energy
    if cost is not None:
        yield "energy of a prediction", f"{cost.devices} devices", seen.joules, "J", cost.method
    training = seen.operations.training
    if training is not None:
        yield (
            "energy of a training in a round",
            f"{training.devices} devices",
            training.joules,
            "J",
            training.method,
        )
    for name, value, method in (
        ("reports, of a thousand predictions", seen.up_per_thousand, SEALED),
        ("packages, of a thousand predictions", seen.down_per_thousand, ARRIVED),
    ):
        if value is not None:
            yield name, "all devices", value, "B", method
    yield (
        "cost of a thousand predictions",
        "what is known and has a price",
        seen.cost_per_thousand,
        seen.prices.currency,
        "energy, reports and packages by the prices of fleet.toml",
    )
    for each in seen.rounds:
        yield f"round {each.round}, up, each device", each.run, each.up_bytes, "B", SERIALIZED
        yield f"round {each.round}, down, each device", each.run, each.down_bytes, "B", SERIALIZED
        if each.joules is not None:
            yield f"round {each.round}, energy, all devices", each.run, each.joules / 3600, "Wh", TRAINED
