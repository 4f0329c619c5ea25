"""Screen "Federated runs": what trains, round by round; what begins by itself; and what of it costs which privacy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_proto.ids import DeviceId, RunId
from umbel_proto.privacy.auxiliary import WITHIN
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing
from umbel_server.api.service import ServiceOf, StoreOf
from umbel_server.api.texts import Named
from umbel_server.console import confirm
from umbel_server.console.confirm import Deed
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.rollouts import ROWS, Place
from umbel_server.console.seen.run_charts import CHARTS
from umbel_server.console.seen.runs import (
    STATES,
    WORDS,
    AttemptRow,
    RunRow,
    course_of,
    every_round,
    is_driven,
    rounds_words,
    run_rows,
    run_seen,
)
from umbel_server.console.session import ActorOf
from umbel_server.learning.begin import resume
from umbel_server.learning.norms import WORDS as NORMS
from umbel_server.learning.plan import RunPlan
from umbel_server.store.participants import Part
from umbel_server.store.runs import Outcome, RunRecord
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

COLUMNS = ("run", "model", "version", "state", "rounds", "rounds_done", "created_s", "finished_s", "reason")
ROUNDS = (
    "round",
    "attempt",
    "state",
    "started_s",
    "finished_s",
    "summed",
    "charged",
    "dropped",
    "silent",
    "score",
    "clip",
    "norm",
    *WITHIN,
    "within_error",
    "epsilon_server",
    "epsilon_release",
    "reason",
)
DEVICES = ("round", "attempt", "device", "outcome", "reason")
_READ = [may(Permission.RUNS_READ)]
_WRITE = [may(Permission.RUNS_WRITE)]
_NUMBER = r"^[0-9]{0,9}$"
_SINCE = "since"
"""The field that says when the run was paused, as whoever decides sees it; empty: it was not."""

State = Literal["", "running", "paused", "finished", "stopped", "failed"]
ChartName = Literal["learning", "loss", "privacy", "clip", "norms", "turnout"]


@router.get("/runs", dependencies=_READ)
def show_runs(
    request: Request,
    store: StoreOf,
    state: State = "",
    model: Annotated[str, Query(max_length=63)] = "",
    cursor: Place = 0,
) -> Response:
    """Show every run, the newest first."""
    rows = run_rows(store, state=state, model=model)
    file = export(request, "runs", COLUMNS, map(_cells, rows))
    if file is not None:
        return file
    return page(
        request,
        "runs.html",
        live="runs",
        tab="runs",
        rows=rows[cursor : cursor + ROWS],
        total=len(rows),
        next=cursor + ROWS if len(rows) > cursor + ROWS else None,
        state=state,
        states=STATES,
        model=model,
        models=sorted({each.model for each in store.runs.all()}),
        words=WORDS,
        any=bool(rows) or bool(store.runs.all()),
        paths=request.app.state.paths,
    )


@router.get("/runs/{name}", dependencies=_READ)
def show_run(
    request: Request,
    service: ServiceOf,
    name: Named,
    cursor: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    """Show a run, round by round, the last first."""
    record = _found(service.store, name)
    file = export(
        request, f"run-{name}-rounds", ROUNDS, map(_round_cells, every_round(service.store, record))
    )
    if file is not None:
        return file
    before = _after(f"{cursor}/")[:2] if cursor else None
    run = run_seen(
        service.fleet, service.store, record, before=before if before != (0, 0) else None, rows=ROWS
    )
    return page(
        request,
        "run.html",
        title=name,
        live="runs",
        run=run,
        word=WORDS[run.record.state],
        next=None if run.next is None else "{}/{}".format(*run.next),
        charted=rounds_words(run.step),
        lengths=NORMS,
    )


@router.get("/runs/{name}/{chart}.json", dependencies=_READ)
def show_chart(service: ServiceOf, name: Named, chart: ChartName) -> Response:
    """Return a chart of a run over its rounds."""
    return JSONResponse(CHARTS[chart](course_of(service.fleet, service.store, _found(service.store, name))))


@router.get("/runs/{name}/devices", dependencies=[may(Permission.PRIVACY_READ)])
def show_devices(
    request: Request,
    store: StoreOf,
    name: Named,
    which: Annotated[str, Query(alias="round", pattern=_NUMBER)] = "",
    attempt: Annotated[str, Query(pattern=_NUMBER)] = "",
    outcome: Literal["", "summed", "charged", "dropped"] = "",
    device: Annotated[str, Query(max_length=63)] = "",
    cursor: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """Show which devices were in a run's rounds, and what became of their updates."""
    run = _found(store, name)
    of = (int(which), int(attempt or 1)) if which else None
    became = outcome or None
    wanted = DeviceId(device) if device else None
    file = export(request, f"run-{name}-devices", DEVICES, _all_parts(store, run, of, became, wanted))
    if file is not None:
        return file
    rows = store.participants.parts(
        run.id, limit=ROWS + 1, of=of, outcome=became, device=wanted, after=_after(cursor)
    )
    last = rows[ROWS - 1] if len(rows) > ROWS else None
    return page(
        request,
        "run_devices.html",
        title=f"Devices of {name}",
        run=run,
        rows=rows[:ROWS],
        next=None if last is None else f"{last.round}/{last.attempt}/{last.device}",
        round=which,
        attempt=int(attempt or 1),
        outcome=outcome,
        device=device,
    )


@router.get("/runs/{name}/stop", dependencies=_WRITE)
def ask_stop(request: Request, store: StoreOf, name: Named) -> Response:
    """Ask before a run is ended."""
    run = _found(store, name)
    _require_live(run)
    return confirm.ask(request, _stop_deed(store, run))


@router.post("/runs/{name}/stop", dependencies=_WRITE)
def stop(request: Request, store: StoreOf, actor: ActorOf, name: Named, form: FormOf) -> Response:
    """End a run after the round it is in, or one that is paused."""
    run = _found(store, name)
    deed = _stop_deed(store, run)
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    try:
        _require_live(run)
        store.runs.finish(run.id, "stopped", form.text(confirm.REASON), actor=actor)
    except UmbelError:
        now = _found(store, name)
        said = f" ({now.reason})" if now.reason else ""
        return confirm.conflict(
            request, deed, form, f"Nothing was done: run {name} is {now.state} already{said}."
        )
    return done(f"/runs/{name}", f"Run {name} stops after its round.")


@router.get("/runs/{name}/pause", dependencies=_WRITE)
def ask_pause(request: Request, store: StoreOf, name: Named) -> Response:
    """Ask before a run is paused."""
    run = _found(store, name)
    if run.state != "running":
        raise RefusedError(f"Run {name} is {run.state}: only one that runs can be paused.")
    return confirm.ask(request, _pause_deed(store, run))


@router.post("/runs/{name}/pause", dependencies=_WRITE)
def pause_it(request: Request, store: StoreOf, actor: ActorOf, name: Named, form: FormOf) -> Response:
    """Let a run begin no more rounds for now; the round it is in goes on to its end."""
    deed = _pause_deed(store, _found(store, name))
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    try:
        store.pauses.begin(RunId(name), actor=actor, reason=form.text(confirm.REASON))
    except UmbelError as exc:
        return confirm.conflict(request, deed, form, f"Nothing was done. {exc}")
    return done(f"/runs/{name}", f"Run {name} begins no more rounds until somebody resumes it.")


@router.get("/runs/{name}/resume", dependencies=_WRITE)
def ask_resume(request: Request, service: ServiceOf, name: Named) -> Response:
    """Ask before a run goes on, or its server process is started again."""
    run = _found(service.store, name)
    _require_live(run)
    if run.state == "running" and is_driven(service.fleet, run):
        raise RefusedError(f"Run {name} is driven by a server process already: there is nothing to resume.")
    return confirm.ask(request, _resume_deed(service.store, run))


@router.post("/runs/{name}/resume", dependencies=_WRITE)
def resume_it(request: Request, service: ServiceOf, actor: ActorOf, name: Named, form: FormOf) -> Response:
    """Let a paused run go on, or start a run's server process again after it was killed."""
    store = service.store
    run = _found(store, name)
    deed = _resume_deed(store, run)
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    if deed.carries != ((_SINCE, form.text(_SINCE)),):
        said = f" ({run.reason})" if run.reason else ""
        problem = f"Nothing was done: somebody changed run {name} meanwhile, it is {run.state}{said}."
        return confirm.conflict(request, deed, form, problem)
    reason = form.text(confirm.REASON)
    try:
        resume(service.fleet, store, run, actor=actor, reason=reason, since_s=run.paused_s)
    except (RefusedError, UsageError) as exc:
        return confirm.conflict(request, deed, form, f"Nothing was done. {exc}")
    return done(f"/runs/{name}", f"Run {name} goes on after its last round on record.")


def _found(store: Store, name: str) -> RunRecord:
    run = store.runs.get(RunId(name))
    if run is None:
        raise missing(f"run {name}")
    return run


def _require_live(run: RunRecord) -> None:
    if run.finished_s is not None:
        raise RefusedError(
            f"Run {run.id} is {run.state}: only one that has not ended can be stopped or resumed."
        )


def _rounds_left(store: Store, run: RunRecord) -> str:
    rounds = RunPlan.from_json(run.plan).rounds
    return f"{rounds - store.attempts.reached(run.id).opened:,} of {rounds:,} rounds are left"


def _stop_deed(store: Store, run: RunRecord) -> Deed:
    attempt = store.runs.running_attempt(run.id)
    under_way = (
        "" if attempt is None else f" Round {attempt.round} is under way, and still counts if it opens."
    )
    when = (
        "It ends now."
        if attempt is None and run.paused_s is not None
        else "It ends after the round it is in."
    )
    return Deed(
        title=f"Stop run {run.id}",
        button="Stop the run",
        name=run.id,
        devices=0 if attempt is None else len(attempt.charged),
        says=(
            f"{when}{under_way} What was learned until then stays, and what devices spent stays spent.",
            "A run that was stopped does not go on; another one may begin from its model.",
        ),
        back=f"/runs/{run.id}",
    )


def _pause_deed(store: Store, run: RunRecord) -> Deed:
    attempt = store.runs.running_attempt(run.id)
    under_way = (
        "No round is under way."
        if attempt is None
        else f"Round {attempt.round} is under way: it goes on to its end, and counts if it opens."
    )
    return Deed(
        title=f"Pause run {run.id}",
        button="Pause the run",
        name="",
        devices=None,
        says=(
            f"{_rounds_left(store, run)}. {under_way} Until somebody resumes it no other round begins, and no device is charged.",
            "It keeps its place: its schedule waits for it, and what it may still ask of devices' budgets stays set aside.",
        ),
        back=f"/runs/{run.id}",
    )


def _resume_deed(store: Store, run: RunRecord) -> Deed:
    lost = "Its server process starts again, and goes on after the last round on record. What was left of an attempt is given up, and stays charged."
    paused = f"{_rounds_left(store, run)}, and it goes on with the next one."
    return Deed(
        title=f"Resume run {run.id}",
        button="Start its server process" if run.paused_s is None else "Let it go on",
        name="",
        devices=None,
        says=(lost if run.paused_s is None else paused,),
        back=f"/runs/{run.id}",
        carries=((_SINCE, "" if run.paused_s is None else repr(run.paused_s)),),
    )


def _after(cursor: str) -> tuple[int, int, str]:
    number, _, rest = cursor.partition("/")
    attempt, _, device = rest.partition("/")
    if not (number.isdecimal() and attempt.isdecimal() and len(number) + len(attempt) < 20):
        return (0, 0, "")
    return int(number), int(attempt), device


def _cells(row: RunRow) -> Sequence[Any]:
    record = row.record
    return (
        record.id,
        record.model,
        row.plan.version,
        record.state,
        row.plan.rounds,
        row.done,
        record.created_s,
        record.finished_s,
        record.reason,
    )


def _round_cells(each: AttemptRow) -> Sequence[Any]:
    record, turnout = each.record, each.turnout
    told = [each.metric(name) for name in WITHIN]
    within = [None if found is None else found["mean"] for found in told]
    error = next((found.get("error") for found in told if found), None)  # The same of all.
    return (
        record.round,
        record.attempt,
        record.state,
        record.started_s,
        record.finished_s,
        turnout.summed,
        turnout.charged,
        turnout.dropped,
        turnout.silent,
        each.score,
        each.figure("clip"),
        each.guard("norm"),
        *within,
        error,
        each.figure("epsilon_server"),
        each.figure("epsilon_release"),
        record.reason,
    )


def _all_parts(
    store: Store, run: RunRecord, of: tuple[int, int] | None, outcome: Outcome | None, device: DeviceId | None
) -> Iterator[Sequence[Any]]:
    after = (0, 0, "")
    while some := store.participants.parts(
        run.id, limit=1000, of=of, outcome=outcome, device=device, after=after
    ):
        yield from map(_part_cells, some)
        after = (some[-1].round, some[-1].attempt, some[-1].device)


def _part_cells(each: Part) -> Sequence[Any]:
    return each.round, each.attempt, each.device, each.outcome, each.reason
