"""The gate in front of Flower's SuperLink: who may ask it what, and one request at a time.

Source: docs/adr/0003-two-listeners.md
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from umbel_server.shut_out import NODE_KEY_HEADER

CONTROL_HEADER = "x-umbel-control"
MAX_BODY_BYTES = 64 << 20
"""Flower cuts arrays into chunks of 5 MiB; nothing it sends comes near."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """ASGI middleware in front of the SuperLink's own application.

    The Fleet API passes: its calls are signed by node keys; but not those of devices that are shut out. Only on the listener for operators,
    which is on loopback, the Runtime API passes too (SuperExec's secret, task tokens) and the
    Control API asks for a secret. Everything else, such as Flower's API pages, is not found.

    Requests are let in one at a time, each with its body read and its answer kept until it is
    done. Flower would serve them side by side in threads that then wait for SQLite's one write
    lock in naps of up to 100 ms, and for each other at the interpreter's: a phase with eight
    devices takes 1.1 s so, and 1.7 s without (two cores).

    Args:
        app: The application.
        turn: Held by the one request that is inside; shared by both listeners.
        secret: What the Control API asks for; None: the listener for devices.
        shut_out: Tells by a request's node key whether its device is shut out of the fleet.
    """

    def __init__(
        self,
        app: AsgiApp,
        turn: asyncio.Lock,
        secret: bytes | None,
        shut_out: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self._shut_out = shut_out
        self._app = app
        self._turn = turn
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = self._status(scope)
        if status != 200:
            await _refuse(status, send)
        elif scope["path"].startswith("/v1/control/"):
            await self._app(scope, receive, send)  # Some of these stream; none is frequent.
        else:
            await self._in_turn(scope, receive, send)

    async def _in_turn(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            await _refuse(413, send)
            return
        answer: list[Any] = []
        whole = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Any:
            return whole

        async def keep(message: Any) -> None:
            answer.append(message)

        async with self._turn:
            await self._app(scope, replay, keep)
        for message in answer:
            await send(message)

    def _status(self, scope: Scope) -> int:
        path = str(scope["path"])
        if path.startswith("/v1/fleet/"):
            key = dict(scope["headers"]).get(NODE_KEY_HEADER, b"")
            return 403 if self._shut_out(bytes(key)) else 200
        if path == "/health":
            return 200
        if self._secret is None:
            return 404
        if path.startswith("/v1/runtime/"):
            return 200
        if path.startswith("/v1/control/"):
            given = dict(scope["headers"]).get(CONTROL_HEADER.encode(), b"")
            return 200 if hmac.compare_digest(bytes(given), self._secret) else 401
        return 404


async def _read(receive: Receive) -> bytes | None:
    """Return a request's body; None if it is larger than any of Flower's."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


async def _refuse(status: int, send: Send) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})
