"""Federated runs: what they are, how far they are, and what they cost in privacy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import RunId
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, AfterName, Cursor, Limit, Page, after, no_cursor, page_of
from umbel_server.api.problems import missing
from umbel_server.api.service import ActorOf, ServiceOf, StoreOf
from umbel_server.api.texts import Asked, Name, Named, Why
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.shown import attempt_json, run_json
from umbel_server.monitor.spending import spending
from umbel_server.store.participants import Turnout
from umbel_server.store.runs import RoundRecord, RunRecord
from umbel_server.store.store import Store

router = APIRouter(prefix="/api/v1/runs", tags=["runs"], route_class=GuardedRoute)
reports = APIRouter(prefix="/api/v1/run-reports", tags=["runs"], route_class=GuardedRoute)
privacy = APIRouter(prefix="/api/v1/privacy", tags=["privacy"], route_class=GuardedRoute)


DATA_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.npz")


State = Literal["running", "paused", "finished", "stopped", "failed"]


class RunShown(BaseModel):
    """A federated run."""

    id: str
    model: str
    state: State
    reason: str = Field(description="Why it ended or is paused; empty while it runs.")
    created_s: float = Field(description="Unix seconds.")
    finished_s: float | None = Field(description="Unix seconds; null: it has not ended.")
    paused_s: float | None = Field(description="Unix seconds; null: it is not paused.")
    plan: dict[str, Any] = Field(description="As it was approved.")


class RoundShown(BaseModel):
    """An attempt at a round that is over."""

    round: int
    attempt: int
    state: Literal["opened", "aborted"]
    started_s: float = Field(description="Unix seconds.")
    finished_s: float = Field(description="Unix seconds.")
    reason: str = Field(description="Why it was aborted; empty if its sum was used.")
    figures: dict[str, Any] = Field(description="What it cost and gave; names carry units.")
    summed: int = Field(description="Devices in the sum.")
    charged: int = Field(description="Devices whose ledger was charged, and that the sum lacks.")
    dropped: int = Field(description="Devices that were lost before.")


class RunReport(BaseModel):
    """A run, how far it is, and what it gave and cost so far."""

    run: str
    model: str
    version: int = Field(description="The version that it began with.")
    state: State
    reason: str
    rounds: int
    rounds_done: int
    accuracy: float | None = Field(description="On held-out data; null: none yet.")
    r2: float | None = Field(default=None, description="The same of a model that answers with numbers.")
    within_clip: dict[str, float] | None = Field(
        default=None,
        description="Share of the last round's updates within the clip: mean and error; null: not asked.",
    )
    epsilon_server: float | None = Field(
        description="Spent by each device, against the server; null: infinite."
    )
    epsilon_release: float | None = Field(description="Against those who see only its models.")
    delta: float
    created_s: float
    finished_s: float | None
    plan: dict[str, Any]


class Part(BaseModel):
    """A device's part in an attempt at a round."""

    device: str
    outcome: str
    reason: str


class AttemptShown(BaseModel):
    """An attempt at a round, and who was in it."""

    round: int
    attempt: int
    state: str
    reason: str
    started_s: float
    finished_s: float | None
    figures: dict[str, Any]
    participations: list[Part]


class NewRun(Asked):
    """A run to begin."""

    plan: dict[str, Any] = Field(description="As a plan's TOML has it; data by its file's name in `data`.")
    name: Name | None = Field(None, description="Null: the model's and a number.")
    dry_run: bool = Field(False, description="Check the plan and start nothing.")


class Started(BaseModel):
    """A run that began, or that would begin."""

    run: str
    started: bool
    epsilon_server: float | None = Field(description="At the end, against the server; null: infinite.")
    epsilon_release: float | None
    delta: float
    bytes_per_parameter: float
    error: float | None = Field(description="Of the sum, as the plan's noise makes it.")
    quantities: int = Field(description="Metrics and the like that each device adds beside its update.")
    quantities_noise: float = Field(description="By which share they make the noise on the update larger.")


class Resumed(BaseModel):
    """A run that goes on."""

    run: str
    state: Literal["running"]


class Pack(Asked):
    """How to make a package of what a run has learned."""

    calibration: str | None = Field(
        None, max_length=124, description="A file in `data` with inputs to quantize with; null: the plan's."
    )
    heldout: str | None = Field(
        None, max_length=124, description="A file in `data` to evaluate on, for the card; null: the plan's."
    )
    version: Annotated[int, Field(ge=1, lt=1 << 32)] | None = Field(
        None, description="Null: one above the newest that is released or in the registry."
    )


class PackedShown(BaseModel):
    """A package of what a run has learned, a draft in the registry."""

    run: str
    model: str
    version: int
    sha256: str
    size: int = Field(description="Bytes.")


class RunCharged(BaseModel):
    """A device's part in a run."""

    run: str
    participations: int
    epsilon: float | None = Field(description="What that costs alone; null: infinite, or not known.")
    known: bool


class Spent(BaseModel):
    """What a device has spent of its privacy, as far as the fleet knows; its own ledger decides."""

    device: str
    epsilon: float | None = Field(description="Of all runs together; null: infinite.")
    runs: list[RunCharged]


@router.get("", dependencies=[may(Permission.RUNS_READ)])
def list_runs(store: StoreOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Page[RunShown]:
    """List the runs by name."""
    found = store.runs.page(after=after(cursor) or "", limit=limit + 1)
    return page_of(found, limit, key=lambda run: run.id, show=_show)


@router.post("", status_code=201, dependencies=[may(Permission.RUNS_WRITE)])
def start_run(service: ServiceOf, actor: ActorOf, new: NewRun) -> Started:
    """Check a plan against the fleet's policy and budget, and start its run."""
    from umbel_server.learning.begin import start

    raw = with_data(service.fleet, new.plan)
    run, figures = start(
        service.fleet, service.store, raw, name=new.name or "", dry_run=new.dry_run, actor=actor
    )
    return Started(run=run, started=not new.dry_run, **figures)


@router.post("/{name}/pause", dependencies=[may(Permission.RUNS_WRITE)])
def pause_run(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> RunShown:
    """Let a run begin no more rounds for now; the round it is in goes on to its end."""
    store.pauses.begin(_found(store, name).id, actor=actor, reason=why.reason)
    return _show(_found(store, name))


@router.post("/{name}/resume", dependencies=[may(Permission.RUNS_WRITE)])
def resume_run(service: ServiceOf, actor: ActorOf, name: Named, why: Why | None = None) -> Resumed:
    """Let a paused run go on, or start a run's server process again after it was killed."""
    from umbel_server.learning.begin import resume

    reason = "" if why is None else why.reason
    resume(service.fleet, service.store, _found(service.store, name), actor=actor, reason=reason)
    return Resumed(run=name, state="running")


@router.post("/{name}/pack", status_code=201, dependencies=[may(Permission.REGISTRY_WRITE)])
def pack_run(service: ServiceOf, actor: ActorOf, name: Named, what: Pack) -> PackedShown:
    """Make a package of what a run has learned, signed with the service's release key: a draft in the registry.

    It takes as long as quantizing and evaluating do.
    """
    from umbel_server.learning.pack import pack

    fleet, run = service.fleet, _found(service.store, name)
    calibration, heldout = (
        None if named is None else data_file(fleet, field, named)
        for field, named in (("calibration", what.calibration), ("heldout", what.heldout))
    )
    made = pack(
        fleet, service.store, run, actor, calibration=calibration, heldout=heldout, version=what.version
    )
    return PackedShown(**made.to_json())


@reports.get("", dependencies=[may(Permission.RUNS_READ)])
def list_run_reports(
    store: StoreOf, after_name: AfterName = "", limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[RunReport]:
    """List the runs by name, with what they gave and cost so far."""
    found = store.runs.page(after=after(cursor) or after_name, limit=limit + 1)
    return page_of(found, limit, key=lambda run: run.id, show=lambda run: _run_report(store, run))


@reports.get("/{name}", dependencies=[may(Permission.RUNS_READ)])
def get_run_report(store: StoreOf, name: Named) -> RunReport:
    """Show a run, how far it is, and what it gave and cost so far."""
    return _run_report(store, _found(store, name))


@reports.get("/{name}/attempts", dependencies=[may(Permission.PRIVACY_READ)])
def list_attempts(
    store: StoreOf, name: Named, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[AttemptShown]:
    """List a run's attempts at rounds in their order, with every device that was in them."""
    found = store.runs.attempts(_found(store, name).id, after=_after_attempt(cursor), limit=limit + 1)
    return page_of(
        found, limit, key=_attempt, show=lambda each: AttemptShown.model_validate(attempt_json(each))
    )


@router.get("/{name}", dependencies=[may(Permission.RUNS_READ)])
def get_run(store: StoreOf, name: Named) -> RunShown:
    """Show a run."""
    return _show(_found(store, name))


@router.get("/{name}/rounds", dependencies=[may(Permission.RUNS_READ)])
def list_rounds(
    store: StoreOf, name: Named, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[RoundShown]:
    """List the rounds of a run that are over, each attempt, in their order."""
    run, seen = _found(store, name).id, _after_attempt(cursor)
    found = store.runs.attempts(run, after=seen, limit=limit + 1, with_devices=False)
    shown = found[:limit]
    turnout = store.participants.turnout(run, since=shown[0].round, until=shown[-1].round) if shown else {}
    return page_of(
        found,
        limit,
        key=_attempt,
        show=lambda each: _round(each, turnout.get((each.round, each.attempt), Turnout())),
    )


@router.post("/{name}/stop", dependencies=[may(Permission.RUNS_WRITE)])
def stop_run(store: StoreOf, actor: ActorOf, name: Named, why: Why) -> RunShown:
    """End a run after the round it is in, or one that is paused."""
    run = _found(store, name)
    if run.finished_s is not None:
        raise RefusedError(f"Run {name} is {run.state}: only one that has not ended can be stopped.")
    store.runs.finish(run.id, "stopped", why.reason, actor=actor)
    return _show(_found(store, name))


@privacy.get("", dependencies=[may(Permission.PRIVACY_READ)])
def list_spending(
    service: ServiceOf, after_name: AfterName = "", limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[Spent]:
    """List what each device was charged, by name."""
    fleet, last = service.fleet, after(cursor) or after_name
    found = spending(service.store, fleet.runs, fleet.policy().budget_delta, after=last, limit=limit + 1)
    return page_of(
        found, limit, key=lambda line: line.device, show=lambda line: Spent.model_validate(line.to_json())
    )


def with_data(fleet: FleetDir, plan: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's fields with the files that it names in the fleet's own directory of data.

    Raises:
        UsageError: It names something else than a file there: nobody far away reads other files of the service.
    """
    result = plan.get("result")
    made = {**plan, "result": dict(result)} if isinstance(result, dict) else dict(plan)
    tables = [(made, "heldout"), (made["result"], "calibration")] if "result" in made else [(made, "heldout")]
    for table, field in tables:
        if isinstance(table, dict) and (named := table.get(field)):
            table[field] = str(data_file(fleet, field, named))
    return made


def data_file(fleet: FleetDir, field: str, named: object) -> Path:
    """Return a file in the fleet's own directory of data.

    Raises:
        UsageError: What is named is something else: nobody far away reads other files of the service.
    """
    if not isinstance(named, str) or DATA_FILE.fullmatch(named) is None:
        raise UsageError(f"{field} is to be the name of an .npz file in the directory  data  of the fleet.")
    return fleet.path / "data" / named


def _run_report(store: Store, run: RunRecord) -> RunReport:
    return RunReport(**run_json(run, store.attempts.reached(run.id)), plan=json.loads(run.plan))


def _found(store: StoreOf, name: str) -> RunRecord:
    run = store.runs.get(RunId(name))
    if run is None:
        raise missing(f"run {name}")
    return run


def _show(run: RunRecord) -> RunShown:
    return RunShown(
        id=run.id,
        model=run.model,
        state=run.state,
        reason=run.reason,
        created_s=run.created_s,
        finished_s=run.finished_s,
        paused_s=run.paused_s,
        plan=json.loads(run.plan),
    )


def _attempt(record: RoundRecord) -> str:
    return f"{record.round}.{record.attempt}"


def _after_attempt(cursor: str | None) -> tuple[int, int]:
    """Return the round and the attempt that a cursor names; before the first: the beginning.

    Raises:
        Problem: It is no cursor.
    """
    if (key := after(cursor)) is None:
        return 0, 0
    if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", key, re.ASCII) is None:
        raise no_cursor()
    number, _, attempt = key.partition(".")
    return int(number), int(attempt)


def _round(record: RoundRecord, turnout: Turnout) -> RoundShown:
    return RoundShown(
        round=record.round,
        attempt=record.attempt,
        state=record.state,
        started_s=record.started_s,
        finished_s=record.finished_s,
        reason=record.reason,
        figures=dict(record.figures),
        summed=turnout.summed,
        charged=turnout.charged,
        dropped=turnout.dropped,
    )
