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
from starlette.concurrency import run_in_threadpool

from umbel_server.api import cookies
from umbel_server.api.problems import Problem
from umbel_server.api.service import service_of
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.pulse import LOOK_S, Pulse
from umbel_server.console.session import SessionOf

router = APIRouter(route_class=ScreenRoute)

LEAST_S = 6.0
"""No screen is told more often."""
BEAT_S = 15.0
"""So often something is sent, that a broken line is noticed."""
LIFE_S = 600.0
"""Then the browser comes back, and its session is looked at again."""


@router.get("/live", dependencies=[may(None)])
async def live(
    request: Request,
    session: SessionOf,
    about: Annotated[str, Query(max_length=40)],
    seen: Annotated[str, Query(max_length=16)] = "",
) -> Response:
    """Say `changed` whenever a topic looks different from when the screen was made."""
    pulse = cast(Pulse, request.app.state.pulse)
    user = session.account.name
    if pulse.full(user):
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "Too many screens are open: this one asks by itself.")
    store, secret = service_of(request).store, request.cookies.get(cookies.SESSION, "")

    async def signed_in() -> bool:
        return await run_in_threadpool(lambda: store.sessions.find(secret, busy=False)) is not None

    return StreamingResponse(_events(pulse, user, about, seen, signed_in), media_type="text/event-stream")


async def _events(
    pulse: Pulse, user: str, about: str, seen: str, signed_in: Callable[[], Awaitable[bool]]
) -> AsyncIterator[str]:
    with pulse.stream(user) as room:
        if room:  # Others may have come since it was looked whether there is some.
            async for each in _told(pulse, about, seen, signed_in):
                yield each


async def _told(
    pulse: Pulse, about: str, seen: str, signed_in: Callable[[], Awaitable[bool]]
) -> AsyncIterator[str]:
    clock = asyncio.get_running_loop().time
    begin_s = beat_s = clock()
    told_s = begin_s - LEAST_S
    # What changed between the making of the screen and this is told at once.
    before = seen or await run_in_threadpool(pulse.sign, about)
    yield "retry: 5000\n\n"
    while not pulse.over and clock() - begin_s < LIFE_S:
        await asyncio.sleep(LOOK_S / 4)
        now_s = clock()
        if now_s - told_s >= LEAST_S:
            after = await run_in_threadpool(pulse.sign, about)
            if after != before:
                before, told_s, beat_s = after, now_s, now_s
                yield "event: changed\ndata:\n\n"
        if now_s - beat_s >= BEAT_S:
            beat_s = now_s
            if not await signed_in():
                return
            yield ":\n\n"
