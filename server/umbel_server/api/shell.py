"""Around every request: an id for the log, headers, and no failure of ours that reaches a caller as more than that."""

from __future__ import annotations

import logging
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from umbel_server.api.problems import answer

log = logging.getLogger(__name__)

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"strict-transport-security", b"max-age=31536000"),
)


class Shell:
    """The outermost layer of the API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
                message["headers"] = [*message["headers"], *_HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            # The path's form and not the path: it may carry what somebody typed.
            log.exception("request %s failed: %s", request_id, scope["method"])
            if not began:
                response = answer(500, f"The service failed: its log says why, under {request_id}.")
                await response(scope, receive, sending)
