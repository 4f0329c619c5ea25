"""Screen "Explanations": which inputs decide, whether these are as they were, and what devices do not tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from umbel_server.access.permissions import Permission
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.seen.drift import drifted
from umbel_server.console.seen.explanations import Explained, by_version, explained, importance
from umbel_server.console.seen.watched import Made, Watched, WatchedOf, made, made_here

router = APIRouter(route_class=ScreenRoute)

COLUMNS = ("input", "accuracy_lost", "low", "high", "version_before", "moved", "drifted", "part", "n")
SHOWN = 6
_READ = [may(Permission.TELEMETRY_READ)]


@router.get("/explanations", dependencies=_READ)
def show_explanations(request: Request, service: ServiceOf, watched: WatchedOf) -> Response:
    """Show which inputs decide, and whether these are as they were."""
    wanted = request.query_params.get("format", "")
    found = _made(service, watched, patient=bool(wanted)) if watched.model else Made(None)
    file = export(request, "explanations", COLUMNS, _rows(found.value))
    if file is not None:
        return file
    seen: Explained | None = found.value
    inputs = () if seen is None else seen.inputs
    return page(
        request,
        "explanations.html",
        window=watched.window,
        live="drift",
        watched=watched,
        found=found,
        seen=seen,
        first=max((each for each in inputs if each.drifted), key=lambda each: each.weight, default=None),
        shown=[each.name for each in inputs[:SHOWN]],
    )


@router.get("/explanations/importance.json", dependencies=_READ)
def get_importance(service: ServiceOf, watched: WatchedOf) -> dict[str, Any]:
    """Give the chart of what decides."""
    found = _made(service, watched, patient=True)
    return importance(found.value) if found.value is not None else {"kind": "bar", "empty": _why(found)}


@router.get("/explanations/versions.json", dependencies=_READ)
def get_versions(service: ServiceOf, watched: WatchedOf) -> dict[str, Any]:
    """Give the chart of how what decides changed from version to version."""
    found = _made(service, watched, patient=True)
    if found.value is None:
        return {"kind": "line", "empty": _why(found)}
    return by_version(found.value, [each.name for each in found.value.inputs[:SHOWN]])


def _made(service: Service, watched: Watched, *, patient: bool) -> Made:
    def make() -> Explained:
        told = made(service.fleet, service.store, ("drift", *watched.key), drifted, watched, patient=True)
        drift = None if told.value is None else told.value.report
        return explained(service.fleet, service.store, watched.model, watched.version, drift)

    return made_here(service.store, ("explanations", *watched.key), make, patient=patient)


def _why(found: Made) -> str:
    return found.why or "It is still being computed: ask again in a moment."


def _rows(seen: Explained | None) -> Iterator[tuple[object, ...]]:
    for each in () if seen is None else seen.inputs:
        yield each.name, each.lost, each.low, each.high, each.before, each.moved, each.drifted, None, None
    for part in () if seen is None else seen.slices:
        for name, lost in part.lost.items():
            yield name, lost.value, lost.low, lost.high, None, None, None, part.name, part.examples
