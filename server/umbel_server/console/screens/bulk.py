"""The same for many devices at once: shown first, with how many they are, and done one by one.

What is asked for is all in the address of the page that shows it, so that one can be led back to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from umbel_proto.errors import UmbelError, UsageError
from umbel_proto.ids import DeviceId, check_name
from umbel_server.access.actor import Actor
from umbel_server.access.permissions import Permission
from umbel_server.api.service import StoreOf
from umbel_server.console.confirm import Deed, ask, conflict, refusal
from umbel_server.console.form import FORM_TYPE, Form, FormOf
from umbel_server.console.guard import MAX_NEXT, ScreenRoute, may, safe
from umbel_server.console.page import done
from umbel_server.console.screens.devices import every_device, named
from umbel_server.store.store import Store
from umbel_server.store.wanted import Status, Wanted

router = APIRouter(route_class=ScreenRoute)
MOST = 1000
"""So many at a time: each is a change of its own, with its entry in the audit log."""
_PAGE = "/bulk/devices/do"
_STATUSES: tuple[Status, ...] = ("online", "stale", "offline", "never seen", "quarantined", "revoked")
_FILTERS = ("q", "status", "tag", "model", "version", "group")


@dataclass(frozen=True, slots=True)
class Action:
    """What is done to each device.

    Args:
        title: What it is, of ``N devices``.
        button: What the button says.
        typed: Whether how many they are has to be typed.
        says: What happens.
        do: Does it to one.
    """

    title: str
    button: str
    typed: bool
    says: str
    do: Callable[[Store, DeviceId, Actor, str, str], None]


def _tag(store: Store, device: DeviceId, actor: Actor, reason: str, tag: str) -> None:
    tags = set(store.placed.of([device])[device].tags)
    if tag not in tags:
        store.placements.tag(device, tags | {tag}, actor=actor, reason=reason)


def _untag(store: Store, device: DeviceId, actor: Actor, reason: str, tag: str) -> None:
    tags = set(store.placed.of([device])[device].tags)
    if tag in tags:
        store.placements.tag(device, tags - {tag}, actor=actor, reason=reason)


def _quarantine(store: Store, device: DeviceId, actor: Actor, reason: str, _: str) -> None:
    store.devices.quarantine(device, actor=actor, reason=reason)


def _release(store: Store, device: DeviceId, actor: Actor, reason: str, _: str) -> None:
    store.devices.release(device, actor=actor, reason=reason)


def _revoke(store: Store, device: DeviceId, actor: Actor, reason: str, _: str) -> None:
    store.devices.revoke(device, actor=actor, reason=reason)


ACTIONS = {
    "tag": Action(
        "Tag", "Add the tag", False, "Each gets the tag {tag} beside those it has; what it reports from now on counts to that cohort too.", _tag
    ),
    "untag": Action(
        "Untag", "Take the tag away", False, "Each loses the tag {tag}; what was summed for that cohort stays.", _untag
    ),
    "quarantine": Action(
        "Quarantine",
        "Quarantine",
        True,
        "Nothing they send counts, and they take no part in rounds. They may renew, and fetch releases.",
        _quarantine,
    ),
    "release": Action(
        "End the quarantine of", "End the quarantine", False, "What they send counts again from now on; what they sent meanwhile stays apart.", _release
    ),
    "revoke": Action(
        "Revoke", "Revoke", True, "Every further call of theirs is refused, for good: a name that is revoked is never given out again.", _revoke
    ),
}  # fmt: skip


@router.post("/bulk/devices", dependencies=[may(Permission.DEVICES_WRITE)])
def choose_devices(form: FormOf) -> Response:
    """Lead to the page that shows what would be done to which devices."""
    names = ("action", "tag", "there", *(f"filter-{each}" for each in _FILTERS))
    told = [(name, form.text(name)) for name in names]
    told += [("all", "1")] if form.ticked("all") else [("device", each) for each in form.all("device")]
    query = urlencode([(name, value) for name, value in told if value])
    if len(query) > MAX_NEXT:
        raise UsageError(
            "Too many devices are ticked, so nothing was done: tick fewer, or all that a filter finds."
        )
    return RedirectResponse(f"{_PAGE}?{query}", HTTPStatus.SEE_OTHER)


@router.get(_PAGE, dependencies=[may(Permission.DEVICES_WRITE)])
def ask_devices(request: Request, store: StoreOf) -> Response:
    """Show what would be done to which devices; nothing is done yet."""
    asked = _asked(request)
    return ask(request, _deed(request, asked, _chosen(store, asked)))


@router.post(_PAGE, dependencies=[may(Permission.DEVICES_WRITE)])
def do_devices(request: Request, store: StoreOf, form: FormOf) -> Response:
    """Do it, to each by itself: what one device refuses holds up no other."""
    asked = _asked(request)
    chosen = _chosen(store, asked)
    deed = _deed(request, asked, chosen)
    if form.text("count") != str(len(chosen)):
        return conflict(
            request,
            deed,
            form,
            f"Nothing was done: {form.text('count')} devices were so when you looked, and {len(chosen)} are now. Look again.",
        )
    again = refusal(request, deed, form)
    if again is not None:
        return again
    actor: Actor = request.state.session.account.actor
    action, reason, tag = ACTIONS[asked.text("action")], form.text("reason"), asked.text("tag")
    refused: list[str] = []
    for device in chosen:
        try:
            action.do(store, device, actor, reason, tag)
        except UmbelError as exc:
            refused.append(str(exc))
    word = f"{action.title}: {len(chosen) - len(refused)} of {len(chosen)} devices done."
    return done(deed.back, word + (f" {len(refused)} refused; the first: {refused[0]}" if refused else ""))


def _asked(request: Request) -> Form:
    """Return what is asked for, as the address tells it."""
    return Form.read(FORM_TYPE, request.scope["query_string"])


def _chosen(store: Store, form: Form) -> list[DeviceId]:
    if form.ticked("all"):
        chosen = [device.id for device in islice(every_device(store, _wanted(form)), MOST + 1)]
    else:
        chosen = named([check_name(name, "device") for name in form.all("device")])
    if not chosen:
        raise UsageError("No device is ticked, so nothing was done: tick some, or all that the filter finds.")
    if len(chosen) > MOST:
        raise UsageError(
            f"These are more than {MOST} devices, as many as may be done at once, so nothing was done: filter for fewer."
        )
    return chosen


def _wanted(form: Form) -> Wanted:
    told = {name: form.text(f"filter-{name}", most=63) or None for name in _FILTERS}
    version = form.number("filter-version")
    status = next((each for each in _STATUSES if each == told["status"]), None)
    return Wanted(
        status=status,
        tag=told["tag"],
        model=told["model"],
        version=version,
        begins=told["q"],
        group=told["group"],
    )


def _deed(request: Request, form: Form, chosen: list[DeviceId]) -> Deed:
    name, tag = form.text("action", most=20), form.text("tag", most=63)
    action = ACTIONS.get(name)
    if action is None:
        raise UsageError(f"There is no such action, so nothing was done: choose of {', '.join(ACTIONS)}.")
    if name in ("tag", "untag"):
        check_name(tag, "tag")
    count = len(chosen)
    first = ", ".join(chosen[:10])
    return Deed(
        f"{action.title} {count} {'device' if count == 1 else 'devices'}",
        action.button,
        str(count) if action.typed else "",
        count,
        (action.says.format(tag=tag), f"They are {first}{f' and {count - 10} more' if count > 10 else ''}."),
        safe(form.text("there") or "/devices"),
        (("count", str(count)),),
        action=f"{_PAGE}?{request.url.query}",
    )
