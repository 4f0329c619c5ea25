"""What went wrong, as a page: one sentence, and where to go."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from umbel_proto.errors import UmbelError
from umbel_server.access.permissions import HELD
from umbel_server.api.problems import Problem, status_of_error
from umbel_server.console.guard import NotAllowed, came_from
from umbel_server.console.page import page

_SENTENCES = {
    404: "There is no such page: choose one from the menu.",
    405: "This is not done here: go back, and use the page's own buttons.",
}


def install(app: FastAPI) -> None:
    """Let an app answer every error with a page."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UmbelError, _refused)


def error_page(request: Request, status: HTTPStatus, sentence: str, roles: tuple[str, ...] = ()) -> Response:
    """Return the page of an error.

    Args:
        request: What led to it.
        status: The HTTP status.
        sentence: What is wrong, and what to do next.
        roles: Who may do it, where that is the trouble.
    """
    return page(
        request,
        "error.html",
        title="Not allowed" if roles else status.phrase,
        status=status,
        sentence=sentence,
        roles=roles,
        back=came_from(request),
    )


def _http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    status = HTTPStatus(exc.status_code)
    if isinstance(exc, NotAllowed):
        roles = tuple(sorted(role for role, may in HELD.items() if exc.permission in may))
        return error_page(request, status, exc.detail, roles)
    detail = exc.detail if isinstance(exc, Problem) else _SENTENCES.get(status, f"{exc.detail}.")
    answer = error_page(request, status, detail)
    answer.headers.update(exc.headers or {})
    return answer


def _invalid(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    # Where and which rule; never the value, which may be what somebody else wrote into a link.
    error = exc.errors()[0]
    where = ".".join(str(part) for part in error["loc"][1:])
    return error_page(
        request, HTTPStatus.UNPROCESSABLE_ENTITY, f"{where} of the address: {error['msg']}. Correct the link."
    )


def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, UmbelError)
    status = status_of_error(exc)
    if status is None:
        raise exc
    return error_page(request, status, str(exc))
