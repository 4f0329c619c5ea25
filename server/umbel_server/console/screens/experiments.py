"""Screen "Experiments": which of two versions is better for what people do, who decided, and by what."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing, status_of_error
from umbel_server.api.service import StoreOf
from umbel_server.api.texts import Named
from umbel_server.console import confirm
from umbel_server.console.confirm import Deed
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.rollouts import ROWS, Place, released_models
from umbel_server.console.seen.experiments import (
    STATES,
    TELLING,
    WORDS,
    ExperimentRow,
    Reading,
    course_chart,
    experiment_rows,
    read_now,
    touched_by,
)
from umbel_server.console.seen.kept import Kept
from umbel_server.console.session import ActorOf
from umbel_server.experiments.decision import decide, status_of
from umbel_server.store.experiments import EXTEND, SHIP, STOP, Experiment
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

FRESH_S, OLDEST_S, WAIT_S = 15.0, 180.0, 0.05
COLUMNS = (
    "experiment",
    "model",
    "from_version",
    "to_version",
    "state",
    "metric",
    "least_effect",
    "ends_s",
    "created_by",
    "created_s",
)
COURSE = ("at_s", "treatment", "control", "estimate", "low", "high")
_READ = [may(Permission.ROLLOUTS_READ)]
_WRITE = [may(Permission.ROLLOUTS_WRITE)]
_kept: WeakKeyDictionary[Store, Kept[Reading]] = WeakKeyDictionary()

State = Literal["", "running", "paused", "ended", "rolled-back", "shipped", "stopped", "draft"]


@router.get("/experiments", dependencies=_READ)
def show_experiments(
    request: Request,
    store: StoreOf,
    state: State = "",
    model: Annotated[str, Query(max_length=63)] = "",
    cursor: Place = 0,
) -> Response:
    """Show every experiment, the newest first."""
    rows = experiment_rows(store, state=state, model=model)
    file = export(request, "experiments", COLUMNS, map(_cells, rows))
    if file is not None:
        return file
    return page(
        request,
        "experiments.html",
        live="experiments",
        rows=rows[cursor : cursor + ROWS],
        total=len(rows),
        next=cursor + ROWS if len(rows) > cursor + ROWS else None,
        state=state,
        states=STATES,
        model=model,
        models=released_models(store),
        words=WORDS,
        any=bool(rows) or bool(store.experiments.all()),
    )


@router.get("/experiments/{name}", dependencies=_READ)
def show_experiment(request: Request, store: StoreOf, name: Named) -> Response:
    """Show an experiment, what it says, and what was decided."""
    experiment = _found(store, name)
    reading = kept_reading(store, experiment)
    if "format" in request.query_params:
        whole = reading or read_now(store, name)
        rows = ([each[column] for column in COURSE] for each in whole.course)
        file = export(request, f"experiment-{name}", COURSE, rows)
        if file is not None:
            return file
    return _shown(request, store, experiment, reading)


@router.get("/experiments/{name}/course.json", dependencies=_READ)
def show_course(store: StoreOf, name: Named) -> Response:
    """Return the difference between the arms as it was known over time, as a chart."""
    experiment = _found(store, name)
    return JSONResponse(
        course_chart(experiment.plan, kept_reading(store, experiment) or read_now(store, name))
    )


@router.post("/experiments/{name}/extend", dependencies=_WRITE)
def extend(request: Request, store: StoreOf, actor: ActorOf, name: Named, form: FormOf) -> Response:
    """Let somebody decide later."""
    experiment = _found(store, name)
    said = {"days": form.text("days"), "reason": form.text(confirm.REASON)}
    try:
        try:
            days = float(said["days"])
        except ValueError:
            raise UsageError("Nothing was done: say for how many days from now on.") from None
        if not said["reason"]:
            raise UsageError("Nothing was done: give a reason, for the record.")
        decide(
            store, name, EXTEND, actor=actor, comment=said["reason"], days=days, known=form.number("known")
        )
    except UmbelError as exc:
        status = status_of_error(exc)
        if status is None:
            raise
        reading = kept_reading(store, experiment)
        return _shown(
            request, store, _found(store, name), reading, problem=str(exc), status=status, said=said
        )
    return done(f"/experiments/{name}", f"Experiment {name} goes on for {days:g} days from now.")


@router.get("/experiments/{name}/{what}", dependencies=_WRITE)
def ask_decision(request: Request, store: StoreOf, name: Named, what: Literal["ship", "stop"]) -> Response:
    """Ask before an experiment is shipped or stopped."""
    return confirm.ask(request, _deed(store, _found(store, name), what))


@router.post("/experiments/{name}/{what}", dependencies=_WRITE)
def decide_it(
    request: Request,
    store: StoreOf,
    actor: ActorOf,
    name: Named,
    what: Literal["ship", "stop"],
    form: FormOf,
) -> Response:
    """Ship or stop an experiment. What was seen is kept with the decision."""
    known = form.number("known")
    deed = _deed(store, _found(store, name), what)
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    try:
        decide(store, name, what, actor=actor, comment=form.text(confirm.REASON), known=known)
    except RefusedError as exc:
        return confirm.conflict(
            request, _deed(store, _found(store, name), what), form, f"Nothing was done. {exc}"
        )
    word = "shipped: its rollout goes on" if what == SHIP else "stopped: the candidate is taken back"
    return done(f"/experiments/{name}", f"Experiment {name} is {word}.")


def kept_reading(store: Store, experiment: Experiment) -> Reading | None:
    """Return what an experiment says, as of some seconds ago at most; None: it is being computed."""
    if experiment.final is not None:
        return Reading.of(experiment.final.figures)
    kept = _kept.get(store)
    if kept is None:
        kept = _kept.setdefault(store, Kept(store.clock, fresh_s=FRESH_S, oldest_s=OLDEST_S, wait_s=WAIT_S))
    revision = store.rollouts.get(experiment.id).revision
    return kept.get((experiment.id, revision), lambda: read_now(store, experiment.id))


def _shown(
    request: Request,
    store: Store,
    experiment: Experiment,
    reading: Reading | None,
    *,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    said: dict[str, str] | None = None,
) -> Response:
    rollout = store.rollouts.get(experiment.id)
    stands = status_of(experiment, rollout)
    return page(
        request,
        "experiment.html",
        title=experiment.id,
        status=status,
        live="experiments",
        experiment=experiment,
        plan=experiment.plan,
        rollout=rollout,
        word=WORDS[stands],
        reading=reading,
        decisions=[(each, Reading.of(each.figures)) for each in reversed(experiment.decisions)],
        overdue=experiment.final is None and experiment.ends_s <= store.clock(),
        can_ship=experiment.final is None
        and rollout.live
        and reading is not None
        and reading.outcome in TELLING,
        can_extend=experiment.final is None and rollout.live,
        can_stop=experiment.final is None,
        problem=problem,
        said=said or {"days": "7", "reason": ""},
    )


def _deed(store: Store, experiment: Experiment, what: str) -> Deed:
    rollout = store.rollouts.get(experiment.id)
    offered = store.progress.reach(rollout).offered
    touched = touched_by(what, experiment, rollout, offered=offered, eligible=store.progress.eligible())
    says: tuple[str, ...]
    if what == SHIP:
        following = " → ".join(f"{step.percent:g} %" for step in experiment.plan.following)
        says = (
            f"Its rollout goes on with the steps that follow ({following}); devices with version {rollout.to_version} keep it.",
            "What is seen at this moment is kept with the decision, for good.",
        )
    else:
        assert what == STOP
        says = (
            f"Devices with version {rollout.to_version} go back to version {rollout.from_version} when they next ask.",
            "What is seen at this moment is kept with the decision, for good.",
        )
    return Deed(
        title=f"{what.capitalize()} experiment {experiment.id}",
        button="Ship it" if what == SHIP else "Stop it",
        name=experiment.id,
        devices=touched,
        says=says,
        back=f"/experiments/{experiment.id}",
        carries=(("known", str(len(experiment.decisions))),),
    )


def _found(store: Store, name: str) -> Experiment:
    found = store.experiments.find(name)
    if found is None:
        raise missing(f"experiment {name}")
    return found


def _cells(row: ExperimentRow) -> Sequence[Any]:
    return (
        row.experiment.id,
        row.rollout.model,
        row.rollout.from_version,
        row.rollout.to_version,
        row.state,
        row.experiment.plan.metric,
        row.experiment.plan.least_effect,
        row.experiment.ends_s,
        row.experiment.created_by,
        row.experiment.created_s,
    )
