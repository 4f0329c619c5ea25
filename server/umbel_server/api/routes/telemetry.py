"""Telemetry: what devices reported, summed by cohort; of no single device."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from umbel_proto.errors import UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.service import StoreOf
from umbel_server.api.texts import NAME, Named
from umbel_server.store.cohorts import EVERYBODY, SPANS, CohortSum, Span

router = APIRouter(prefix="/api/v1/telemetry", tags=["telemetry"], route_class=GuardedRoute)
MAX_STEPS = 800
"""Hours of a month, or days of two years: what one answer holds. A total by the day is one step, however long."""
_MAX_S = 4e9

Since = Annotated[float, Query(ge=0, le=_MAX_S, description="From when on, Unix seconds.")]
Until = Annotated[float, Query(ge=0, le=_MAX_S, description="To when, Unix seconds.")]
Cohort = Annotated[str, Query(pattern=f"{NAME}|^$", description="A tag; empty: all devices.")]
Version = Annotated[int | None, Query(ge=0, lt=2**63, description="One version only.")]


class ModelVersion(BaseModel):
    """A version of a model that devices told of."""

    model: str
    version: int


class Models(BaseModel):
    """What devices told of, and in which cohorts."""

    models: list[ModelVersion]
    cohorts: list[str] = Field(description="The empty one: all devices.")


class HistogramShown(BaseModel):
    """How many values fell between which edges."""

    name: str
    edges: list[float]
    counts: list[int] = Field(description="One more than edges.")
    sum: float
    epsilon: float | None = Field(
        description="With what the counts are randomized; null: they are as counted."
    )


class SumShown(BaseModel):
    """Sums over the windows of a cohort."""

    model: str
    version: int
    variant: str
    engine: str
    start_s: int = Field(description="Unix seconds by the devices' clocks.")
    until_s: int = Field(description="The latest end of a window.")
    windows: int
    counters: dict[str, int]
    histograms: list[HistogramShown]
    left_out: int = Field(description="Counters and histograms that are in no sum: there were too many.")


class Sums(BaseModel):
    """Sums, the oldest first."""

    items: list[SumShown]


@router.get("", dependencies=[may(Permission.TELEMETRY_READ)])
def list_models(store: StoreOf, since_s: Since = 0) -> Models:
    """List the models that devices told of since, and the cohorts."""
    return Models(
        models=[
            ModelVersion(model=model, version=version)
            for model, version in store.cohorts.models(since_s=since_s)
        ],
        cohorts=list(store.cohorts.names(since_s=since_s)),
    )


@router.get("/{name}/series", dependencies=[may(Permission.TELEMETRY_READ)])
def get_series(
    store: StoreOf,
    name: Named,
    since_s: Since,
    until_s: Until,
    span: Span = "day",
    cohort: Cohort = EVERYBODY,
    version: Version = None,
) -> Sums:
    """Show hour by hour or day by day what devices reported of a model."""
    if (until_s - since_s) / SPANS[span] > MAX_STEPS:
        raise UsageError(f"That is more than {MAX_STEPS} steps: ask for less at a time, or by the day.")
    found = store.cohorts.series(
        name, span=span, since_s=since_s, until_s=until_s, cohort=cohort, version=version
    )
    return Sums(items=[_show(each) for each in found])


@router.get("/{name}/totals", dependencies=[may(Permission.TELEMETRY_READ)])
def get_totals(
    store: StoreOf,
    name: Named,
    since_s: Since,
    until_s: Until,
    span: Span = "day",
    cohort: Cohort = EVERYBODY,
    version: Version = None,
) -> Sums:
    """Show what devices reported of a model, summed over time by version, variant and engine."""
    if span == "hour" and (until_s - since_s) / SPANS[span] > MAX_STEPS:
        raise UsageError(f"That is more than {MAX_STEPS} steps: ask for less at a time, or by the day.")
    found = store.cohorts.totals(
        name, span=span, since_s=since_s, until_s=until_s, cohorts=(cohort,), version=version
    )
    return Sums(items=[_show(each) for each in found])


def _show(each: CohortSum) -> SumShown:
    return SumShown(
        model=each.model,
        version=each.version,
        variant=each.variant,
        engine=each.engine,
        start_s=each.start_s,
        until_s=each.until_s,
        windows=each.windows,
        counters=dict(each.counters),
        histograms=[
            HistogramShown(
                name=one.name,
                edges=list(one.edges),
                counts=list(one.counts),
                sum=one.sum,
                epsilon=one.epsilon,
            )
            for one in each.histograms
        ],
        left_out=each.left_out,
    )
