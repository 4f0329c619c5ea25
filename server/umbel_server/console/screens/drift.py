"""Screen "Drift": which features are not as they were, on which days, and which values break the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from umbel_server.access.permissions import Permission
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.seen.drift import Drifted, broken, drifted, heat, shape
from umbel_server.console.seen.watched import Made, Watched, WatchedOf, made

router = APIRouter(route_class=ScreenRoute)

COLUMNS = (
    "against",
    "feature",
    "values_worth",
    "stability_index",
    "threshold",
    "jensen_shannon",
    "wasserstein",
    "moved",
    "adjusted_p",
    "drifted",
    "why",
    "counted",
    "devices",
)
_READ = [may(Permission.TELEMETRY_READ)]
Feature = Annotated[str, Query(max_length=100)]


@router.get("/drift", dependencies=_READ)
def show_drift(request: Request, service: ServiceOf, watched: WatchedOf, feature: Feature = "") -> Response:
    """Show which features are not as they were."""
    wanted = request.query_params.get("format", "")
    found = _made(service, watched, patient=bool(wanted)) if watched.model else Made(None)
    file = export(request, "drift", COLUMNS, _rows(found.value))
    if file is not None:
        return file
    seen = found.value
    lines = () if seen is None else seen.report.lines
    moved = sorted(lines, key=lambda line: (not line.finding.drifted, line.finding.feature))
    chosen = feature or next((line.finding.feature for line in moved), "")
    return page(
        request,
        "drift.html",
        window=watched.window,
        live="drift",
        watched=watched,
        found=found,
        seen=seen,
        lines=moved,
        chosen=chosen,
        broken=broken(service.store, watched) if watched.model else (),
    )


@router.get("/drift/heat.json", dependencies=_READ)
def get_heat(service: ServiceOf, watched: WatchedOf) -> dict[str, Any]:
    """Give the chart of features against days."""
    found = _made(service, watched, patient=True)
    return heat(found.value) if found.value is not None else {"kind": "heatmap", "empty": _why(found)}


@router.get("/drift/feature.json", dependencies=_READ)
def get_feature(service: ServiceOf, watched: WatchedOf, feature: Feature = "") -> dict[str, Any]:
    """Give the chart of a feature as it was and as it is."""
    found = _made(service, watched, patient=True)
    return shape(found.value, feature) if found.value is not None else {"kind": "bar", "empty": _why(found)}


def _made(service: Service, watched: Watched, *, patient: bool) -> Made:
    key = ("drift", *watched.key)
    return made(service.fleet, service.store, key, drifted, watched, patient=patient)


def _why(found: Made) -> str:
    return found.why or "It is still being computed: ask again in a moment."


def _rows(seen: Drifted | None) -> Iterator[tuple[object, ...]]:
    for line in () if seen is None else seen.report.lines:
        told = line.finding.comparison
        transport = None if told is None else told.wasserstein
        yield (
            line.against,
            line.finding.feature,
            line.values,
            None if told is None else told.stability_index.value,
            None if told is None else told.stability_index.threshold,
            None if told is None else told.jensen_shannon.value,
            None if transport is None else transport.value,
            None if told is None else told.moved,
            line.finding.adjusted,
            line.finding.drifted,
            line.finding.why,
            line.counted,
            line.devices,
        )
