"""Schedules: federated runs that begin by themselves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after, page_of
from umbel_server.api.problems import missing
from umbel_server.api.routes.runs import with_data
from umbel_server.api.service import ActorOf, ServiceOf, StoreOf
from umbel_server.api.texts import Asked, Name, Named, Why
from umbel_server.learning.schedule import DAY_S, LEAST_S, MOST_S
from umbel_server.learning.shown import schedule_json
from umbel_server.store.schedules import Schedule, State
from umbel_server.store.store import Store

router = APIRouter(prefix="/api/v1/schedules", tags=["schedules"], route_class=GuardedRoute)

_READ = [may(Permission.RUNS_READ)]
_WRITE = [may(Permission.RUNS_WRITE)]


class ScheduleShown(BaseModel):
    """Runs of one plan that begin by themselves."""

    schedule: str = Field(description="Its name; its runs are called so too, with a number.")
    model: str
    state: Literal["active", "paused"]
    every_s: float = Field(description="Least time between two runs, seconds.")
    at_s: int | None = Field(description="Second of the day, UTC, at which they begin; null: any.")
    labels: int = Field(description="New labels that a run waits for.")
    next_s: float = Field(description="From when on the next may begin, Unix seconds.")
    last_run: str | None
    said: str = Field(description="What came of it the last time it was due.")


class NewSchedule(Asked):
    """Runs that are to begin by themselves."""

    name: Name
    plan: dict[str, Any] = Field(description="As a plan's TOML has it; data by its file's name in `data`.")
    every_s: Annotated[float, Field(ge=LEAST_S, le=MOST_S)] = Field(
        description="Least time between two runs, seconds; in whole days where a time of day is said."
    )
    at_s: Annotated[int, Field(ge=0, lt=DAY_S)] | None = Field(
        None, description="Second of the day, UTC, at which they begin."
    )
    labels: Annotated[int, Field(ge=0, lt=1 << 31)] = Field(
        0, description="New labels, by the devices' reports, that a run waits for."
    )
    now: bool = Field(False, description="Let the first begin at once.")


class ScheduleRemoved(BaseModel):
    """A schedule that is no more."""

    schedule: str
    state: Literal["removed"]


@router.get("", dependencies=_READ)
def list_schedules(
    store: StoreOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[ScheduleShown]:
    """List the schedules by name, and what came of each the last time."""
    found = store.schedules.page(after=after(cursor) or "", limit=limit + 1)
    return page_of(found, limit, key=lambda each: each.name, show=_show)


@router.post("", status_code=201, dependencies=_WRITE)
def add_schedule(service: ServiceOf, actor: ActorOf, new: NewSchedule) -> ScheduleShown:
    """Check a plan against the fleet's policy and budget, and let runs of it begin by themselves."""
    from umbel_server.learning.scheduling import When, schedule

    when = When(new.every_s, new.at_s, new.labels, new.now)
    raw = with_data(service.fleet, new.plan)
    return _show(schedule(service.fleet, service.store, new.name, raw, when, actor))


@router.get("/{name}", dependencies=_READ)
def get_schedule(store: StoreOf, name: Named) -> ScheduleShown:
    """Show a schedule."""
    return _show(_found(store, name))


@router.post("/{name}/begin", dependencies=_WRITE)
def begin_schedule(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> ScheduleShown:
    """Let its next run begin now. One that waits for labels still does."""
    _found(store, name)
    store.schedules.hasten(name, actor, reason=why.reason)
    return _show(_found(store, name))


@router.post("/{name}/pause", dependencies=_WRITE)
def pause_schedule(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> ScheduleShown:
    """Let it begin no more runs; one that runs goes on."""
    return _set(store, actor, name, "paused", why.reason)


@router.post("/{name}/resume", dependencies=_WRITE)
def resume_schedule(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> ScheduleShown:
    """Let it go on. A run that it missed meanwhile begins at once, and once."""
    return _set(store, actor, name, "active", why.reason)


@router.post("/{name}/remove", dependencies=_WRITE)
def remove_schedule(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> ScheduleRemoved:
    """Remove it. Its runs stay on record, and one that runs goes on."""
    _found(store, name)
    store.schedules.remove(name, actor, reason=why.reason)
    return ScheduleRemoved(schedule=name, state="removed")


def _set(store: Store, actor: ActorOf, name: str, state: State, reason: str) -> ScheduleShown:
    _found(store, name)
    store.schedules.set_state(name, state, actor, reason=reason)
    return _show(_found(store, name))


def _found(store: Store, name: str) -> Schedule:
    found = store.schedules.find(name)
    if found is None:
        raise missing(f"schedule {name}")
    return found


def _show(found: Schedule) -> ScheduleShown:
    return ScheduleShown(**schedule_json(found))
