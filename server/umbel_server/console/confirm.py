"""Before something is done that is hard to undo: its name typed, a reason, and how many devices it touches."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Request, Response

from umbel_server.console.form import Form
from umbel_server.console.page import page

TYPED, REASON = "typed", "reason"


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that is hard to undo.

    Args:
        title: What it is, as a title: ``Revoke device cam-7``.
        button: What the button says: ``Revoke``.
        name: What has to be typed: the object's name; empty: nothing.
        devices: How many devices it touches; None: none, it is about something else.
        says: What happens then, a sentence each.
        back: The path that leads away from it.
        carries: Fields that the form brings along: the state that the page was made from, for one.
        action: The path that the form goes to; empty: where the page is.
    """

    title: str
    button: str
    name: str
    devices: int | None
    says: tuple[str, ...]
    back: str
    carries: tuple[tuple[str, str], ...] = ()
    action: str = ""


def ask(
    request: Request, deed: Deed, *, problem: str = "", status: HTTPStatus = HTTPStatus.OK, reason: str = ""
) -> Response:
    """Return the page that asks; its form goes to the path it is at.

    Args:
        request: Who asks.
        deed: What would be done.
        problem: Why it was not done just now.
        status: The HTTP status.
        reason: What they gave as reason already.
    """
    return page(
        request, "confirm.html", title=deed.title, status=status, deed=deed, problem=problem, reason=reason
    )


def refusal(request: Request, deed: Deed, form: Form) -> Response | None:
    """Return the page again where a form confirms nothing, with what is missing; None: do it."""
    reason = form.text(REASON)
    if deed.name and form.text(TYPED) != deed.name:
        problem = f"Nothing was done: type {deed.name} to confirm."
    elif not reason:
        problem = "Nothing was done: give a reason, for the audit log."
    else:
        return None
    return ask(request, deed, problem=problem, status=HTTPStatus.UNPROCESSABLE_ENTITY, reason=reason)


def conflict(request: Request, deed: Deed, form: Form, problem: str) -> Response:
    """Return the page again where somebody else was faster, with the reason that was given kept."""
    return ask(request, deed, problem=problem, status=HTTPStatus.CONFLICT, reason=form.text(REASON))
