"""Screen "Performance": how often a model is right, by labels and without, how sure it should be, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from umbel_server.access.permissions import Permission
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.seen.latency import LEAST
from umbel_server.console.seen.performance import (
    Performed,
    accuracy,
    calibration_plot,
    latency,
    performed,
)
from umbel_server.console.seen.watched import Made, Watched, WatchedOf, made

router = APIRouter(route_class=ScreenRoute)

COLUMNS = ("figure", "of", "value", "low", "high", "n", "devices")
_READ = [may(Permission.TELEMETRY_READ)]


@router.get("/performance", dependencies=_READ)
def show_performance(request: Request, service: ServiceOf, watched: WatchedOf) -> Response:
    """Show how often a model is right, and how fast."""
    wanted = request.query_params.get("format", "")
    found = _made(service, watched, patient=bool(wanted)) if watched.model else Made(None)
    file = export(request, "performance", COLUMNS, _rows(found.value))
    if file is not None:
        return file
    return page(
        request,
        "performance.html",
        window=watched.window,
        live="performance",
        watched=watched,
        found=found,
        seen=found.value,
        least=LEAST,
    )


@router.get("/performance/accuracy.json", dependencies=_READ)
def get_accuracy(service: ServiceOf, watched: WatchedOf) -> dict[str, Any]:
    """Give the chart of realized against estimated accuracy."""
    return _chart(service, watched, accuracy)


@router.get("/performance/calibration.json", dependencies=_READ)
def get_calibration(service: ServiceOf, watched: WatchedOf) -> dict[str, Any]:
    """Give the chart of how often predictions were right, by how sure they were."""
    return _chart(service, watched, calibration_plot)


@router.get("/performance/latency.json", dependencies=_READ)
def get_latency(service: ServiceOf, watched: WatchedOf) -> dict[str, Any]:
    """Give the chart of latency by device class."""
    return _chart(service, watched, latency)


def _made(service: Service, watched: Watched, *, patient: bool) -> Made:
    key = ("performance", *watched.key)
    return made(service.fleet, service.store, key, performed, watched, patient=patient)


def _chart(service: Service, watched: Watched, draw: Callable[[Performed], dict[str, Any]]) -> dict[str, Any]:
    found = _made(service, watched, patient=True)
    if found.value is None:
        return {"kind": "line", "empty": found.why or "It is still being computed: ask again in a moment."}
    return draw(found.value)


def _rows(seen: Performed | None) -> Iterator[tuple[object, ...]]:
    if seen is None:
        return
    for when, of in (("now", seen.now), ("days before", seen.before)):
        for name, told in (
            ("realized", of.realized),
            ("reviews that let it stand", of.people),
            ("estimated", of.estimated),
            ("second labels that agree", of.labels.agreement),
        ):
            if told is not None:
                yield name, when, told.value, told.low, told.high, told.counted, told.devices
        if of.curve is not None:
            curve = of.curve
            yield "calibration error", when, curve.error, curve.low, curve.high, curve.labels, curve.devices
            for cell in curve.cells:
                yield (
                    f"right at confidence {cell.confidence:.4f}",
                    when,
                    cell.right,
                    cell.right_low,
                    cell.right_high,
                    round(cell.labels),
                    None,
                )
    for each in (seen.everybody, *seen.classes):
        for name, value in each.quantiles.items():
            yield f"latency {name}, us", each.name, value, None, None, each.predictions, each.devices
