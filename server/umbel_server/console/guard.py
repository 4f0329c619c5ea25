"""The door of every screen: who is there, whether they may, and whether the form is one of ours.

A screen without ``may`` cannot be made: a new one is closed until somebody says whom it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import wraps
from http import HTTPStatus
from inspect import iscoroutinefunction
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import Request, Response, params
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from umbel_proto.errors import LocalProtocolError
from umbel_server.access.permissions import Permission
from umbel_server.api.guard import may as may
from umbel_server.api.guard import sized
from umbel_server.api.problems import Problem
from umbel_server.api.service import service_of
from umbel_server.console.form import CSRF, Form
from umbel_server.console.session import Session, session_of_cookie
from umbel_server.store.database import Database

MAX_FORM = 256 * 1024
"""Bytes of a form: of the largest, a thousand ticked devices."""
SIGN_IN = "/sign-in"
MAX_NEXT = 24_000
"""Characters of the address that the sign-in leads back to: of the longest, a plan in a form that was looked at."""
REFRESH = "x-umbel-refresh"
"""The header of a request that the screen made by itself."""
CSRF_HEADER = "x-umbel-csrf"
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_DATABASE: ContextVar[Database] = ContextVar("database")
"""Of the store that a request is shown."""


class ScreenRoute(APIRoute):
    """A screen, or what it does, for those with a permission and for nobody else.

    What a screen shows is of one moment; the numbers of a chart are not, which may wait long until they are made.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        shows = set(options.get("methods") or ("GET",)) == {"GET"} and not iscoroutinefunction(endpoint)
        if shows and not path.endswith(".json"):
            endpoint = _at_one_moment(endpoint)
        super().__init__(path, endpoint, **options)

    @property
    def permission(self) -> Permission | None:
        """What it asks for; None: nothing but to be signed in."""
        doors = [each for each in self.dependencies if isinstance(each, params.Security)]
        if len(doors) != 1:
            raise LocalProtocolError(f"The screen {self.path} does not say whom it is for.")
        scopes = doors[0].scopes or []
        return Permission(scopes[0]) if scopes else None

    def get_route_handler(self) -> _Handler:
        """Return what answers a request."""
        handle, permission = super().get_route_handler(), self.permission

        async def guarded(request: Request) -> Response:
            # Neither is somebody there: the screen looks again, and waits to be told to.
            waits = request.headers.get("accept", "") == "text/event-stream"
            busy = REFRESH not in request.headers and not waits
            session = await run_in_threadpool(_arrive, request, busy=busy)
            if session is None:
                return to_sign_in(request)
            request.state.session = session
            _DATABASE.set(service_of(request).store.database)
            if permission is not None and permission not in session.permissions:
                raise NotAllowed(permission)
            if request.method == "POST":
                request = sized(request, MAX_FORM)
                request.state.form = await read_form(request)
                _check_ours(request, session)
            return await handle(request)

        return guarded


class OpenScreen(APIRoute):
    """A screen that asks nobody who they are: signing in itself."""

    def get_route_handler(self) -> _Handler:
        """Return what answers a request."""
        handle = super().get_route_handler()

        async def limited(request: Request) -> Response:
            if request.method == "POST":
                request = sized(request, MAX_FORM)
                _check_site(request)
                request.state.form = await read_form(request)
            return await handle(request)

        return limited


def _at_one_moment(show: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(show)
    def shown(**values: Any) -> Any:
        with _DATABASE.get().one_moment():
            return show(**values)

    return shown


class NotAllowed(Problem):
    """Somebody is signed in, and may not do this.

    Args:
        permission: What it asks for.
    """

    def __init__(self, permission: Permission) -> None:
        super().__init__(HTTPStatus.FORBIDDEN, f"This asks for {permission}.")
        self.permission = permission


def _arrive(request: Request, *, busy: bool) -> Session | None:
    session = session_of_cookie(service_of(request).store, request, busy=busy)
    if session is not None and request.method == "GET":
        # Before the screen is made: what changes meanwhile is told to it afterwards.
        request.state.signs = request.app.state.pulse.signs()
    return session


def to_sign_in(request: Request) -> Response:
    """Return what leads somebody to the sign-in, and from there back; a change that they sent is not made."""
    if request.method == "GET":
        there = f"{SIGN_IN}?next={_next(request.url.path + _query(request.url.query))}"
    else:
        # A form that carries an address of its own is at it, and browsers say of a long one only the host.
        own = request.url.path + _query(request.url.query) if request.url.query else came_from(request)
        there = f"{SIGN_IN}?lost=1&next={_next(own)}"
    if "hx-request" in request.headers:
        # What htmx fetched would land in the middle of a page: let the whole page go there.
        back = _next(came_from(request)) if request.method == "GET" else ""
        return Response(
            status_code=HTTPStatus.UNAUTHORIZED,
            headers={"HX-Redirect": f"{SIGN_IN}?next={back}" if back else there},
        )
    return Response(status_code=HTTPStatus.SEE_OTHER, headers={"Location": there})


def _next(path: str) -> str:
    """Return the address to lead back to, as a parameter; of one that is too long, the page alone."""
    return quote(path if len(path) <= MAX_NEXT else path.partition("?")[0])


def came_from(request: Request) -> str:
    """Return the path of the page that a request came from, if it is one of ours; else the first page."""
    parts = urlsplit(request.headers.get("hx-current-url") or request.headers.get("referer", ""))
    return safe(parts.path + _query(parts.query)) if parts.netloc == request.url.netloc else "/"


def safe(there: str) -> str:
    """Return a path of the console, whatever a link says: one that begins with two slashes is another host's address."""
    fine = there.startswith("/") and there[1:2] not in ("/", "\\") and there.isprintable()
    return there if fine else "/"


async def read_form(request: Request) -> Form:
    """Return what somebody sent with a form."""
    return Form.read(request.headers.get("content-type", ""), await request.body())


def _query(query: str) -> str:
    return f"?{query}" if query else ""


def _check_ours(request: Request, session: Session) -> None:
    _check_site(request)
    shown = request.headers.get(CSRF_HEADER) or request.state.form.secret(CSRF)
    if not session.owns(shown):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "The form is of another session, so nothing was done: open the page again and repeat it.",
        )


def _check_site(request: Request) -> None:
    # Browsers say where a request began, and no page can make them lie (W3C Fetch Metadata).
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Problem(HTTPStatus.FORBIDDEN, "The form is of another site, so nothing was done.")
