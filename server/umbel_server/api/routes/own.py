"""What concerns the caller: signing in, who they are, and what the API can do."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from umbel_proto.errors import RefusedError
from umbel_server.access.actor import Role
from umbel_server.access.permissions import Permission, held, parse_scopes
from umbel_server.access.sign_in import SIGNED_IN_S, sign_in
from umbel_server.api.guard import GuardedRoute, OpenRoute, failed, may, waiting
from umbel_server.api.service import BearerOf, ServiceOf, StoreOf
from umbel_server.files import read_file
from umbel_server.store.api_tokens import SignInError

router = APIRouter(prefix="/api/v1", tags=["own"], route_class=GuardedRoute)
open_router = APIRouter(prefix="/api/v1", tags=["own"], route_class=OpenRoute)


class SignIn(BaseModel):
    """Name and password, and what the token is for."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(max_length=63)]
    password: Annotated[str, Field(max_length=256, json_schema_extra={"format": "password"})]
    scopes: Annotated[
        list[Permission] | None,
        Field(max_length=64, description="At most what it may do, of what you may; null: all of that."),
    ] = None
    purpose: Annotated[str, Field(max_length=200, description="In your own words.")] = ""


class SignedIn(BaseModel):
    """A token. It is shown once."""

    token: str
    id: str
    expires_s: float = Field(description="Unix seconds.")


class AuthorityShown(BaseModel):
    """Who vouches for the service."""

    certificate: str = Field(description="PEM.")


class SignedOut(BaseModel):
    """A token that is in force no more."""

    token: str = Field(description="Its id.")


class Me(BaseModel):
    """Who shows this token, and what they may do with it."""

    name: str
    roles: list[Role]
    token: str = Field(description="The token's id.")
    permissions: list[Permission]
    expires_s: float = Field(description="Unix seconds.")


@open_router.post("/sign-in", status_code=201)
def sign_in_with_password(request: Request, service: ServiceOf, who: SignIn) -> SignedIn:
    """Exchange a name and a password for a token that is in force for half a day."""
    problem = waiting(service, request)
    if problem is not None:
        raise problem
    try:
        account = sign_in(service.store.accounts, who.name, who.password)
    except SignInError as exc:
        raise failed(service, request, str(exc)) from None
    mine = held(account.roles)
    scopes = mine if who.scopes is None else mine & parse_scopes(who.scopes)
    if not scopes:
        raise RefusedError(f"User {account.name} may do nothing of what the token is to be for.")
    token, made = service.store.api_tokens.create(
        account.actor, account.name, scopes=scopes, valid_s=SIGNED_IN_S, purpose=who.purpose or "signed in"
    )
    return SignedIn(token=token, id=made.id, expires_s=made.expires_s)


@open_router.get("/authority")
def authority(service: ServiceOf) -> AuthorityShown:
    """Show the certificate that vouches for this service; whoever knows its fingerprint may trust what it signed."""
    return AuthorityShown(certificate=read_file(service.fleet.ca_pem, "CA certificate").decode("ascii"))


@router.post("/sign-out", dependencies=[may(None)])
def sign_out(store: StoreOf, bearer: BearerOf) -> SignedOut:
    """Refuse the token that you show from now on; it needs no scope for that."""
    gone = store.api_tokens.revoke(bearer.account.actor, bearer.token.id, reason="signed out")
    return SignedOut(token=gone.id)


@router.get("/me", dependencies=[may(None)])
def me(bearer: BearerOf) -> Me:
    """Say who you are."""
    return Me(
        name=bearer.account.name,
        roles=sorted(bearer.account.roles),
        token=bearer.token.id,
        permissions=sorted(bearer.permissions),
        expires_s=bearer.token.expires_s,
    )


@router.get("/openapi.json", dependencies=[may(None)])
def openapi(request: Request) -> dict[str, Any]:
    """Describe the API, as OpenAPI 3.1."""
    described: dict[str, Any] = request.app.openapi()
    return described
