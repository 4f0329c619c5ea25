"""API tokens: shown once, kept as hashes, never more than their account may do."""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import dataclass

from sqlalchemy import Row, Select, insert, select, update

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.actor import Actor
from umbel_server.access.api_token import looks_like_token, new_token, token_hash
from umbel_server.access.permissions import Permission, held
from umbel_server.clock import Clock
from umbel_server.store.accounts import ACTIVE, Account, account_of
from umbel_server.store.audit import Audit, check_text
from umbel_server.store.database import Database
from umbel_server.store.tables_access import accounts, api_tokens

MAX_DAYS = 366
_DAY_S = 86400
_USED_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class ApiToken:
    """What is known about a token; it itself is not.

    Args:
        id: What it is called by; no secret.
        account: Whom it stands for.
        purpose: What it is for, in its owner's words.
        scopes: What it may do at most.
        created_s: When it was made, Unix seconds.
        expires_s: From when it is refused for its age.
        used_s: When it was last used, to a minute; None: never.
        revoked_s: When it was revoked; None: it was not.
    """

    id: str
    account: str
    purpose: str
    scopes: frozenset[Permission]
    created_s: float
    expires_s: float
    used_s: float | None
    revoked_s: float | None


@dataclass(frozen=True, slots=True)
class Bearer:
    """Somebody who showed a token that is in force.

    Args:
        account: Whose.
        token: Which.
        permissions: What it may do: the token's scopes as far as the account's roles go.
    """

    account: Account
    token: ApiToken
    permissions: frozenset[Permission]


class SignInError(RefusedError):
    """What somebody signed in with is unknown, expired, revoked or disabled; which of these is not said."""


class ApiTokens:
    """The API tokens of a store."""

    def __init__(self, database: Database, clock: Clock, audit: Audit) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit

    def create(
        self, actor: Actor, account: str, *, scopes: frozenset[Permission], valid_s: float, purpose: str = ""
    ) -> tuple[str, ApiToken]:
        """Make a token: its text, of which only a hash is kept, and what is known about it.

        Args:
            actor: Who makes it.
            account: Whom it stands for.
            scopes: What it may do at most.
            valid_s: How long it is in force, seconds.
            purpose: What it is for.

        Raises:
            UsageError: There is no such account, or an argument is out of range.
            RefusedError: The account is disabled, or may not do what the token is to do.
        """
        if not 0 < valid_s <= MAX_DAYS * _DAY_S:
            raise UsageError(f"A token cannot be valid for {valid_s:g} s: choose up to {MAX_DAYS} days.")
        if not scopes:
            raise UsageError("A token needs a scope.")
        check_text(purpose, "purpose", 255)
        text, now_s = new_token(), self._clock()
        row = {
            "id": f"tok-{secrets.token_hex(5)}",
            "hash": token_hash(text),
            "account": account,
            "purpose": purpose,
            "scopes": json.dumps(sorted(scopes)),
            "created_s": now_s,
            "expires_s": now_s + valid_s,
        }
        with self._database.write() as connection:
            owner = connection.execute(select(accounts).where(accounts.c.name == account)).one_or_none()
            if owner is None:
                raise UsageError(f"There is no user {account}: see  umbel user list.")
            if owner.status != ACTIVE:
                raise RefusedError(f"User {account} is disabled.")
            beyond = scopes - held(account_of(owner).roles)
            if beyond:
                raise RefusedError(f"User {account} has no role that allows {min(beyond)}.")
            connection.execute(insert(api_tokens).values(row))
            made = _token(connection.execute(_by_id(str(row["id"]))).one())
            self._audit.append(
                connection,
                actor,
                action="token.create",
                object=f"token:{made.id}",
                after={
                    "user": account,
                    "scopes": sorted(scopes),
                    "expires_s": made.expires_s,
                    "purpose": purpose,
                },
            )
        return text, made

    def bearer(self, text: str) -> Bearer:
        """Return who shows a token.

        Raises:
            SignInError: It is not one, or not in force, or its account is disabled.
        """
        if not looks_like_token(text):
            raise _refusal()
        wanted, now_s = token_hash(text), self._clock()
        query = select(api_tokens, accounts.c.status).join(accounts).where(api_tokens.c.hash == wanted)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
            # The index finds by a hash that whoever guesses cannot steer; the last word is constant-time.
            if row is None or not hmac.compare_digest(row.hash, wanted):
                raise _refusal()
            if row.revoked_s is not None or now_s >= row.expires_s or row.status != ACTIVE:
                raise _refusal()
            owner = connection.execute(select(accounts).where(accounts.c.name == row.account)).one()
        account, token = account_of(owner), _token(row)
        if token.used_s is None or now_s - token.used_s >= _USED_EVERY_S:
            with self._database.write() as connection:
                connection.execute(update(api_tokens).where(api_tokens.c.id == token.id).values(used_s=now_s))
        return Bearer(account, token, token.scopes & held(account.roles))

    def get(self, token: str) -> ApiToken | None:
        """Return a token by its id, in force or not; None if there is none."""
        with self._database.read() as connection:
            row = connection.execute(_by_id(token)).one_or_none()
        return None if row is None else _token(row)

    def all(
        self, *, account: str | None = None, after: str = "", limit: int | None = None
    ) -> tuple[ApiToken, ...]:
        """Return tokens by id, those after one, of an account or of all, at most ``limit``."""
        query = select(api_tokens).where(api_tokens.c.id > after).order_by(api_tokens.c.id).limit(limit)
        if account is not None:
            query = query.where(api_tokens.c.account == account)
        with self._database.read() as connection:
            return tuple(map(_token, connection.execute(query)))

    def revoke(self, actor: Actor, token: str, *, reason: str = "") -> ApiToken:
        """Refuse a token from now on; again is no error.

        Raises:
            UsageError: There is no such token.
        """
        with self._database.write() as connection:
            row = connection.execute(_by_id(token)).one_or_none()
            if row is None:
                raise UsageError(f"There is no token {token}: see  umbel access token list.")
            if row.revoked_s is None:
                connection.execute(
                    update(api_tokens).where(api_tokens.c.id == token).values(revoked_s=self._clock())
                )
                self._audit.append(
                    connection,
                    actor,
                    action="token.revoke",
                    object=f"token:{token}",
                    reason=reason,
                    before={"user": row.account},
                )
            return _token(connection.execute(_by_id(token)).one())


def _refusal() -> SignInError:
    return SignInError("The token is not in force: ask for a new one.")


def _by_id(token: str) -> Select[tuple[object, ...]]:
    return select(api_tokens).where(api_tokens.c.id == token)


def _token(row: Row[tuple[object, ...]]) -> ApiToken:
    return ApiToken(
        id=row.id,
        account=row.account,
        purpose=row.purpose,
        scopes=frozenset(scope for scope in Permission if scope in json.loads(row.scopes)),
        created_s=row.created_s,
        expires_s=row.expires_s,
        used_s=row.used_s,
        revoked_s=row.revoked_s,
    )
