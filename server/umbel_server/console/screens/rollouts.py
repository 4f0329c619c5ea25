"""Screen "Rollouts": which new versions are on their way, what is held back for them, and which devices stay put."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from umbel_proto.errors import UmbelError
from umbel_proto.ids import ModelName
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
from umbel_server.console.seen.rollouts import (
    STATES,
    WORDS,
    RolloutRow,
    plan_words,
    rollout_rows,
)
from umbel_server.console.session import ActorOf
from umbel_server.rollouts.holding import hold, pin
from umbel_server.store.progress import Pin
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

ROWS = 50
COLUMNS = (
    "rollout",
    "model",
    "from_version",
    "to_version",
    "state",
    "step",
    "since_s",
    "offered",
    "running",
    "failed",
    "reason",
    "created_s",
)
_READ = [may(Permission.ROLLOUTS_READ)]
_WRITE = [may(Permission.ROLLOUTS_WRITE)]
HOLDS, PINS = "/rollouts/-/holds", "/rollouts/-/pins"

State = Literal["", "live", "running", "paused", "finished", "kept", "rolled-back", "draft"]
ModelAsked = Annotated[str, Query(max_length=63)]
Place = Annotated[int, Query(ge=0, le=1_000_000)]


@router.get("/rollouts", dependencies=_READ)
def show_rollouts(
    request: Request,
    store: StoreOf,
    state: State = "",
    model: ModelAsked = "",
    cursor: Place = 0,
) -> Response:
    """Show every rollout, the newest first."""
    rows = rollout_rows(store, state=state, model=model)
    file = export(request, "rollouts", COLUMNS, map(_cells, rows))
    if file is not None:
        return file
    return page(
        request,
        "rollouts.html",
        live="rollouts",
        tab="rollouts",
        rows=rows[cursor : cursor + ROWS],
        total=len(rows),
        next=cursor + ROWS if len(rows) > cursor + ROWS else None,
        state=state,
        model=model,
        states=STATES,
        models=released_models(store),
        words=WORDS,
        plan_words=plan_words,
        any=bool(rows) or bool(store.rollouts.all()),
    )


@router.get(HOLDS, dependencies=_READ)
def show_holds(request: Request, store: StoreOf) -> Response:
    """Show the models whose new versions come by rollouts only, and those whose newest reaches everybody at once."""
    rows = holds_seen(store)
    file = export(request, "holds", ("model", "held_at", "newest"), rows)
    if file is not None:
        return file
    return page(request, "holds.html", title="Rollouts", live="rollouts", tab="holds", rows=rows)


@router.get(HOLDS + "/{name}/{what}", dependencies=_WRITE)
def ask_hold(request: Request, store: StoreOf, name: Named, what: Literal["hold", "end"]) -> Response:
    """Ask before a model's new versions are held back, or let go."""
    return confirm.ask(request, _hold_deed(store, name, what))


@router.post(HOLDS + "/{name}/{what}", dependencies=_WRITE)
def change_hold(
    request: Request, store: StoreOf, actor: ActorOf, name: Named, what: Literal["hold", "end"], form: FormOf
) -> Response:
    """Hold a model's new versions back, or let the newest reach every device at once again."""
    deed = _hold_deed(store, name, what)
    if (refused := confirm.refusal(request, deed, form)) is not None:
        return refused
    reason = form.text(confirm.REASON)
    if what == "hold":
        version = hold(store, name, actor=actor, reason=reason)
        return done(HOLDS, f"New versions of {name} come by rollouts only; devices get {version} until then.")
    store.rollouts.hold(ModelName(name), None, actor=actor, reason=reason)
    return done(HOLDS, f"The newest version of {name} reaches every device at once again.")


@router.get(PINS, dependencies=_READ)
def show_pins(
    request: Request,
    store: StoreOf,
    model: ModelAsked = "",
    cursor: Annotated[str, Query(max_length=130)] = "",
) -> Response:
    """Show the devices that stay at a version."""
    file = export(request, "pins", ("model", "device", "version", "has"), _all_pins(store, model))
    if file is not None:
        return file
    return _pins(request, store, model=model, cursor=cursor)


@router.post(PINS, dependencies=_WRITE)
def add_pin(request: Request, store: StoreOf, actor: ActorOf, form: FormOf) -> Response:
    """Let a device stay at a version."""
    device, model, reason = form.text("device"), form.text("model"), form.text("reason")
    said = {name: form.text(name) for name in ("device", "model", "version", "reason")}
    try:
        version = form.number("version")
        problem = (
            ""
            if device and model and version and reason
            else ("Nothing was done: say which device, which model, which version, and why.")
        )
        if not problem:
            pin(store, device, model, version, actor=actor, reason=reason)
            return done(PINS, f"{device} stays at version {version} of {model}.")
        status = 422
    except UmbelError as exc:
        found = status_of_error(exc)
        if found is None:
            raise
        problem, status = str(exc), found
    return _pins(request, store, problem=problem, said=said, status=status)


@router.get(PINS + "/{name}/{device}/end", dependencies=_WRITE)
def ask_unpin(request: Request, store: StoreOf, name: Named, device: Named) -> Response:
    """Ask before a device has what the others get again."""
    return confirm.ask(request, _unpin_deed(name, device))


@router.post(PINS + "/{name}/{device}/end", dependencies=_WRITE)
def unpin(
    request: Request, store: StoreOf, actor: ActorOf, name: Named, device: Named, form: FormOf
) -> Response:
    """Let a device have what the others get again."""
    if (refused := confirm.refusal(request, _unpin_deed(name, device), form)) is not None:
        return refused
    pin(store, device, name, None, actor=actor, reason=form.text(confirm.REASON))
    return done(PINS, f"{device} gets the version of {name} that the others get.")


def released_models(store: Store) -> list[str]:
    """Return the models that have a released version, by name."""
    return sorted({each.model for each in store.releases.all()})


def holds_seen(store: Store) -> list[tuple[str, int | None, int]]:
    """Return each released model with the version that it is held at, if it is, and its newest."""
    newest: dict[str, int] = {}
    for each in store.releases.all():
        newest[each.model] = max(newest.get(each.model, 0), each.version)
    held = store.rollouts.baselines()
    return [(name, held.get(ModelName(name)), version) for name, version in sorted(newest.items())]


def _cells(row: RolloutRow) -> Sequence[object]:
    rollout, reach = row.rollout, row.reach
    return (
        rollout.id,
        rollout.model,
        rollout.from_version,
        rollout.to_version,
        rollout.status,
        "" if row.step is None else row.step.name,
        getattr(rollout.state, "since_s", None),
        *((None, None, None) if reach is None else (reach.offered, reach.running, reach.failed)),
        getattr(rollout.state, "reason", ""),
        rollout.created_s,
    )


def _hold_deed(store: Store, name: str, what: str) -> Deed:
    found = next((each for each in holds_seen(store) if each[0] == name), None)
    if found is None:
        raise missing(f"released version of {name}")
    _, held, newest = found
    if what == "hold":
        says = f"Devices keep getting version {held or newest} of {name}; a newer one reaches only those that a rollout reaches."
        return Deed(f"Hold {name} back", "Hold back", "", None, (says,), HOLDS)
    touched = store.progress.eligible() if held is not None and held < newest else 0
    says = (
        f"Version {newest} of {name}, its newest, reaches every device that is not pinned as soon as it asks."
    )
    return Deed(f"Let {name} go", "Let it go", name, touched, (says,), HOLDS)


def _unpin_deed(name: str, device: str) -> Deed:
    says = f"{device} gets the version of {name} that the others get, as soon as it asks."
    return Deed(f"Unpin {device}", "Unpin", "", 1, (says,), PINS)


def _pins(
    request: Request,
    store: Store,
    *,
    model: str = "",
    cursor: str = "",
    problem: str = "",
    said: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    of_model, _, device = cursor.partition("/")
    rows = store.progress.pins(limit=ROWS + 1, model=model, after=(of_model, device))
    last = rows[ROWS - 1] if len(rows) > ROWS else None
    return page(
        request,
        "pins.html",
        title="Rollouts",
        status=status,  # type: ignore[arg-type]
        tab="pins",
        rows=rows[:ROWS],
        next=None if last is None else f"{last.model}/{last.device}",
        total=sum(store.progress.pinned(released_models(store)).values()),
        model=model,
        models=released_models(store),
        problem=problem,
        said=said or {"device": "", "model": model, "version": "", "reason": ""},
    )


def _all_pins(store: Store, model: str) -> Iterator[Sequence[object]]:
    after = ("", "")
    while some := store.progress.pins(limit=1000, model=model, after=after):
        yield from map(_pin_cells, some)
        after = (some[-1].model, some[-1].device)


def _pin_cells(each: Pin) -> Sequence[object]:
    return each.model, each.device, each.version, each.has
