"""Screen "Settings, Users": accounts, their roles, and who is let in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_server.access.actor import Role
from umbel_server.access.passwords import MAX_CHARS, MIN_CHARS, hash_password
from umbel_server.access.permissions import Permission, parse_roles
from umbel_server.api.problems import missing, status_of_error
from umbel_server.api.service import Service, ServiceOf, StoreOf
from umbel_server.api.texts import Named
from umbel_server.console.confirm import REASON, Deed, ask, refusal
from umbel_server.console.export import export
from umbel_server.console.form import Form, FormOf
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import done, page
from umbel_server.console.screens.settings import tabs
from umbel_server.console.session import ActorOf, SessionOf
from umbel_server.store.accounts import Account
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)

ROWS = 100
COLUMNS = ("name", "active", "roles", "signs_in", "created_s", "signed_in_s", "tokens")
Turn = Annotated[Literal["disable", "enable"], Path()]
_READ = [may(Permission.USERS_READ)]
_WRITE = [may(Permission.USERS_WRITE)]


def signs_in(account: Account) -> str:
    """Return how an account comes in: ``password``, ``elsewhere``, or ``tokens`` of a program."""
    return "elsewhere" if account.subject is not None else "password" if account.has_password else "tokens"


def tokens_in_force(store: Store) -> dict[str, int]:
    """Return how many tokens of each account are in force."""
    now_s, counts = store.clock(), dict[str, int]()
    for each in store.api_tokens.all():
        if each.revoked_s is None and now_s < each.expires_s:
            counts[each.account] = counts.get(each.account, 0) + 1
    return counts


@router.get("/settings/users", dependencies=_READ)
def show_users(
    request: Request, service: ServiceOf, cursor: Annotated[str, Query(max_length=63)] = ""
) -> Response:
    """Show the accounts."""
    file = export(request, "users", COLUMNS, _cells(service.store))
    return file if file is not None else _users(request, service, cursor=cursor)


@router.post("/settings/users", dependencies=_WRITE)
def add_user(request: Request, service: ServiceOf, actor: ActorOf, form: FormOf) -> Response:
    """Make an account."""
    name, password = form.text("name"), form.secret("password")
    try:
        roles = parse_roles(form.all("role"))
        kept = hash_password(password) if password else None
        service.store.accounts.add(actor, name, roles=roles, password=kept, reason=form.text(REASON))
    except (UsageError, RefusedError) as exc:
        return _users(request, service, form=form, problem=str(exc), status=_status(exc))
    how = "signs in with the password you chose" if password else "is a program's: make it a token"
    return done("/settings/users", f"User {name} is made, and {how}.")


@router.get("/settings/users/{name}", dependencies=_READ)
def show_user(request: Request, store: StoreOf, name: Named) -> Response:
    """Show an account, with what may be changed of it."""
    return _user(request, store, _found(store, name))


@router.post("/settings/users/{name}/roles", dependencies=_WRITE)
def set_roles(request: Request, store: StoreOf, session: SessionOf, form: FormOf, name: Named) -> Response:
    """Give an account these roles and no others."""
    account, seen = _found(store, name), frozenset(form.all("seen"))

    def check(now: Account) -> None:
        if frozenset(now.roles) != seen:
            raise RefusedError(
                f"Somebody else has just changed the roles of {name}, which are shown now: yours were not kept."
            )

    try:
        roles = parse_roles(form.all("role"))
        _require_not_self(session.account, name, Role.ADMIN not in roles)
        reason = _reason(form)
        store.accounts.set_roles(session.account.actor, name, roles, reason=reason, check=check)
    except (UsageError, RefusedError) as exc:
        return _user(request, store, _found(store, account.name), problem=str(exc), status=_status(exc))
    return done(f"/settings/users/{name}", f"User {name} is now {', '.join(sorted(roles))}.")


@router.post("/settings/users/{name}/password", dependencies=_WRITE)
def set_password(request: Request, store: StoreOf, actor: ActorOf, form: FormOf, name: Named) -> Response:
    """Give an account another password; its tokens and sessions end."""
    account = _found(store, name)
    try:
        reason = _reason(form)
        store.accounts.set_password(actor, name, hash_password(form.secret("password")), reason=reason)
    except (UsageError, RefusedError) as exc:
        return _user(request, store, account, problem=str(exc), status=_status(exc))
    return done("/settings/users", f"User {name} has another password, and is signed in nowhere any more.")


@router.get("/settings/users/{name}/{turn}", dependencies=_WRITE)
def confirm_turn(request: Request, store: StoreOf, name: Named, turn: Turn) -> Response:
    """Ask before an account is refused or let in."""
    return ask(request, _deed(_found(store, name), turn))


@router.post("/settings/users/{name}/{turn}", dependencies=_WRITE)
def turn_user(
    request: Request, store: StoreOf, session: SessionOf, form: FormOf, name: Named, turn: Turn
) -> Response:
    """Refuse an account from now on, and revoke its tokens for good; or let it in again."""
    account = _found(store, name)
    deed = _deed(account, turn)
    undone = refusal(request, deed, form)
    if undone is not None:
        return undone
    try:
        _require_not_self(session.account, name, turn == "disable")
        store.accounts.set_active(session.account.actor, name, turn == "enable", reason=form.text(REASON))
    except (UsageError, RefusedError) as exc:
        return ask(request, deed, problem=str(exc), status=_status(exc), reason=form.text(REASON))
    return done("/settings/users", f"User {name} is {turn}d.")


def _users(
    request: Request,
    service: Service,
    *,
    cursor: str = "",
    form: Form | None = None,
    problem: str = "",
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    found = service.store.accounts.all(after=cursor, limit=ROWS + 1)
    return page(
        request,
        "settings_users.html",
        title="Users",
        status=status,
        **tabs(request),
        users=found[:ROWS],
        next=found[ROWS - 1].name if len(found) > ROWS else None,
        counts=tokens_in_force(service.store),
        signs_in=signs_in,
        roles=tuple(Role),
        typed={"name": form.text("name"), "reason": form.text(REASON)}
        if form
        else {"name": "", "reason": ""},
        chosen=form.all("role") if form else [],
        least=MIN_CHARS,
        most=MAX_CHARS,
        problem=problem,
        provider=service.fleet.settings.oidc.issuer,
    )


def _user(
    request: Request, store: Store, account: Account, *, problem: str = "", status: HTTPStatus = HTTPStatus.OK
) -> Response:
    return page(
        request,
        "settings_user.html",
        title=account.name,
        status=status,
        **tabs(request),
        account=account,
        signs_in=signs_in,
        roles=tuple(Role),
        tokens=store.api_tokens.all(account=account.name),
        least=MIN_CHARS,
        most=MAX_CHARS,
        problem=problem,
    )


def _deed(account: Account, turn: str) -> Deed:
    says = {
        "disable": "Every request of this account is refused from now on; its tokens and sessions end for good.",
        "enable": "The account is let in again. Tokens that it had stay revoked: it needs new ones.",
    }
    return Deed(
        title=f"{turn.capitalize()} user {account.name}",
        button=turn.capitalize(),
        name=account.name,
        devices=None,
        says=(says[turn],),
        back="/settings/users",
    )


def _require_not_self(who: Account, name: str, out: bool) -> None:
    """Check that nobody shuts themselves out: another administrator does that.

    Raises:
        RefusedError: They would.
    """
    if out and who.name == name:
        raise RefusedError("You would shut yourself out: let another administrator do this.")


def _reason(form: Form) -> str:
    reason = form.text(REASON)
    if not reason:
        raise UsageError("Nothing was done: give a reason, for the audit log.")
    return reason


def _status(exc: UmbelError) -> HTTPStatus:
    return status_of_error(exc) or HTTPStatus.CONFLICT


def _found(store: Store, name: str) -> Account:
    account = store.accounts.get(name)
    if account is None:
        raise missing(f"user {name}")
    return account


def _cells(store: Store) -> Iterator[Sequence[object]]:
    counts = tokens_in_force(store)
    for each in store.accounts.all():
        yield (
            each.name,
            each.active,
            " ".join(sorted(each.roles)),
            signs_in(each),
            each.created_s,
            each.signed_in_s,
            counts.get(each.name, 0),
        )
