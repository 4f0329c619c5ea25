"""Monitoring: how models are doing, by what devices report; and the gaps that somebody lives with."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, ServiceOf, StoreOf
from umbel_server.api.texts import Asked, Name, Named, Reason, Why, Words
from umbel_server.monitor.drift import FLOOR, LEVEL, Comparison
from umbel_server.monitor.drift_report import DAYS, MAX_DAYS, Reference, drift
from umbel_server.monitor.fairness import Fairness
from umbel_server.monitor.looks import (
    LEAST_DEVICES,
    MATTERS,
    Look,
    label_of_model,
    look_at_fairness,
    look_at_operations,
    look_at_performance,
)
from umbel_server.monitor.operations import Operations
from umbel_server.monitor.performance import Performance
from umbel_server.store.waivers import MAX_DAYS as MAX_WAIVED_DAYS
from umbel_server.store.waivers import Gap

router = APIRouter(prefix="/api/v1/monitor", tags=["monitor"], route_class=GuardedRoute)

Version = Annotated[
    int | None, Query(ge=1, lt=1 << 32, description="Null: the one that most was reported of.")
]
Days = Annotated[int, Query(ge=1, le=MAX_DAYS, description="How many days to look at.")]


class Of(BaseModel):
    """What a figure is of."""

    model: str
    version: int
    since_s: float = Field(description="From when on, Unix seconds.")
    until_s: float
    asked: int = Field(description="How many devices were looked at.")
    trusted: int = Field(description="How many there are, neither revoked nor quarantined.")


class FindingShown(BaseModel):
    """What is known of the drift of a feature."""

    feature: str
    comparison: Comparison | None = Field(description="Null: there is not enough to compare.")
    adjusted: float | None = Field(description="Its p-value among all features against this reference.")
    drifted: bool
    why: str


class DriftLineShown(BaseModel):
    """A feature against a reference."""

    against: Reference
    finding: FindingShown
    reference_values: float = Field(description="How many independent values it is compared with.")
    values: float = Field(description="How many it is worth itself.")
    counted: int
    devices: int
    limited: int = Field(description="Devices that count for less than they told.")
    epsilon: float | None


class DriftShown(Of):
    """The drift of a version."""

    level: float
    floor: float
    lines: list[DriftLineShown]
    notes: list[str]
    drifted: list[str]


class PerformanceShown(Of):
    """How often a version is right."""

    now: Performance
    before: Performance


class FairnessShown(Of):
    """How a version treats cohorts."""

    now: Fairness
    before: Fairness


class WaiverShown(BaseModel):
    """A gap that somebody lives with for some time."""

    id: str
    model: str
    version: int | None = Field(description="Null: every version.")
    label: int
    cohort: str
    metric: str
    reason: str
    created_s: float
    created_by: str
    expires_s: float = Field(description="When the gap is open again, Unix seconds.")
    ended_s: float | None = Field(description="Null: nobody ended it before.")
    ended_by: str | None
    holds: bool = Field(description="Whether it is in force.")


class Waivers(BaseModel):
    """Waivers, the newest first."""

    items: list[WaiverShown]


class NewWaiver(Asked):
    """A gap to live with for some time."""

    cohort: Name
    metric: Annotated[Words, Field(description="The figure, as fairness names it.")]
    label: Annotated[Words, Field(min_length=1, description="By name or number.")]
    version: Annotated[int, Field(ge=1, lt=1 << 31)] | None = Field(None, description="Null: every version.")
    days: Annotated[float, Field(gt=0, le=MAX_WAIVED_DAYS, description="For how long from now on.")]
    reason: Reason


class OperationsShown(Of):
    """How devices run a version."""

    now: Operations


@router.get("/{name}/drift", dependencies=[may(Permission.TELEMETRY_READ)])
def get_drift(
    service: ServiceOf,
    name: Named,
    version: Version = None,
    days: Days = DAYS,
    level: Annotated[
        float, Query(ge=1e-6, le=0.5, description="Chance of any false alarm, if nothing has changed.")
    ] = LEVEL,
    floor: Annotated[float, Query(ge=0, le=0.9, description="Share of values that must have moved.")] = FLOOR,
) -> DriftShown:
    """Say whether inputs and answers of a model are distributed as they were."""
    found = drift(service.fleet, service.store, name, version, days=days, level=level, floor=floor)
    return DriftShown(**found.to_json())


@router.get("/{name}/performance", dependencies=[may(Permission.TELEMETRY_READ)])
def get_performance(
    service: ServiceOf, name: Named, version: Version = None, days: Days = DAYS
) -> PerformanceShown:
    """Say how often a model is right: by labels that came later, and by how sure it is."""
    return PerformanceShown(
        **_told(look_at_performance(service.fleet, service.store, name, version, days=days))
    )


@router.get("/{name}/fairness", dependencies=[may(Permission.TELEMETRY_READ)])
def get_fairness(
    service: ServiceOf,
    name: Named,
    label: Annotated[str, Query(min_length=1, max_length=200, description="By name or number.")],
    version: Version = None,
    days: Days = DAYS,
    least_devices: Annotated[
        int, Query(ge=2, le=10**6, description="Of how many devices anything shown is.")
    ] = (LEAST_DEVICES),
    matters: Annotated[float, Query(ge=0, le=0.9, description="How large a gap must be.")] = MATTERS,
) -> FairnessShown:
    """Say whether a model treats the devices of a cohort otherwise than the others."""
    look = look_at_fairness(
        service.fleet,
        service.store,
        name,
        version,
        label=label,
        days=days,
        least=least_devices,
        matters=matters,
    )
    return FairnessShown(**_told(look))


@router.get("/{name}/operations", dependencies=[may(Permission.TELEMETRY_READ)])
def get_operations(
    service: ServiceOf, name: Named, version: Version = None, days: Days = DAYS
) -> OperationsShown:
    """Say how devices run a model: how fast, how often it fails, what it costs, and what ends soon."""
    return OperationsShown(
        **_told(look_at_operations(service.fleet, service.store, name, version, days=days))
    )


@router.get("/{name}/waivers", dependencies=[may(Permission.TELEMETRY_READ)])
def list_waivers(store: StoreOf, name: Named) -> Waivers:
    """List the gaps of a model that somebody lives with or did, the newest first."""
    now_s = store.clock()
    return Waivers(items=[WaiverShown(**each.to_json(now_s)) for each in store.waivers.of(name)])


@router.post("/{name}/waivers", status_code=201, dependencies=[may(Permission.REGISTRY_APPROVE)])
def waive(service: ServiceOf, actor: ActorOf, name: Named, new: NewWaiver) -> WaiverShown:
    """Live with a gap for some days. It is shown as waived, never hidden, and is open again afterwards."""
    store = service.store
    label = label_of_model(service.fleet, store, name, new.version, new.label)
    gap = Gap(name, new.version, label, new.cohort, new.metric)
    made = store.waivers.waive(gap, days=new.days, reason=new.reason, actor=actor)
    return WaiverShown(**made.to_json(store.clock()))


@router.post("/{name}/waivers/{id}/end", dependencies=[may(Permission.REGISTRY_APPROVE)])
def end_waiver(store: StoreOf, actor: ActorOf, name: Named, id: Named, why: Why) -> WaiverShown:  # noqa: A002
    """End a waiver before its time: the gap is open again."""
    if all(each.id != id for each in store.waivers.of(name)):
        raise missing(f"waiver {id}")
    return WaiverShown(**store.waivers.end(id, reason=why.reason, actor=actor).to_json(store.clock()))


def _told(look: Look) -> dict[str, Any]:
    return {name: value for name, value in asdict(look).items() if value is not None}
