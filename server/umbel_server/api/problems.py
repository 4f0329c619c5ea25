"""Errors as the API tells them: RFC 9457 problem details, one sentence, never a traceback or what was sent."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from umbel_proto.errors import (
    RefusedError,
    StorageError,
    UmbelError,
    UnavailableError,
    UsageError,
    VerificationError,
)
from umbel_server.api.kinds import KINDS, kind_of, kind_of_status
from umbel_server.store.replies import OtherRequestError

MEDIA_TYPE = "application/problem+json"
RETRY_S = 5
_STATUS: tuple[tuple[type[UmbelError], HTTPStatus], ...] = (
    # The first that fits: a branch of the error tree comes before the tree.
    (OtherRequestError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UsageError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (VerificationError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (RefusedError, HTTPStatus.CONFLICT),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StorageError, HTTPStatus.SERVICE_UNAVAILABLE),
)
_SENTENCES = {
    400: "The request cannot be read: see the API's reference for what to send.",
    404: "There is nothing here: see the API's reference for what there is.",
    405: "This is not done with what is here: see the API's reference for what is.",
}

RESPONSES: dict[int | str, dict[str, object]] = {
    name: {
        "description": what,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for name, what in (("4XX", "Refused: the detail says why."), ("5XX", "Failed: try again later."))
}
SCHEMA = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "detail", "kind"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "The HTTP status in words."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "One sentence: what is wrong, and what to do next."},
        "kind": {"type": "string", "enum": list(KINDS), "description": "What the command line ends with."},
    },
}


class Problem(HTTPException):
    """A request that gets an error for an answer.

    Args:
        status: The HTTP status.
        detail: One sentence.
        headers: What the status asks for beside it.
    """

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)


def missing(what: str) -> Problem:
    """Return the problem for something that is not there."""
    return Problem(HTTPStatus.NOT_FOUND, f"There is no {what}.")


def answer(
    status: int, detail: str, headers: Mapping[str, str] | None = None, *, kind: str | None = None
) -> JSONResponse:
    """Return a problem as a response; its kind, unless it is said, is the usual one of the status."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "kind": kind or kind_of_status(status),
    }
    return JSONResponse(body, status, dict(headers or {}), MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let an app answer every error with a problem."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UmbelError, _refused)


def _http(_: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    detail = exc.detail if isinstance(exc, Problem) else _SENTENCES.get(exc.status_code, f"{exc.detail}.")
    return answer(exc.status_code, detail, exc.headers)


def _invalid(_: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    # Where and which rule; never the value, which may be a password.
    error = exc.errors()[0]
    where = ".".join(str(part) for part in error["loc"])
    return answer(HTTPStatus.UNPROCESSABLE_ENTITY, f"{where}: {error['msg']}.")


def status_of_error(exc: UmbelError) -> HTTPStatus | None:
    """Return the HTTP status that an error is told with; None: it is ours, and nobody's to mend but us."""
    return next((status for kind, status in _STATUS if isinstance(exc, kind)), None)


def _refused(_: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, UmbelError)
    status = status_of_error(exc)
    if status is None:
        raise exc
    retry = {"Retry-After": str(RETRY_S)} if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    return answer(status, str(exc), retry, kind=kind_of(exc))
