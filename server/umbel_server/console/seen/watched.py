"""What the screens that watch a model have in common: which model, which time, and figures that are made once for all."""

from __future__ import annotations

import datetime
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Query, Request

from umbel_proto.errors import UmbelError
from umbel_server.api.problems import Problem
from umbel_server.api.service import service_of
from umbel_server.console.range import Window, window_of
from umbel_server.console.seen.kept import Kept
from umbel_server.console.seen.worker import WORKER
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

DAY_S = 86400
DEFAULT = "7d"
MAX_DAYS = 30
FRESH_S, OLDEST_S, WAIT_S = 60.0, 3600.0, 0.04
"""Each screen says when its figures were made."""
PATIENCE = 750
"""A page waits once and says that its figures are being made; a chart's numbers or a file wait half a minute."""

_kept: weakref.WeakKeyDictionary[Store, Kept[Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Watched:
    """A version of a model, and the days that somebody looks at.

    Args:
        models: Every model and version that reported in these days and those before, by name.
        model: The model; empty: none reported.
        version: Its version; 0: none reported.
        window: The time.
        days: How many days are compared with as many before.
    """

    models: tuple[tuple[str, int], ...]
    model: str
    version: int
    window: Window
    days: int

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What figures of it are of."""
        end = round(self.window.until_s) if self.window.name == "absolute" else None
        return self.model, self.version, self.days, end

    @property
    def query(self) -> str:
        """The part of a URL that asks for the same."""
        time = {"range": self.window.name}
        if self.window.name == "absolute":
            ends = (self.window.since_s, self.window.until_s)
            begin, end = (datetime.datetime.fromtimestamp(s, datetime.UTC).isoformat() for s in ends)
            time = {"from": begin, "to": end}
        return urlencode({"model": self.model, "version": self.version, **time})

    @property
    def until_s(self) -> float | None:
        """When the days end, Unix seconds; None: now."""
        return self.window.until_s if self.window.name == "absolute" else None


async def days_of(
    request: Request,
    name: Annotated[str, Query(alias="range", max_length=16)] = DEFAULT,
    begin: Annotated[str, Query(alias="from", max_length=40)] = "",
    end: Annotated[str, Query(alias="to", max_length=40)] = "",
) -> Window:
    """Return the time that a URL asks for; a week, unless it says otherwise.

    Raises:
        Problem: It asks for none that there is, or for more days than are shown.
    """
    window = await window_of(request, name, begin, end)
    if window.days > MAX_DAYS:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"At most {MAX_DAYS} days are shown: choose a shorter range."
        )
    return window


def watched_of(
    request: Request,
    window: Annotated[Window, Depends(days_of)],
    model: Annotated[str, Query(max_length=63)] = "",
    version: Annotated[int | None, Query(ge=1, lt=1 << 32)] = None,
) -> Watched:
    """Return which version of which model a URL asks for: by default the one that most was reported of."""
    store = service_of(request).store
    since_s = window.since_s - window.days * DAY_S
    told = store.cohorts.windows(since_s=since_s, lately_s=window.since_s - DAY_S, until_s=window.until_s)
    chosen, number = model, version
    if not model and told:
        by_model: dict[str, int] = {}
        for (name, _), windows in told.items():
            by_model[name] = by_model.get(name, 0) + windows
        chosen = max(by_model, key=lambda name: by_model[name])
    if number is None:
        versions = {each: windows for (name, each), windows in told.items() if name == chosen}
        number = max(versions, key=lambda each: (versions[each], each), default=0)
    return Watched(tuple(told), chosen, number, window, window.days)


WatchedOf = Annotated[Watched, Depends(watched_of)]


@dataclass(frozen=True, slots=True)
class Made:
    """What came of making figures.

    Args:
        value: The figures; None: they are being made, or cannot be.
        why: Why they cannot be; empty: they are being made.
    """

    value: Any
    why: str = ""


def made(
    fleet: FleetDir,
    store: Store,
    key: Hashable,
    make: Callable[..., Any],
    *asked: object,
    patient: bool = False,
) -> Made:
    """Return figures that take a while, made once a minute for all who look, in the process of ``Worker``.

    Args:
        fleet: The fleet they are of.
        store: The store they are of.
        key: What they are of.
        make: Makes them, of the fleet, the store and what is asked: see ``Worker.run``.
        asked: That.
        patient: Whether to wait until they are made.
    """
    return made_here(store, key, lambda: WORKER.run(make, fleet, store, *asked), patient=patient)


def made_here(store: Store, key: Hashable, make: Callable[[], Any], *, patient: bool = False) -> Made:
    """Return figures that are made in this process, once a minute for all who look: what takes little, or asks for others.

    Args:
        store: The store they are of.
        key: What they are of.
        make: Makes them.
        patient: Whether to wait until they are made.
    """

    def careful() -> Made:
        try:
            return Made(make())
        except UmbelError as exc:
            return Made(None, str(exc))

    kept = _kept.setdefault(store, Kept(store.clock, fresh_s=FRESH_S, oldest_s=OLDEST_S, wait_s=WAIT_S))
    found: Made | None = kept.get(key, careful)
    for _ in range(PATIENCE if patient else 0):
        if found is not None:
            break
        found = kept.get(key, careful)
    return found or Made(None)
