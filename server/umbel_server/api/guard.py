"""The door of every route: how much may be sent, who sends it, whether they may; nothing is read before.

A route without ``may`` cannot be made: a new one is closed until somebody says whom it is for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response, params
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive

from umbel_proto.errors import LocalProtocolError
from umbel_server.access.permissions import Permission
from umbel_server.api.once import answer_once
from umbel_server.api.problems import Problem
from umbel_server.api.service import Service, service_of
from umbel_server.store.api_tokens import Bearer, SignInError

log = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
"""Bytes of a request that uploads nothing."""
MIB = 1024 * 1024
CHANGES = ("POST", "PUT", "PATCH")
"""What may be sent with a key, so that it is done once."""
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="umbel"'}
_scheme = HTTPBearer(scheme_name="token", bearerFormat="umbel_…", auto_error=False)
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def may(permission: Permission | None) -> params.Security:
    """Return the dependency that says whom a route is for.

    Args:
        permission: Whoever has this; None: everybody who is signed in.
    """
    return params.Security(_scheme, scopes=[] if permission is None else [permission.value])


class OpenRoute(APIRoute):
    """A route that asks nobody who they are: signing in itself."""

    def max_bytes(self, _: Service) -> int:
        """Return how much may be sent to it."""
        return MAX_BODY

    def get_route_handler(self) -> _Handler:
        """Return what answers a request."""
        handle = super().get_route_handler()

        async def limited(request: Request) -> Response:
            return await handle(sized(request, self.max_bytes(service_of(request))))

        return limited


class GuardedRoute(APIRoute):
    """A route for those with a permission, and for nobody else."""

    def max_bytes(self, _: Service) -> int:
        """Return how much may be sent to it."""
        return MAX_BODY

    @property
    def permission(self) -> Permission | None:
        """What it asks for; None: nothing but to be signed in."""
        doors = [each for each in self.dependencies if isinstance(each, params.Security)]
        if len(doors) != 1:
            raise LocalProtocolError(f"The route {self.path} does not say whom it is for.")
        scopes = doors[0].scopes or []
        return Permission(scopes[0]) if scopes else None

    def get_route_handler(self) -> _Handler:
        """Return what answers a request."""
        handle, permission = super().get_route_handler(), self.permission

        async def guarded(request: Request) -> Response:
            service = service_of(request)
            bearer = await run_in_threadpool(authenticate, service, request)
            if permission is not None and permission not in bearer.permissions:
                raise Problem(
                    HTTPStatus.FORBIDDEN,
                    f"User {bearer.account.name} may not do this: it asks for {permission}.",
                )
            request.state.bearer = bearer
            limited = sized(request, self.max_bytes(service))
            if request.method in CHANGES and "idempotency-key" in request.headers:
                return await answer_once(limited, service.store.replies, bearer, handle)
            return await handle(limited)

        return guarded


class UploadRoute(GuardedRoute):
    """A guarded route that a package may be sent to."""

    def max_bytes(self, service: Service) -> int:
        """Return how much may be sent to it."""
        return service.fleet.settings.api.upload_mib * MIB


def authenticate(service: Service, request: Request) -> Bearer:
    """Return who sends a request.

    Raises:
        Problem: It shows no token, or none that is in force.
    """
    shown = request.headers.getlist("authorization")
    kind, _, token = shown[0].partition(" ") if len(shown) == 1 else ("", "", "")
    if kind.lower() != "bearer" or not token:
        raise Problem(
            HTTPStatus.UNAUTHORIZED, "This asks for a token: send  Authorization: Bearer TOKEN.", _CHALLENGE
        )
    try:
        return service.store.api_tokens.bearer(token)
    except SignInError as exc:
        raise failed(service, request, str(exc)) from None


def failed(service: Service, request: Request, sentence: str) -> Problem:
    """Count a sign-in that failed, and return what to answer: no, or to wait."""
    problem = waiting(service, request)
    service.failures.count(address_of(request))
    log.warning("a sign-in failed from %s", address_of(request))
    return problem or Problem(HTTPStatus.UNAUTHORIZED, sentence, _CHALLENGE)


def waiting(service: Service, request: Request) -> Problem | None:
    """Return what to answer who guessed too often lately; None: they may try."""
    wait_s = service.failures.wait_s(address_of(request))
    if not wait_s:
        return None
    seconds = math.ceil(wait_s)
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"Too many sign-ins failed from here: wait {seconds} s.",
        {"Retry-After": str(seconds)},
    )


def address_of(request: Request) -> str:
    """Return the address that a request comes from."""
    return request.client.host if request.client else ""


def sized(request: Request, most: int) -> Request:
    """Return a request that refuses to be read when it is longer than so many bytes."""
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdecimal() or int(declared[:20]) > most:
        raise _too_large(most)
    return Request(request.scope, _counted(request.receive, most))


def _counted(receive: Receive, most: int) -> Receive:
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise _too_large(most)
        return message

    return counted


def _too_large(most: int) -> Problem:
    return Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The request is larger than {most} bytes: send less."
    )
