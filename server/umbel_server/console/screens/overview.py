"""Overview: how the fleet is, each figure a way to what is behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Request, Response

from umbel_server.access.permissions import Permission
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.seen.counted import arrived, counted
from umbel_server.console.seen.kept import Kept
from umbel_server.console.session import SessionOf
from umbel_server.monitor.operations import ENERGY, RAPL
from umbel_server.monitor.report import PREDICTIONS
from umbel_server.monitor.spending import spending
from umbel_server.store.rollouts import Rollout
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)
DAY_S, HOUR_S = 86400, 3600
WAIT_S, FRESH_S, OLDEST_S = 0.03, 60.0, 900.0
_budgets: WeakKeyDictionary[Store, Kept[Spent]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Ingest:
    """What arrives.

    Args:
        hour: Batches that came in the last hour.
        waiting: Batches that wait for the opener.
        lag_s: How long the oldest of them has waited.
    """

    hour: int
    waiting: int
    lag_s: float


@dataclass(frozen=True, slots=True)
class Day:
    """What devices did today, UTC, as far as they told.

    Args:
        predictions: Predictions that they made.
        joules: Energy of devices that tell; None: none does.
        method: How it was measured.
    """

    predictions: int
    joules: float | None
    method: str = RAPL


@dataclass(frozen=True, slots=True)
class Spent:
    """What the device that spent most of its privacy budget has spent.

    Args:
        epsilon: Of all its runs together.
        devices: How many devices were ever charged.
        at_s: When it was added up, Unix seconds.
    """

    epsilon: float
    devices: int
    at_s: float


def ingest(store: Store) -> Ingest:
    """Return what arrives."""
    now_s = store.clock()
    waiting, oldest_s = store.inventory.waiting()
    lag_s = max(now_s - oldest_s, 0.0) if oldest_s is not None else 0.0
    return Ingest(arrived(store, within_s=HOUR_S), waiting, lag_s)


def today(store: Store) -> Day:
    """Return what devices did today."""
    now_s = store.clock()
    begin_s = now_s - now_s % DAY_S
    predictions, microjoules = 0, 0
    for model in {model for model, _ in store.cohorts.models(since_s=begin_s)}:
        for told in store.cohorts.totals(model, span="day", since_s=begin_s, until_s=now_s, wanted=()):
            predictions += told.counters.get(PREDICTIONS, 0)
    for told in store.cohorts.totals("", span="day", since_s=begin_s, until_s=now_s, wanted=()):
        microjoules += told.counters.get(ENERGY, 0)
    return Day(predictions, microjoules / 1e6 if microjoules else None)


def budget(service: Service, delta: float) -> Spent | None:
    """Return what was spent of the privacy budget; None: it is being added up."""
    store = service.store

    def made() -> Spent:
        lines = spending(store, service.fleet.runs, delta)
        return Spent(max((line.epsilon for line in lines), default=0.0), len(lines), store.clock())

    return _budgets.setdefault(
        store, Kept(store.clock, fresh_s=FRESH_S, oldest_s=OLDEST_S, wait_s=WAIT_S)
    ).get("budget", made)


def firing(store: Store) -> list[tuple[str, int]]:
    """Return how many alerts fire and are not silenced, by severity, the gravest first."""
    counts = dict.fromkeys(("critical", "warning", "info"), 0)
    for (severity, state), count in store.alerts.counts().items():
        if state in ("firing", "acknowledged"):
            counts[severity] += count
    return list(counts.items())


@router.get("/", dependencies=[may(Permission.DEVICES_READ)])
def overview(request: Request, service: ServiceOf, session: SessionOf) -> Response:
    """Show how the fleet is."""
    store, policy = service.store, service.fleet.policy()
    may_admit = Permission.ENROLLMENT_READ in session.permissions
    facets = counted(store)
    file = export(request, "versions", ("model", "version", "devices"), facets.versions)
    if file is not None:
        return file
    return page(
        request,
        "overview.html",
        live="overview",
        facets=facets,
        pending=len(store.applications.pending()) if may_admit else None,
        rollouts=_live(store.rollouts.all()),
        runs=store.runs.driven(),
        paused=store.pauses.all(),
        alerts=firing(store),
        ingest=ingest(store),
        today=today(store),
        spent=budget(service, policy.budget_delta),
        budget_epsilon=policy.budget_epsilon if math.isfinite(policy.budget_epsilon) else None,
        budget_delta=policy.budget_delta,
    )


def _live(rollouts: Sequence[Rollout]) -> list[Rollout]:
    return [each for each in rollouts if each.live]
