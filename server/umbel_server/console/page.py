"""A screen's HTML: its template in the console's layout, or alone where the page only asked for it anew."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from umbel_server.access.permissions import Permission
from umbel_server.api import cookies
from umbel_server.api.service import service_of
from umbel_server.console import words
from umbel_server.console.nav import SCREENS, Screen, screen_at
from umbel_server.console.pulse import sign_of
from umbel_server.console.range import RANGES, REFRESHES, refresh_of
from umbel_server.console.session import Session
from umbel_server.console.static_files import static
from umbel_server.fleet.settings import address

THEMES = ("system", "light", "dark")
MAX_NOTICE = 1000
_NOTICE_S = 60


def page(
    request: Request,
    template: str,
    *,
    title: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    **values: Any,
) -> Response:
    """Return a screen.

    Args:
        request: Who asks, and where they are.
        template: Its template; it extends ``layout.html``.
        title: What it is called, unless as the menu says.
        status: The HTTP status.
        values: What the template shows.
    """
    fragment = "hx-request" in request.headers
    notice = "" if fragment else _notice_of(request)
    body = (
        templates()
        .get_template(template)
        .render(
            fragment=fragment,
            notice=notice,
            **_around(request, title),
            **values,
        )
    )
    answer = HTMLResponse(body, status)
    answer.headers["Vary"] = "HX-Request"
    if notice:
        cookies.forget(answer, cookies.NOTICE)
    return answer


def done(path: str, notice: str) -> Response:
    """Return what leads from a change to the screen that shows it, which says that it was made.

    Args:
        path: The screen's path.
        notice: One sentence.
    """
    answer = Response(status_code=HTTPStatus.SEE_OTHER, headers={"Location": path})
    told = base64.urlsafe_b64encode(notice[:MAX_NOTICE].encode()).decode()
    cookies.keep(answer, cookies.NOTICE, told, life_s=_NOTICE_S, strict=True)
    return answer


def session_or_none(request: Request) -> Session | None:
    """Return who sent a request; None: nobody, or nobody has looked yet."""
    found = getattr(request.state, "session", None)
    return found if isinstance(found, Session) else None


@cache
def templates() -> Environment:
    """Return the templates, each compiled once."""
    made = Environment(
        loader=PackageLoader("umbel_server.console"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        cache_size=-1,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=words.number,
        figures=words.figures,
        percent=words.percent,
        size=words.size,
        duration=words.duration,
        iso=words.iso,
    )
    made.globals.update(
        static=static, RANGES=tuple(RANGES), REFRESHES=tuple(REFRESHES), Permission=Permission
    )
    return made


def here(request: Request) -> Callable[..., str]:
    """Return what makes the URL of this page with other parameters; one that is None is left out."""

    @cache  # A list says the same of many rows.
    def made(**changes: Any) -> str:
        kept = [(name, value) for name, value in request.query_params.multi_items() if name not in changes]
        query = urlencode(kept + [(name, str(value)) for name, value in changes.items() if value is not None])
        return f"{request.url.path}?{query}" if query else request.url.path

    return made


def _api(request: Request) -> Callable[[str, Mapping[str, object]], str]:
    """Return what makes the URL of a call of the API; a parameter that is None or empty is left out.

    One of several values is given once for each. The API has a port of its own on the host that the browser has the console from. Nothing in the URL ends a shell's quotes.
    """
    settings = service_of(request).fleet.settings
    host = address(request.url.hostname or settings.host, settings.api.port)

    def made(path: str, asked: Mapping[str, object]) -> str:
        each = (
            (name, one)
            for name, value in asked.items()
            for one in (value if isinstance(value, tuple) else (value,))
        )
        query = urlencode([(name, str(one)) for name, one in each if one not in (None, "")])
        return f"https://{host}/api/v1{quote(path)}" + (f"?{query}" if query else "")

    return made


def _around(request: Request, title: str) -> dict[str, Any]:
    settings = service_of(request).fleet.settings
    session, now_s = session_or_none(request), service_of(request).store.clock()
    permissions = session.permissions if session else frozenset()
    current = screen_at(request.url.path)
    theme = request.cookies.get(cookies.THEME, "")
    return {
        "title": title or (current.title if current else "umbel"),
        "fleet": settings.name,
        "banner": settings.console.banner,
        "api": _api(request),
        "session": session,
        "csrf": session.csrf if session else "",
        "allowed": lambda name: Permission(name) in permissions,
        "menu": _menu(request, permissions),
        "current": current,
        "here": here(request),
        "path": request.url.path,
        "query": request.query_params,
        "now_s": now_s,
        "when": lambda unix_s: words.when(unix_s, now_s),
        "theme": theme if theme in THEMES else "system",
        "refresh": refresh_of(request),
        "sign": lambda about: sign_of(
            getattr(request.state, "signs", None) or request.app.state.pulse.signs(), about
        ),
        "REFRESH_S": REFRESHES,
    }


def _menu(request: Request, permissions: frozenset[Permission]) -> dict[str, list[Screen]]:
    there: frozenset[str] = request.app.state.paths
    groups: dict[str, list[Screen]] = {}
    for each in SCREENS:
        if each.path in there and each.permission in permissions:
            groups.setdefault(each.group, []).append(each)
    return groups


def _notice_of(request: Request) -> str:
    told = request.cookies.get(cookies.NOTICE, "")
    try:
        return base64.urlsafe_b64decode(told.encode()).decode()[:MAX_NOTICE]
    except (ValueError, binascii.Error):
        return ""
