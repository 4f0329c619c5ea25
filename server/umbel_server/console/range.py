"""The stretch of time that a screen shows, and how often it looks again: both from the URL."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Query, Request

from umbel_server.api.problems import Problem
from umbel_server.api.service import service_of

RANGES = {"15m": 900.0, "1h": 3600.0, "24h": 86400.0, "7d": 7 * 86400.0, "30d": 30 * 86400.0}
DEFAULT = "24h"
REFRESHES = {"off": 0, "5s": 5, "30s": 30, "1m": 60}


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time.

    Args:
        name: One of ``RANGES``, or ``absolute``.
        since_s: Its begin, Unix seconds.
        until_s: Its end.
    """

    name: str
    since_s: float
    until_s: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.until_s - self.since_s

    @property
    def days(self) -> int:
        """How many days it touches, at least one: of what is kept by day."""
        return max(1, -int(-self.seconds // 86400))

    @property
    def words(self) -> str:
        """What it is called on a screen."""
        if self.name != "absolute":
            return f"the last {self.name}"
        begin, end = (datetime.datetime.fromtimestamp(s, datetime.UTC) for s in (self.since_s, self.until_s))
        return f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"


async def window_of(
    request: Request,
    chosen: Annotated[str, Query(alias="range", max_length=16)] = DEFAULT,
    begin: Annotated[str, Query(alias="from", max_length=40)] = "",
    end: Annotated[str, Query(alias="to", max_length=40)] = "",
) -> Window:
    """Return the stretch of time that a URL asks for: ``range=7d``, or ``from=`` and ``to=`` in ISO 8601, UTC.

    Raises:
        Problem: It asks for none that there is.
    """
    now_s = service_of(request).store.clock()
    if begin or end:
        since_s, until_s = _moment(begin or "1970-01-01"), _moment(end) if end else now_s
        if not since_s < until_s:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY, "The range ends before it begins: swap from and to."
            )
        return Window("absolute", since_s, until_s)
    if chosen not in RANGES:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"There is no such range: choose of {', '.join(RANGES)}."
        )
    return Window(chosen, now_s - RANGES[chosen], now_s)


def refresh_of(request: Request) -> str:
    """Return how often a screen looks again, one of ``REFRESHES``; by itself it is told when something changed."""
    asked = request.query_params.get("refresh", "")
    return asked if asked in REFRESHES else ""


def _moment(text: str) -> float:
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "The range is no time: write it as 2030-01-31T12:00."
        ) from None


WindowOf = Annotated[Window, Depends(window_of)]
