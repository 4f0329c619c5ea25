"""The tab of schedules: runs that begin by themselves, and may be begun now, paused, let go on, or removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from umbel_proto.errors import UmbelError
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
from umbel_server.console.session import ActorOf
from umbel_server.store.schedules import Schedule
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

HERE = "/runs/-/schedules"
COLUMNS = ("schedule", "model", "state", "every_s", "at_s", "labels", "next_s", "last_run", "said")
_WRITE = [may(Permission.RUNS_WRITE)]

What = Literal["begin", "pause", "resume", "remove"]
_SAYS: Mapping[str, tuple[str, str]] = {
    "begin": (
        "Begin now",
        "Its next run begins as soon as umbel serve runs looks, and is checked against policy and budget as ever.",
    ),
    "pause": (
        "Pause",
        "It begins no more runs until somebody lets it go on. A run that is under way goes on.",
    ),
    "resume": (
        "Let it go on",
        "It begins runs again; one that it missed meanwhile begins at once, and once.",
    ),
    "remove": (
        "Remove",
        "It begins no more runs. Its runs stay on record, and one that is under way goes on.",
    ),
}


@router.get(HERE, dependencies=[may(Permission.RUNS_READ)])
def show_schedules(request: Request, store: StoreOf) -> Response:
    """Show the schedules, and what came of each the last time."""
    rows = store.schedules.all()
    file = export(request, "schedules", COLUMNS, map(_cells, rows))
    if file is not None:
        return file
    return page(
        request,
        "schedules.html",
        title="Federated runs",
        live="runs",
        tab="schedules",
        rows=[
            (each, store.schedules.labels_since(each.model, each.since_s) if each.labels else None)
            for each in rows
        ],
        paths=request.app.state.paths,
    )


@router.get(HERE + "/{name}/{what}", dependencies=_WRITE)
def ask_schedule(request: Request, store: StoreOf, name: Named, what: What) -> Response:
    """Ask before something is done to a schedule."""
    return confirm.ask(request, _deed(_found(store, name), what))


@router.post(HERE + "/{name}/{what}", dependencies=_WRITE)
def change_schedule(
    request: Request, store: StoreOf, actor: ActorOf, name: Named, what: What, form: FormOf
) -> Response:
    """Begin a schedule's run now, pause it, let it go on, or remove it."""
    deed = _deed(_found(store, name), what)
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    if form.text("state") != deed.carries[0][1]:
        now = "is paused" if deed.carries[0][1] == "paused" else "is active"
        return confirm.conflict(
            request, deed, form, f"Nothing was done: somebody changed {name} meanwhile, it {now}."
        )
    reason = form.text(confirm.REASON)
    try:
        match what:
            case "begin":
                store.schedules.hasten(name, actor, reason=reason)
            case "remove":
                store.schedules.remove(name, actor, reason=reason)
            case _:
                store.schedules.set_state(
                    name, "paused" if what == "pause" else "active", actor, reason=reason
                )
    except UmbelError as exc:
        return confirm.conflict(request, deed, form, f"Nothing was done. {exc}")
    told = {
        "begin": "begins its next run now",
        "pause": "is paused",
        "resume": "goes on",
        "remove": "is removed",
    }
    return done(HERE, f"Schedule {name} {told[what]}.")


def _found(store: Store, name: str) -> Schedule:
    found = store.schedules.find(name)
    if found is None:
        raise missing(f"schedule {name}")
    return found


def _deed(schedule: Schedule, what: str) -> Deed:
    button, says = _SAYS[what]
    waits = (
        f"It still waits for {schedule.labels:,} new labels." if what == "begin" and schedule.labels else ""
    )
    return Deed(
        title=f"{button}: schedule {schedule.name}",
        button=button,
        name=schedule.name if what == "remove" else "",
        devices=None,
        says=tuple(filter(None, (says, waits))),
        back=HERE,
        carries=(("state", schedule.state),),
    )


def _cells(each: Schedule) -> Sequence[Any]:
    return (
        each.name,
        each.model,
        each.state,
        each.every_s,
        each.at_s,
        each.labels,
        each.next_s,
        each.last_run,
        each.said,
    )
