"""Letting devices in: who waits for a word, and the tokens that invite others."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from umbel_proto.errors import UsageError
from umbel_server.access.permissions import Permission
from umbel_server.api.problems import missing
from umbel_server.api.service import ServiceOf, StoreOf
from umbel_server.console.confirm import Deed, ask, refusal
from umbel_server.console.export import export
from umbel_server.console.form import FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.session import ActorOf
from umbel_server.fleet.invite import invite
from umbel_server.rollouts.classes import class_of
from umbel_server.store.applications import Pending
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)
Waiting = Annotated[str, Path(pattern=r"^[0-9a-f]{1,16}$")]
SHOWN = 200
MOST_HOURS = 8760.0


@router.get("/enrollment", dependencies=[may(Permission.ENROLLMENT_READ)])
def enrollment(request: Request, store: StoreOf) -> Response:
    """Show who waits for approval, the longest first."""
    waiting = store.applications.pending()
    file = export(
        request,
        "waiting",
        ("id", "name", "fingerprint", "class", "asked_s", "expires_s"),
        ((w.id, w.name, w.fingerprint, class_of(w.facts), w.asked_s, w.expires_s) for w in waiting),
    )
    if file is not None:
        return file
    shown = [(each, class_of(each.facts)) for each in waiting[:SHOWN]]
    return page(request, "enrollment.html", live="enrollment", waiting=shown, count=len(waiting))


@router.get("/enrollment/invite", dependencies=[may(Permission.ENROLLMENT_WRITE)])
def ask_invitation(request: Request) -> Response:
    """Ask whom a token is to let in."""
    return page(request, "invite.html", title="Invite a device", token="", expires_s=None)


@router.post("/enrollment/invite", dependencies=[may(Permission.ENROLLMENT_WRITE)])
def make_invitation(request: Request, service: ServiceOf, actor: ActorOf, form: FormOf) -> Response:
    """Make a token, and show it: this once."""
    valid_s = _hours(form.text("hours", most=10)) * 3600
    token = invite(
        service.fleet,
        service.store,
        device=form.text("device", most=63) or None,
        uses=form.number("uses") or 1,
        valid_s=valid_s,
        approval=form.ticked("approval"),
        replaces=form.ticked("replaces"),
        actor=actor,
    )
    expires_s = service.store.clock() + valid_s
    return page(request, "invite.html", title="Invite a device", token=token.to_text(), expires_s=expires_s)


@router.get("/enrollment/{id}/approve", dependencies=[may(Permission.ENROLLMENT_WRITE)])
def ask_approval(request: Request, store: StoreOf, id: Waiting) -> Response:  # noqa: A002
    """Ask whether the device is the one that it should be."""
    return _approval(request, _waits(store, id))


@router.post("/enrollment/{id}/approve", dependencies=[may(Permission.ENROLLMENT_WRITE)])
def approve(request: Request, store: StoreOf, actor: ActorOf, id: Waiting, form: FormOf) -> Response:  # noqa: A002
    """Let a device in, if the fingerprint is the one that it shows."""
    waiting = _waits(store, id)
    if not form.text("fingerprint"):
        return _approval(request, waiting, "Nothing was done: type the fingerprint that the device shows.")
    store.applications.approve(
        id,
        fingerprint=form.text("fingerprint", most=200),
        actor=actor,
        reason=form.text("reason"),
        name=form.text("name", most=63),
    )
    return done(
        "/enrollment",
        f"Device {form.text('name') or waiting.name or id} may come in: it is there when it asks again.",
    )


@router.get("/enrollment/{id}/reject", dependencies=[may(Permission.ENROLLMENT_WRITE)])
def ask_rejection(request: Request, store: StoreOf, id: Waiting) -> Response:  # noqa: A002
    """Ask before a device is turned away."""
    return ask(request, _rejection(_waits(store, id)))


@router.post("/enrollment/{id}/reject", dependencies=[may(Permission.ENROLLMENT_WRITE)])
def reject(request: Request, store: StoreOf, actor: ActorOf, id: Waiting, form: FormOf) -> Response:  # noqa: A002
    """Turn a device away; it is told why."""
    deed = _rejection(_waits(store, id))
    again = refusal(request, deed, form)
    if again is not None:
        return again
    store.applications.reject(id, actor=actor, reason=form.text("reason"))
    return done("/enrollment", f"The device that waited as {id} is turned away.")


def _waits(store: Store, application: str) -> Pending:
    found = next((each for each in store.applications.pending() if each.id == application), None)
    if found is None:
        raise missing(f"device that waits as {application}: somebody decided already, or it waited too long")
    return found


def _approval(request: Request, waiting: Pending, problem: str = "") -> Response:
    name = waiting.name or waiting.id
    return page(request, "approve_device.html", title=f"Let {name} in", waiting=waiting, problem=problem)


def _rejection(waiting: Pending) -> Deed:
    name = waiting.name or waiting.id
    says = ("It is told the reason. With a new token it may ask again, with other keys.",)
    return Deed(f"Turn {name} away", "Turn away", "", 1, says, "/enrollment")


def _hours(text: str) -> float:
    try:
        hours = float(text or 24)
    except ValueError:
        hours = 0.0
    if not 0 < hours <= MOST_HOURS:
        raise UsageError(
            f"A token holds for more than 0 and at most {MOST_HOURS:,.0f} hours, so none was made."
        )
    return hours
