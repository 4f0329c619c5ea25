"""Signing in elsewhere: to the provider with a browser, and back with a token."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Cookie, Query, Request, Response
from fastapi.responses import RedirectResponse

from umbel_server.access.oidc import LIFE_S, account_of_identity, require_on
from umbel_server.access.permissions import held
from umbel_server.access.sign_in import SIGNED_IN_S
from umbel_server.api import cookies
from umbel_server.api.guard import OpenRoute, address_of, failed, waiting
from umbel_server.api.routes.own import SignedIn
from umbel_server.api.service import ServiceOf
from umbel_server.store.api_tokens import SignInError

router = APIRouter(prefix="/api/v1/oidc", tags=["own"], route_class=OpenRoute)


@router.get("/start", status_code=303, response_class=RedirectResponse)
def start_oidc(request: Request, service: ServiceOf) -> RedirectResponse:
    """Go and sign in at the provider, with a browser."""
    require_on(service.fleet.settings.oidc)
    service.starts.begin(address_of(request))
    errand = service.provider.begin()
    service.errands.send(errand)
    answer = RedirectResponse(errand.url, HTTPStatus.SEE_OTHER)
    cookies.keep(answer, cookies.SIGN_IN, errand.state, life_s=LIFE_S)
    return answer


@router.get("/callback")
def finish_oidc(
    request: Request,
    response: Response,
    service: ServiceOf,
    state: Annotated[str, Query(max_length=200)],
    code: Annotated[str, Query(max_length=4000, description="Empty: the provider signed nobody in.")] = "",
    mine: Annotated[str, Cookie(alias=cookies.SIGN_IN, max_length=200, include_in_schema=False)] = "",
) -> SignedIn:
    """Come back from the provider, and get a token that is in force for half a day."""
    require_on(service.fleet.settings.oidc)
    problem = waiting(service, request)
    if problem is not None:
        raise problem
    errand = service.errands.back(state, mine)
    if errand is None:
        raise failed(service, request, "Nobody is expected back with this: begin again.")
    try:
        identity = service.provider.finish(errand, code)
        account = account_of_identity(service.store.accounts, identity)
    except SignInError as exc:
        raise failed(service, request, str(exc)) from None
    token, made = service.store.api_tokens.create(
        account.actor,
        account.name,
        scopes=held(account.roles),
        valid_s=SIGNED_IN_S,
        purpose="signed in elsewhere",
    )
    cookies.forget(response, cookies.SIGN_IN)
    return SignedIn(token=token, id=made.id, expires_s=made.expires_s)
