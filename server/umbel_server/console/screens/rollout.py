"""Screen of one rollout: its steps, its gates against their thresholds, its devices, its log, and what may be done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from umbel_proto.errors import RefusedError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing
from umbel_server.api.service import StoreOf
from umbel_server.api.texts import Named
from umbel_server.console import confirm
from umbel_server.console.confirm import Deed
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.seen.kept import Kept
from umbel_server.console.seen.rollouts import (
    ACTS,
    FATES,
    WORDS,
    Act,
    Figures,
    acts_of,
    course_chart,
    figures_of,
    gate_seen,
    mark_of,
    plan_words,
    step_of,
    steps_seen,
    touched_by,
)
from umbel_server.console.session import ActorOf
from umbel_server.rollouts.state import told
from umbel_server.store.became import Became
from umbel_server.store.rollouts import Rollout
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

ROWS = 50
FRESH_S, OLDEST_S, WAIT_S = 5.0, 60.0, 0.05
EVENTS = ("at_s", "event", "actor", "reason")
DEVICES = ("device", "state", "admitted_s", "version")
_READ = [may(Permission.ROLLOUTS_READ)]
_WRITE = [may(Permission.ROLLOUTS_WRITE)]
_kept: WeakKeyDictionary[Store, Kept[Figures]] = WeakKeyDictionary()

ActName = Literal["start", "pause", "resume", "keep", "roll-back"]


@router.get("/rollouts/{name}", dependencies=_READ)
def show_rollout(request: Request, store: StoreOf, name: Named) -> Response:
    """Show a rollout."""
    rollout = _found(store, name)
    events = store.rollouts.events(name)
    rows = ((each.at_s, each.event, each.actor, each.reason) for each in events)
    file = export(request, f"rollout-{name}-events", EVENTS, rows)
    if file is not None:
        return file
    figures = kept_figures(store, rollout)
    judged = next((each for each in reversed(events) if each.figures), None)
    gates = figures.gates if figures is not None else ()
    return page(
        request,
        "rollout.html",
        title=rollout.id,
        live="rollouts",
        rollout=rollout,
        told=told(rollout.state),
        word=WORDS[rollout.status],
        step=step_of(rollout),
        plan_words=plan_words(rollout.plan),
        steps=steps_seen(rollout, events, now_s=store.clock()),
        figures=figures,
        gates=gates or tuple(map(gate_seen, judged.figures if judged and not rollout.live else ())),
        judged=None if gates else judged,
        events=tuple(reversed(events)),
        mark_of=mark_of,
        acts=acts_of(rollout),
        experiment=store.experiments.find(name),
    )


@router.get("/rollouts/{name}/course.json", dependencies=_READ)
def show_course(store: StoreOf, name: Named) -> Response:
    """Return how its devices became more, as a chart."""
    rollout = _found(store, name)
    figures = kept_figures(store, rollout)
    course = figures.course if figures is not None else store.progress.course(rollout)
    return JSONResponse(course_chart(rollout, course, store.rollouts.events(name)))


@router.get("/rollouts/{name}/devices", dependencies=_READ)
def show_rollout_devices(
    request: Request,
    store: StoreOf,
    name: Named,
    state: Annotated[Became | None, Query()] = None,
    cursor: Annotated[str, Query(max_length=63)] = "",
) -> Response:
    """Show the devices that were offered its candidate."""
    rollout = _found(store, name)
    file = export(request, f"rollout-{name}-devices", DEVICES, _all_devices(store, rollout, state))
    if file is not None:
        return file
    reach = store.progress.reach(rollout)
    rows = store.progress.devices(rollout, limit=ROWS + 1, fate=state, after=cursor)
    return page(
        request,
        "rollout_devices.html",
        title=f"Devices of {name}",
        live="rollouts",
        rollout=rollout,
        rows=rows[:ROWS],
        next=rows[ROWS - 1].device if len(rows) > ROWS else None,
        reach=reach,
        state=state,
        fates=FATES,
        of=reach.offered if state is None else getattr(reach, state),
    )


@router.get("/rollouts/{name}/{act}", dependencies=_WRITE)
def ask_act(request: Request, store: StoreOf, name: Named, act: ActName) -> Response:
    """Ask before something is done to a rollout."""
    rollout, chosen = _found(store, name), ACTS[act]
    if chosen not in acts_of(rollout):
        raise RefusedError(
            f"Rollout {name} {told(rollout.state)}: to {chosen.button.lower()} is not possible now."
        )
    return confirm.ask(request, _deed(store, rollout, chosen))


@router.post("/rollouts/{name}/{act}", dependencies=_WRITE)
def act_on(
    request: Request, store: StoreOf, actor: ActorOf, name: Named, act: ActName, form: FormOf
) -> Response:
    """Start, pause or resume a rollout, or end it."""
    chosen = ACTS[act]
    seen = form.number("revision")
    deed = _deed(store, _found(store, name), chosen)
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    reason = form.text(confirm.REASON)
    try:
        # What was decided by another state of it than this form showed is not done.
        after = store.rollouts.happen(name, chosen.event(reason), actor=actor, reason=reason, revision=seen)
    except RefusedError as exc:
        problem = (
            f"{exc} Nothing was done, and your reason is kept below: look again, then confirm or leave it."
        )
        return confirm.conflict(request, _deed(store, _found(store, name), chosen), form, problem)
    return done(f"/rollouts/{name}", f"Rollout {name} {told(after.state)}.")


def kept_figures(store: Store, rollout: Rollout) -> Figures | None:
    """Return what is counted of a rollout, as of some seconds ago at most; None: it is being counted."""
    kept = _kept.get(store)
    if kept is None:
        kept = _kept.setdefault(store, Kept(store.clock, fresh_s=FRESH_S, oldest_s=OLDEST_S, wait_s=WAIT_S))
    return kept.get((rollout.id, rollout.revision), lambda: figures_of(store, rollout))


def _found(store: Store, name: str) -> Rollout:
    found = store.rollouts.find(name)
    if found is None:
        raise missing(f"rollout {name}")
    return found


def _deed(store: Store, rollout: Rollout, act: Act) -> Deed:
    reach, eligible = store.progress.reach(rollout), store.progress.eligible()
    more: tuple[str, ...] = ()
    if act.path == "roll-back":
        more = (
            f"Version {rollout.to_version} of {rollout.model} goes, version {rollout.from_version} answers again.",
        )
    if act.path in ("pause", "resume", "start"):
        more = (
            f"{reach.offered:,} devices were offered the candidate so far; the step has about as many more to reach as said above.",
        )
    return Deed(
        title=f"{act.title} {rollout.id}",
        button=act.button,
        name=rollout.id if act.typed else "",
        devices=touched_by(act, rollout, reach, eligible),
        says=(*act.says, *more),
        back=f"/rollouts/{rollout.id}",
        carries=(("revision", str(rollout.revision)),),
    )


def _all_devices(store: Store, rollout: Rollout, state: Became | None) -> Iterator[Sequence[Any]]:
    after = ""
    while some := store.progress.devices(rollout, limit=1000, fate=state, after=after):
        for each in some:
            yield each.device, each.became, each.admitted_s, each.version
        after = some[-1].device
