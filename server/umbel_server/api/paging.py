"""Lists in pages: a cursor names the last item seen, so that no insert repeats or skips one."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from umbel_server.api.problems import Problem
from umbel_server.api.texts import NAME

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
_T = TypeVar("_T")
_U = TypeVar("_U")

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="At most so many items.")]
Cursor = Annotated[
    str | None, Query(max_length=400, description="Go on after this: `next` of the page before.")
]
AfterName = Annotated[str, Query(alias="after", pattern=f"{NAME}|^$", description="Those after this name.")]


class Page(BaseModel, Generic[_T]):
    """A part of a list."""

    items: list[_T]
    next: str | None = Field(description="The cursor of the next page; null: this is the last.")


def page_of(
    items: Sequence[_U], limit: int, *, key: Callable[[_U], str], show: Callable[[_U], _T]
) -> Page[_T]:
    """Return a page.

    Args:
        items: One more than ``limit``, if there are as many.
        limit: How many the page has at most.
        key: What an item is found again by.
        show: Turns an item into what the page shows.
    """
    shown = items[:limit]
    more = len(items) > limit
    return Page(items=[show(item) for item in shown], next=_cursor(key(shown[-1])) if more else None)


def after(cursor: str | None) -> str | None:
    """Return what a cursor names; None: the beginning.

    Raises:
        Problem: It is no cursor.
    """
    if cursor is None:
        return None
    try:
        key = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error):
        key = "\0"
    if "\0" in key:
        raise no_cursor()
    return key


def after_number(cursor: str | None) -> int | None:
    """Return the number that a cursor names; None: the beginning.

    Raises:
        Problem: It is no cursor.
    """
    key = after(cursor)
    if key is None:
        return None
    if not (key.isascii() and key.isdecimal() and len(key) < 19):
        raise no_cursor()
    return int(key)


def _cursor(key: str) -> str:
    return base64.b64encode(key.encode(), b"-_").decode()


def no_cursor() -> Problem:
    """Return what is said of a cursor that is none."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "The cursor is not one: take `next` of the page before.")
