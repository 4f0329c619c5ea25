"""ETags: who changes something says what they saw, so that nobody overwrites what they did not see."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import Annotated

from fastapi import Header, Response
from pydantic import BaseModel

from umbel_server.api.problems import Problem

IfMatch = Annotated[
    str | None, Header(max_length=200, description="The ETag of what you saw; without it nothing is changed.")
]


def etag_of(shown: BaseModel) -> str:
    """Return what tells two states of something apart."""
    return f'"{hashlib.sha256(shown.model_dump_json().encode()).hexdigest()[:32]}"'


def tagged(response: Response, shown: BaseModel) -> None:
    """Say in a response's header which state it shows."""
    response.headers["ETag"] = etag_of(shown)


def check_match(if_match: str | None, shown: BaseModel) -> None:
    """Check that somebody saw the state that they are about to change.

    Raises:
        Problem: They saw another, or do not say which.
    """
    if if_match is None:
        raise Problem(
            HTTPStatus.PRECONDITION_REQUIRED,
            "Send If-Match with the ETag of what you saw, so that no change is lost.",
        )
    if if_match.strip() != etag_of(shown):
        raise Problem(
            HTTPStatus.PRECONDITION_FAILED, "Somebody changed this since you saw it: look again, then decide."
        )
