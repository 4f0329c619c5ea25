"""Telling open screens that something they show has changed: server-sent events, one stream for each visible tab.

Nothing of what changed goes along: the screen asks for itself again, through its own door.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection, func, select
from starlette.concurrency import run_in_threadpool

from umbel_server.api import cookies
from umbel_server.api.problems import Problem
from umbel_server.api.service import service_of
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.store.store import Store
from umbel_server.store.tables import batches, rounds
from umbel_server.store.tables_audit import audit
from umbel_server.store.tables_rollouts import rollout_events

router = APIRouter(route_class=ScreenRoute)

LOOK_S = 2.0
"""How often the store is looked at, however many screens are open."""
LEAST_S = 6.0
"""No screen is told more often."""
BEAT_S = 15.0
"""So often something is sent, that a broken line is noticed; and so often who is online is another matter."""
LIFE_S = 600.0
"""Then the browser comes back, and its session is looked at again."""
MAX_STREAMS = 200
"""With more, a screen asks every half minute instead."""

_TELEMETRY = ("telemetry",)
ABOUT: dict[str, tuple[str, ...]] = {
    "overview": ("telemetry", "rounds", "rollouts", "time"),
    "devices": ("time",),
    "models": (),
    "approvals": _TELEMETRY,
    "audit": (),
    "runs": ("rounds",),
    "rollouts": ("rollouts", "telemetry"),
    "experiments": ("rollouts", "telemetry"),
    "drift": _TELEMETRY,
    "performance": _TELEMETRY,
    "fairness": _TELEMETRY,
    "energy": _TELEMETRY,
    "alerts": ("telemetry", "time"),
    "health": ("telemetry", "time"),
}
"""What a screen's topic looks at beside the audit log, in which every change by a person is."""


class Pulse:
    """What the store looks like from afar: short texts, another as soon as something changed.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = asyncio.Lock()
        self._seen: tuple[float, dict[str, str]] = (-LOOK_S, {})
        self.streams = 0
        self.over = False

    def stop(self) -> None:
        """End every stream, within a moment: the service stops."""
        self.over = True

    async def signs(self) -> dict[str, str]:
        """Return what each part looks like now, or did a moment ago."""
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._seen[0] >= LOOK_S:
                self._seen = (now_s, await run_in_threadpool(self.look))
            return self._seen[1]

    def look(self) -> dict[str, str]:
        """Return what each part looks like now."""
        with self._store.database.read() as connection:
            found = {name: repr(sign(connection)) for name, sign in _SIGNS.items()}
        return found | {"time": str(int(self._store.clock() // BEAT_S))}


def sign_of(signs: dict[str, str], about: str) -> tuple[str, ...]:
    """Return what a topic looks like: all there is, where nobody said what it looks at."""
    return tuple(signs[name] for name in ("audit", *ABOUT.get(about, tuple(signs))))


@router.get("/live", dependencies=[may(None)])
async def live(request: Request, about: Annotated[str, Query(max_length=40)]) -> Response:
    """Say `changed` whenever a topic has changed."""
    pulse = cast(Pulse, request.app.state.pulse)
    if pulse.streams >= MAX_STREAMS:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "Too many screens are open: this one asks by itself.")
    store, secret = service_of(request).store, request.cookies.get(cookies.SESSION, "")

    async def signed_in() -> bool:
        return await run_in_threadpool(lambda: store.sessions.find(secret, busy=False)) is not None

    return StreamingResponse(_events(pulse, about, signed_in), media_type="text/event-stream")


async def _events(pulse: Pulse, about: str, signed_in: Callable[[], Awaitable[bool]]) -> AsyncIterator[str]:
    clock = asyncio.get_running_loop().time
    begin_s = beat_s = clock()
    told_s = begin_s - LEAST_S
    before = sign_of(await pulse.signs(), about)
    pulse.streams += 1
    try:
        yield "retry: 5000\n\n"
        while not pulse.over and clock() - begin_s < LIFE_S:
            await asyncio.sleep(LOOK_S / 4)
            now_s = clock()
            if now_s - told_s >= LEAST_S:
                after = sign_of(await pulse.signs(), about)
                if after != before:
                    before, told_s, beat_s = after, now_s, now_s
                    yield "event: changed\ndata:\n\n"
            if now_s - beat_s >= BEAT_S:
                beat_s = now_s
                if not await signed_in():
                    return
                yield ":\n\n"
    finally:
        pulse.streams -= 1


def _audit(connection: Connection) -> object:
    return connection.execute(select(func.max(audit.c.sequence))).scalar_one()


def _telemetry(connection: Connection) -> object:
    newest = connection.execute(select(func.max(batches.c.id))).scalar_one()
    waiting = connection.execute(select(func.min(batches.c.id)).where(batches.c.state == "sealed"))
    return newest, waiting.scalar_one()


def _rounds(connection: Connection) -> object:
    ended = select(func.count(), func.max(rounds.c.finished_s))
    running = select(rounds.c.run_id, rounds.c.round, rounds.c.attempt, rounds.c.phase)
    return (
        connection.execute(ended).one(),
        connection.execute(running.where(rounds.c.state == "running").limit(20)).all(),
    )


def _rollouts(connection: Connection) -> object:
    return connection.execute(select(func.count(), func.max(rollout_events.c.at_s))).one()


_SIGNS: dict[str, Callable[[Connection], object]] = {
    "audit": _audit,
    "telemetry": _telemetry,
    "rounds": _rounds,
    "rollouts": _rollouts,
}
