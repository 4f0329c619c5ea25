"""Screen "Settings, Tokens": what programs sign in with: one's own, and everybody's for those who look after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_server.access.permissions import Permission, parse_scopes
from umbel_server.api.problems import missing, status_of_error
from umbel_server.api.service import Service, ServiceOf, StoreOf
from umbel_server.console.confirm import REASON, Deed, ask, refusal
from umbel_server.console.export import export
from umbel_server.console.form import Form, FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.settings import tabs
from umbel_server.console.session import Session, SessionOf
from umbel_server.store.accounts import Account
from umbel_server.store.api_tokens import MAX_DAYS, ApiToken
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

ROWS = 100
USUAL_DAYS = 90
COLUMNS = ("id", "user", "purpose", "scopes", "created_s", "expires_s", "used_s", "revoked_s", "state")
TokenId = Annotated[str, Path(pattern=r"^tok-[0-9a-f]{10}$", description="The token's id.")]
_READ = [may(Permission.TOKENS_READ)]
_WRITE = [may(Permission.TOKENS_WRITE)]


def state_of(token: ApiToken, now_s: float) -> str:
    """Return whether a token is ``in force``, ``expired`` or ``revoked``."""
    if token.revoked_s is not None:
        return "revoked"
    return "in force" if now_s < token.expires_s else "expired"


def seen_by(
    store: Store, session: Session, user: str, *, after: str = "", limit: int | None = None
) -> tuple[ApiToken, ...]:
    """Return the tokens that somebody may see: their own, or others' if they look after accounts.

    Args:
        store: The store.
        session: Who looks.
        user: Whose: a name; empty: everybody's, for those who may see these.
        after: Only those after this id.
        limit: At most so many.
    """
    if Permission.USERS_READ not in session.permissions:
        user = session.account.name
    return store.api_tokens.all(account=user or None, after=after, limit=limit)


@router.get("/settings/tokens", dependencies=_READ)
def show_tokens(
    request: Request,
    service: ServiceOf,
    session: SessionOf,
    user: Annotated[str, Query(max_length=63)] = "",
    cursor: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    """Show tokens: never one itself, of which only a hash is kept."""
    file = export(request, "tokens", COLUMNS, _cells(service.store, session, user))
    return file if file is not None else _tokens(request, service, session, user=user, cursor=cursor)


@router.post("/settings/tokens", dependencies=_WRITE)
def create_token(request: Request, service: ServiceOf, session: SessionOf, form: FormOf) -> Response:
    """Make a token, and show it this once."""
    try:
        account = _owner(service.store, session, form.text("user", most=63) or session.account.name)
        scopes, days = parse_scopes(form.all("scope")), form.number("days")
        beyond = scopes - session.permissions
        if beyond:
            raise RefusedError(f"You may not do {min(beyond)} yourself, and so no token of yours.")
        text, made = service.store.api_tokens.create(
            session.account.actor,
            account.name,
            scopes=scopes,
            valid_s=(USUAL_DAYS if days is None else days) * 86400.0,
            purpose=form.text("purpose", most=255),
        )
    except (UsageError, RefusedError) as exc:
        return _tokens(request, service, session, form=form, problem=str(exc), status=_status(exc))
    return page(request, "token_made.html", title="Your new token", **tabs(request), token=text, made=made)


@router.get("/settings/tokens/{id}/revoke", dependencies=_WRITE)
def confirm_revoke(request: Request, store: StoreOf, session: SessionOf, id: TokenId) -> Response:  # noqa: A002
    """Ask before a token is refused."""
    return ask(request, _deed(_mine(store, session, id)))


@router.post("/settings/tokens/{id}/revoke", dependencies=_WRITE)
def revoke_token(
    request: Request,
    store: StoreOf,
    session: SessionOf,
    form: FormOf,
    id: TokenId,  # noqa: A002
) -> Response:
    """Refuse a token from now on."""
    deed = _deed(_mine(store, session, id))
    undone = refusal(request, deed, form)
    if undone is not None:
        return undone
    store.api_tokens.revoke(session.account.actor, id, reason=form.text(REASON))
    return done("/settings/tokens", f"Token {id} is revoked: what shows it is refused from now on.")


def _tokens(
    request: Request,
    service: Service,
    session: Session,
    *,
    user: str = "",
    cursor: str = "",
    form: Form | None = None,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    found = seen_by(service.store, session, user, after=cursor, limit=ROWS + 1)
    programs = [
        each.name
        for each in service.store.accounts.all()
        if each.active and not each.has_password and each.subject is None
    ]
    return page(
        request,
        "settings_tokens.html",
        title="Tokens",
        status=status,
        **tabs(request),
        tokens=found[:ROWS],
        next=found[ROWS - 1].id if len(found) > ROWS else None,
        state_of=state_of,
        user=user,
        everybody=Permission.USERS_READ in session.permissions,
        programs=programs if Permission.USERS_WRITE in session.permissions else [],
        scopes=sorted(session.permissions),
        chosen=form.all("scope") if form else [],
        typed={
            "purpose": form.text("purpose", most=255) if form else "",
            "days": form.text("days", most=20) if form else str(USUAL_DAYS),
            "user": form.text("user", most=63) if form else "",
        },
        most_days=MAX_DAYS,
        problem=problem,
    )


def _owner(store: Store, session: Session, name: str) -> Account:
    """Return whom a token is for: oneself, or a program that somebody looks after.

    Raises:
        UsageError: There is no such account.
        RefusedError: It is another person's: what is done with it would bear their name.
    """
    if name == session.account.name:
        return session.account
    account = store.accounts.get(name) if Permission.USERS_WRITE in session.permissions else None
    if account is None:
        raise UsageError(f"There is no program {name[:63]} that you look after: see the users.")
    if account.has_password or account.subject is not None:
        raise RefusedError(f"User {name} signs in, and makes tokens of their own.")
    return account


def _mine(store: Store, session: Session, id_: str) -> ApiToken:
    found = store.api_tokens.get(id_)
    mine = found is not None and found.account == session.account.name
    if found is None or not (mine or Permission.USERS_WRITE in session.permissions):
        raise missing(f"token {id_}")
    return found


def _deed(token: ApiToken) -> Deed:
    return Deed(
        title=f"Revoke token {token.id}",
        button="Revoke",
        name=token.id,
        devices=None,
        says=(
            f"It stands for {token.account}" + (f", for {token.purpose}" if token.purpose else "") + ".",
            "Whatever shows it is refused from now on, for good.",
        ),
        back="/settings/tokens",
    )


def _status(exc: UmbelError) -> HTTPStatus:
    return status_of_error(exc) or HTTPStatus.CONFLICT


def _cells(store: Store, session: Session, user: str) -> Iterator[Sequence[object]]:
    now_s = store.clock()
    for each in seen_by(store, session, user):
        yield (
            each.id,
            each.account,
            each.purpose,
            " ".join(sorted(each.scopes)),
            each.created_s,
            each.expires_s,
            each.used_s,
            each.revoked_s,
            state_of(each, now_s),
        )
