"""Signing in and out, and how the console looks to whoever is signed in."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Cookie, Query, Request, Response
from fastapi.responses import RedirectResponse

from umbel_server.access.oidc import LIFE_S, account_of_identity, require_on
from umbel_server.access.sign_in import sign_in
from umbel_server.api import cookies
from umbel_server.api.guard import address_of, failed, waiting
from umbel_server.api.problems import Problem
from umbel_server.api.service import ServiceOf, StoreOf
from umbel_server.console.form import FormOf
from umbel_server.console.guard import MAX_NEXT, OpenScreen, ScreenRoute, came_from, may, safe
from umbel_server.console.page import THEMES, page
from umbel_server.console.session import SessionOf, begin, end, session_of_cookie
from umbel_server.store.api_tokens import SignInError

open_router = APIRouter(route_class=OpenScreen)
router = APIRouter(route_class=ScreenRoute)
YEAR_S = 365 * 86400


@open_router.get("/sign-in")
def show_sign_in(
    request: Request,
    service: ServiceOf,
    there: Annotated[str, Query(alias="next", max_length=MAX_NEXT)] = "/",
    lost: Annotated[bool, Query()] = False,
) -> Response:
    """Ask who is there."""
    if request.headers.get("sec-fetch-site") == "cross-site":
        # A link from elsewhere comes without the cookie. From our own page it does not.
        return page(request, "arrive.html", there=safe(there))
    if not lost and session_of_cookie(service.store, request, busy=True) is not None:
        return RedirectResponse(safe(there), HTTPStatus.SEE_OTHER)
    return _form(request, service, there, lost=lost)


@open_router.post("/sign-in")
def do_sign_in(request: Request, service: ServiceOf, form: FormOf) -> Response:
    """Sign somebody in with a name and a password."""
    there, name = form.text("next", most=MAX_NEXT), form.text("name", most=63)
    problem = waiting(service, request)
    if problem is None:
        try:
            account = sign_in(service.store.accounts, name, form.secret("password")[:256])
        except SignInError as exc:
            problem = failed(service, request, str(exc))
        else:
            answer = RedirectResponse(safe(there), HTTPStatus.SEE_OTHER)
            begin(service.store, answer, account)
            return answer
    return _form(request, service, there, name=name, problem=problem)


@open_router.get("/sign-in/provider")
def start_provider(
    request: Request,
    service: ServiceOf,
    there: Annotated[str, Query(alias="next", max_length=MAX_NEXT)] = "/",
) -> Response:
    """Go and sign in at the provider."""
    settings = service.fleet.settings.oidc
    require_on(settings)
    service.starts.begin(address_of(request))
    errand = service.provider.begin(redirect=settings.console_redirect, there=safe(there))
    service.errands.send(errand)
    answer = RedirectResponse(errand.url, HTTPStatus.SEE_OTHER)
    cookies.keep(answer, cookies.SIGN_IN, errand.state, life_s=LIFE_S)
    return answer


@open_router.get("/api/v1/oidc/callback")
def finish_provider(
    request: Request,
    service: ServiceOf,
    state: Annotated[str, Query(max_length=200)],
    code: Annotated[str, Query(max_length=4000)] = "",
    mine: Annotated[str, Cookie(alias=cookies.SIGN_IN, max_length=200)] = "",
) -> Response:
    """Come back from the provider, signed in."""
    require_on(service.fleet.settings.oidc)
    problem = waiting(service, request)
    if problem is not None:
        return _form(request, service, "/", problem=problem)
    errand = service.errands.back(state, mine)
    try:
        if errand is None:
            raise SignInError("Nobody is expected back with this: begin again.")
        identity = service.provider.finish(errand, code)
        account = account_of_identity(service.store.accounts, identity)
    except SignInError as exc:
        there = errand.there if errand else "/"
        return _form(request, service, there, problem=failed(service, request, str(exc)))
    # A redirect would still be the provider's navigation, and come without the cookie: a page of ours leads on.
    answer = page(request, "arrive.html", there=errand.there)
    cookies.forget(answer, cookies.SIGN_IN)
    begin(service.store, answer, account)
    return answer


@router.post("/sign-out", dependencies=[may(None)])
def sign_out(store: StoreOf, session: SessionOf) -> Response:
    """End the session."""
    answer = RedirectResponse("/sign-in", HTTPStatus.SEE_OTHER)
    end(store, answer, session)
    return answer


@router.post("/theme", dependencies=[may(None)])
def set_theme(request: Request, form: FormOf) -> Response:
    """Choose how the console looks: light, dark, or as the system does."""
    theme = form.text("theme", most=10)
    answer = RedirectResponse(came_from(request), HTTPStatus.SEE_OTHER)
    if theme in THEMES:
        cookies.keep(answer, cookies.THEME, theme, life_s=YEAR_S, strict=True)
    return answer


def _form(
    request: Request,
    service: ServiceOf,
    there: str,
    *,
    name: str = "",
    lost: bool = False,
    problem: Problem | None = None,
) -> Response:
    answer = page(
        request,
        "sign_in.html",
        title="Sign in",
        status=HTTPStatus.OK if problem is None else HTTPStatus(problem.status_code),
        there=safe(there),
        name=name,
        lost=lost,
        problem=problem.detail if problem else "",
        provider=bool(service.fleet.settings.oidc.issuer),
    )
    answer.headers.update((problem.headers if problem else None) or {})
    return answer
