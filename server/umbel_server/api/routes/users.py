"""Accounts, and the tokens that programs sign in with."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from umbel_proto.errors import RefusedError
from umbel_server.access.actor import Role
from umbel_server.access.passwords import MAX_CHARS, MIN_CHARS, hash_password
from umbel_server.access.permissions import Permission
from umbel_server.access.shown import account_json, token_json
from umbel_server.api.guard import GuardedRoute, may
from umbel_server.api.paging import DEFAULT_LIMIT, Cursor, Limit, Page, after, page_of
from umbel_server.api.problems import Problem, missing
from umbel_server.api.service import ActorOf, BearerOf, StoreOf
from umbel_server.api.texts import Asked, Name, Named, Reason, Why, Words
from umbel_server.api.versions import IfMatch, check_match, tagged
from umbel_server.store.accounts import Account
from umbel_server.store.api_tokens import MAX_DAYS, ApiToken

router = APIRouter(prefix="/api/v1/users", tags=["users"], route_class=GuardedRoute)
tokens = APIRouter(prefix="/api/v1/tokens", tags=["tokens"], route_class=GuardedRoute)
all_tokens = APIRouter(prefix="/api/v1/all-tokens", tags=["tokens"], route_class=GuardedRoute)
Roles = Annotated[list[Role], Field(min_length=1, max_length=len(Role))]
TokenId = Annotated[str, Path(pattern=r"^tok-[0-9a-f]{10}$", description="The token's id.")]


class UserShown(BaseModel):
    """An account."""

    name: str
    active: bool
    roles: list[Role]
    has_password: bool
    subject: str | None = Field(description="Who it is elsewhere; null: it signs in here.")
    created_s: float = Field(description="Unix seconds.")
    signed_in_s: float | None = Field(description="Unix seconds; null: never.")


class NewUser(Asked):
    """An account that is to be."""

    name: Name
    roles: Roles
    password: Annotated[
        str | None,
        Field(
            min_length=MIN_CHARS,
            max_length=MAX_CHARS,
            description="Null: a program, which only ever has tokens.",
            json_schema_extra={"format": "password"},
        ),
    ] = None
    reason: Words = ""


class NewPassword(Asked):
    """The password of an account from now on."""

    password: Annotated[
        str, Field(min_length=MIN_CHARS, max_length=MAX_CHARS, json_schema_extra={"format": "password"})
    ]
    reason: Reason


class NewRoles(Asked):
    """All roles of an account from now on."""

    roles: Roles
    reason: Reason


class TokenShown(BaseModel):
    """What is known about a token."""

    id: str
    user: str
    purpose: str
    scopes: list[Permission]
    created_s: float = Field(description="Unix seconds.")
    expires_s: float = Field(description="Unix seconds.")
    used_s: float | None = Field(description="When it was last used, to a minute; null: never.")
    revoked_s: float | None = Field(description="Unix seconds; null: it was not.")


class NewToken(Asked):
    """A token that is to be; it may no more than the one that asks for it."""

    scopes: Annotated[list[Permission], Field(min_length=1, max_length=len(Permission))]
    days: Annotated[float, Field(gt=0, le=MAX_DAYS)] = 90.0
    purpose: Annotated[Words, Field(max_length=255)] = ""


class MadeToken(TokenShown):
    """A token. It is shown once."""

    token: str


@router.get("", dependencies=[may(Permission.USERS_READ)])
def list_users(store: StoreOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Page[UserShown]:
    """List the accounts by name."""
    found = store.accounts.all(after=after(cursor) or "", limit=limit + 1)
    return page_of(found, limit, key=lambda each: each.name, show=_show)


@router.get("/{name}", dependencies=[may(Permission.USERS_READ)])
def get_user(store: StoreOf, response: Response, name: Named) -> UserShown:
    """Show an account."""
    return _tagged(response, _found(store, name))


@router.post("", status_code=201, dependencies=[may(Permission.USERS_WRITE)])
def add_user(store: StoreOf, response: Response, actor: ActorOf, new: NewUser) -> UserShown:
    """Make an account."""
    if store.accounts.get(new.name) is not None:
        raise Problem(HTTPStatus.CONFLICT, f"There is already a user {new.name}: choose another name.")
    password = None if new.password is None else hash_password(new.password)
    made = store.accounts.add(
        actor, new.name, roles=frozenset(new.roles), password=password, reason=new.reason
    )
    return _tagged(response, made)


@router.put("/{name}/roles", dependencies=[may(Permission.USERS_WRITE)])
def set_roles(
    store: StoreOf, response: Response, actor: ActorOf, name: Named, new: NewRoles, if_match: IfMatch = None
) -> UserShown:
    """Give an account these roles and no others, in force with its next request."""
    _found(store, name)
    changed = store.accounts.set_roles(
        actor,
        name,
        frozenset(new.roles),
        reason=new.reason,
        check=lambda seen: check_match(if_match, _show(seen)),
    )
    return _tagged(response, changed)


@router.put("/{name}/password", dependencies=[may(Permission.USERS_WRITE)])
def set_password(
    store: StoreOf, response: Response, actor: ActorOf, name: Named, new: NewPassword
) -> UserShown:
    """Give an account another password; its tokens and sessions end."""
    _found(store, name)
    kept = hash_password(new.password)
    return _tagged(response, store.accounts.set_password(actor, name, kept, reason=new.reason))


@router.post("/{name}/tokens", status_code=201, dependencies=[may(Permission.USERS_WRITE)])
def create_token_of_program(store: StoreOf, actor: ActorOf, name: Named, new: NewToken) -> MadeToken:
    """Make a token of a program's account; people make their own, for what is done with it bears their name."""
    account = _found(store, name)
    if account.has_password or account.subject is not None:
        raise RefusedError(f"User {name} signs in, and makes tokens of their own: umbel login.")
    text, made = store.api_tokens.create(
        actor, name, scopes=frozenset(new.scopes), valid_s=new.days * 86400, purpose=new.purpose
    )
    return MadeToken(token=text, **_token(made).model_dump())


@all_tokens.get("", dependencies=[may(Permission.USERS_READ)])
def list_all_tokens(
    store: StoreOf,
    user: Annotated[Name | None, Query(description="Only this account's.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[TokenShown]:
    """List everybody's tokens."""
    found = store.api_tokens.all(account=user, after=after(cursor) or "", limit=limit + 1)
    return page_of(found, limit, key=lambda each: each.id, show=_token)


@router.post("/{name}/disable", dependencies=[may(Permission.USERS_WRITE)])
def disable_user(store: StoreOf, response: Response, actor: ActorOf, name: Named, why: Why) -> UserShown:
    """Refuse an account from now on, and revoke its tokens for good."""
    _found(store, name)
    return _tagged(response, store.accounts.set_active(actor, name, False, reason=why.reason))


@router.post("/{name}/enable", dependencies=[may(Permission.USERS_WRITE)])
def enable_user(store: StoreOf, response: Response, actor: ActorOf, name: Named, why: Why) -> UserShown:
    """Let an account in again; it needs new tokens."""
    _found(store, name)
    return _tagged(response, store.accounts.set_active(actor, name, True, reason=why.reason))


@tokens.get("", dependencies=[may(Permission.TOKENS_READ)])
def list_tokens(
    store: StoreOf, bearer: BearerOf, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[TokenShown]:
    """List your tokens."""
    found = store.api_tokens.all(account=bearer.account.name, after=after(cursor) or "", limit=limit + 1)
    return page_of(found, limit, key=lambda each: each.id, show=_token)


@tokens.post("", status_code=201, dependencies=[may(Permission.TOKENS_WRITE)])
def create_token(store: StoreOf, bearer: BearerOf, new: NewToken) -> MadeToken:
    """Make a token of your own that may no more than the one you show."""
    beyond = set(new.scopes) - bearer.permissions
    if beyond:
        raise Problem(HTTPStatus.FORBIDDEN, f"The token you show may not do {min(beyond)} itself.")
    text, made = store.api_tokens.create(
        bearer.account.actor,
        bearer.account.name,
        scopes=frozenset(new.scopes),
        valid_s=new.days * 86400,
        purpose=new.purpose,
    )
    return MadeToken(token=text, **_token(made).model_dump())


@tokens.post("/{id}/revoke", dependencies=[may(Permission.TOKENS_WRITE)])
def revoke_token(store: StoreOf, bearer: BearerOf, id: TokenId, why: Why) -> TokenShown:  # noqa: A002
    """Refuse a token from now on: one of yours, or anybody's if you may change accounts."""
    found = store.api_tokens.get(id)
    mine = found is not None and found.account == bearer.account.name
    if found is None or not (mine or Permission.USERS_WRITE in bearer.permissions):
        raise missing(f"token {id}")
    return _token(store.api_tokens.revoke(bearer.account.actor, id, reason=why.reason))


def _found(store: StoreOf, name: str) -> Account:
    account = store.accounts.get(name)
    if account is None:
        raise missing(f"user {name}")
    return account


def _tagged(response: Response, account: Account) -> UserShown:
    shown = _show(account)
    tagged(response, shown)
    return shown


def _show(account: Account) -> UserShown:
    return UserShown.model_validate(account_json(account))


def _token(made: ApiToken) -> TokenShown:
    return TokenShown.model_validate(token_json(made))
