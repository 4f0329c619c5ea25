"""Around every request: an id for the log, headers, and no failure of ours that reaches a caller as more than that."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from umbel_server.api.problems import answer

log = logging.getLogger(__name__)

Headers = tuple[tuple[bytes, bytes], ...]
HEADERS: Headers = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"strict-transport-security", b"max-age=31536000"),
)


def _problem(sentence: str) -> Response:
    return answer(500, sentence)


class Shell:
    """The outermost layer of an app.

    Args:
        app: The app.
        headers: What every answer carries that says nothing else under that name.
        failed: Makes the answer to a request on which the app failed, of a sentence.
    """

    def __init__(
        self, app: ASGIApp, headers: Headers = HEADERS, failed: Callable[[str], Response] = _problem
    ) -> None:
        self._app = app
        self._headers = headers
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        began = False

        async def sending(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                there = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(each for each in self._headers if each[0] not in there),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            # The path's form and not the path: it may carry what somebody typed.
            log.exception("request %s failed: %s", request_id, scope["method"])
            if not began:
                response = self._failed(f"The service failed: its log says why, under {request_id}.")
                await response(scope, receive, sending)
