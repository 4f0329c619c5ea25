"""Accounts: people and programs that sign in, with their roles and how often somebody failed to be them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Row, Select, insert, select, update
from sqlalchemy.exc import IntegrityError

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name
from umbel_server.access.actor import Actor, Role
from umbel_server.clock import Clock
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database
from umbel_server.store.tables_access import accounts, api_tokens, sessions

ACTIVE, DISABLED = "active", "disabled"
FREE_FAILURES = 5
"""So often somebody may mistype before the waiting begins."""
MAX_WAIT_S = 900.0
"""The waiting doubles up to this: longer would let anybody lock anybody out."""


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may sign in.

    Args:
        name: Its name.
        active: Whether it may; a disabled one may not.
        roles: What it may do.
        has_password: Whether it signs in here; one from elsewhere does so there.
        subject: Who it is elsewhere: OIDC issuer, a space, subject; None: it is local.
        created_s: When it was made, Unix seconds.
        signed_in_s: When a sign-in last succeeded; None: never.
    """

    name: str
    active: bool
    roles: frozenset[Role]
    has_password: bool
    subject: str | None
    created_s: float
    signed_in_s: float | None

    @property
    def actor(self) -> Actor:
        """The account as one who acts."""
        return Actor(self.name, self.roles)

    def on_record(self) -> dict[str, object]:
        """Return what the audit log keeps of it: no password, no hash of one."""
        return {"active": self.active, "roles": sorted(self.roles), "subject": self.subject}


@dataclass(frozen=True, slots=True)
class Attempt:
    """What decides a sign-in.

    Args:
        account: Whose it would be; None: nobody's.
        password: What was kept of the password; None: nothing.
        waits: Whether it failed too often too lately to be tried.
    """

    account: Account | None
    password: str | None
    waits: bool


def _any(_: Account) -> None:
    pass


class Accounts:
    """The accounts of a store."""

    def __init__(self, database: Database, clock: Clock, audit: Audit) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit

    def add(
        self,
        actor: Actor,
        name: str,
        *,
        roles: frozenset[Role],
        password: str | None = None,
        subject: str | None = None,
        reason: str = "",
    ) -> Account:
        """Make an account.

        Args:
            actor: Who makes it.
            name: Its name.
            roles: What it may do.
            password: What ``hash_password`` returned; None: it cannot sign in with one.
            subject: Who it is elsewhere.
            reason: Why.

        Raises:
            UsageError: The name is taken or not a name, or the subject has an account.
        """
        check_name(name, "user")
        row = {
            "name": name,
            "status": ACTIVE,
            "roles": _roles_text(roles),
            "password": password,
            "subject": subject,
            "created_s": self._clock(),
            "failures": 0,
            "retry_from_s": 0.0,
        }
        try:
            with self._database.write() as connection:
                connection.execute(insert(accounts).values(row))
                account = account_of(connection.execute(_by_name(name)).one())
                self._record(connection, actor, "user.add", name, reason, None, account.on_record())
        except IntegrityError as exc:
            raise UsageError(f"There is already a user {name}: choose another name.") from exc
        return account

    def get(self, name: str) -> Account | None:
        """Return an account, disabled or not; None if there is none of that name."""
        with self._database.read() as connection:
            row = connection.execute(_by_name(name)).one_or_none()
        return None if row is None else account_of(row)

    def of_subject(self, subject: str) -> Account | None:
        """Return the account of somebody from elsewhere; None if there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(accounts).where(accounts.c.subject == subject)).one_or_none()
        return None if row is None else account_of(row)

    def all(self, *, after: str = "", limit: int | None = None) -> tuple[Account, ...]:
        """Return accounts by name, those after a name, at most ``limit``."""
        query = select(accounts).where(accounts.c.name > after).order_by(accounts.c.name).limit(limit)
        with self._database.read() as connection:
            return tuple(map(account_of, connection.execute(query)))

    def set_roles(
        self,
        actor: Actor,
        name: str,
        roles: frozenset[Role],
        *,
        reason: str = "",
        check: Callable[[Account], None] = _any,
    ) -> Account:
        """Give an account other roles, in force with its next request.

        Args:
            actor: Who does it.
            name: Whose.
            roles: What it may do from now on.
            reason: Why.
            check: Raises if the account is not as the actor saw it.

        Raises:
            UsageError: There is no such account.
        """
        return self._change(actor, "user.role", name, reason, check, roles=_roles_text(roles))

    def set_active(
        self,
        actor: Actor,
        name: str,
        active: bool,
        *,
        reason: str = "",
        check: Callable[[Account], None] = _any,
    ) -> Account:
        """Refuse every request of an account from now on, or no longer.

        Raises:
            UsageError: There is no such account.
        """
        action, status = ("user.enable", ACTIVE) if active else ("user.disable", DISABLED)
        return self._change(actor, action, name, reason, check, status=status)

    def set_password(self, actor: Actor, name: str, password: str, *, reason: str = "") -> Account:
        """Give an account another password; whoever is signed in as it is no longer, tokens included.

        Args:
            actor: Who does it.
            name: Whose.
            password: What ``hash_password`` returned.
            reason: Why.

        Raises:
            UsageError: There is no such account.
        """
        return self._change(
            actor, "user.password", name, reason, _any, password=password, failures=0, retry_from_s=0.0
        )

    def attempt(self, name: str) -> Attempt:
        """Return what decides a sign-in under this name."""
        with self._database.read() as connection:
            row = connection.execute(_by_name(name)).one_or_none()
        if row is None:
            return Attempt(None, None, waits=False)
        return Attempt(account_of(row), row.password, waits=self._clock() < row.retry_from_s)

    def failed(self, name: str) -> None:
        """Count a sign-in that failed: from the fifth on in a row, each doubles the wait for the next."""
        with self._database.write() as connection:
            row = connection.execute(_by_name(name)).one_or_none()
            if row is None:
                return
            failures = min(row.failures + 1, 1000)
            wait_s = (
                min(2.0 ** min(failures - FREE_FAILURES, 30), MAX_WAIT_S) if failures >= FREE_FAILURES else 0
            )
            connection.execute(
                update(accounts)
                .where(accounts.c.name == name)
                .values(failures=failures, retry_from_s=self._clock() + wait_s)
            )

    def succeeded(self, account: Account, *, rehashed: str | None = None) -> None:
        """Keep that a sign-in succeeded, and the password anew if its parameters were of yesterday."""
        values: dict[str, object] = {"signed_in_s": self._clock(), "failures": 0, "retry_from_s": 0.0}
        if rehashed is not None:
            values["password"] = rehashed
        with self._database.write() as connection:
            connection.execute(update(accounts).where(accounts.c.name == account.name).values(**values))
            self._record(connection, account.actor, "user.sign-in", account.name, "", None, None)

    def _change(
        self,
        actor: Actor,
        action: str,
        name: str,
        reason: str,
        check: Callable[[Account], None],
        **values: object,
    ) -> Account:
        with self._database.write() as connection:
            row = connection.execute(_by_name(name).with_for_update()).one_or_none()
            if row is None:
                raise UsageError(f"There is no user {name}: see  umbel user list.")
            before = account_of(row)
            check(before)
            connection.execute(update(accounts).where(accounts.c.name == name).values(**values))
            if "password" in values or values.get("status") == DISABLED:
                now_s = self._clock()
                connection.execute(sessions.delete().where(sessions.c.account == name))
                connection.execute(
                    update(api_tokens)
                    .where(api_tokens.c.account == name, api_tokens.c.revoked_s.is_(None))
                    .values(revoked_s=now_s)
                )
            after = account_of(connection.execute(_by_name(name)).one())
            self._record(connection, actor, action, name, reason, before.on_record(), after.on_record())
        return after

    def _record(
        self,
        connection: Connection,
        actor: Actor,
        action: str,
        name: str,
        reason: str,
        before: object,
        after: object,
    ) -> None:
        self._audit.append(
            connection, actor, action=action, object=f"user:{name}", reason=reason, before=before, after=after
        )


def _by_name(name: str) -> Select[tuple[object, ...]]:
    return select(accounts).where(accounts.c.name == name)


def _roles_text(roles: frozenset[Role]) -> str:
    return json.dumps(sorted(roles))


def account_of(row: Row[tuple[object, ...]]) -> Account:
    """Return the account that a row of its table says; a role of another umbel's is none here."""
    return Account(
        name=row.name,
        active=row.status == ACTIVE,
        roles=frozenset(role for role in Role if role in json.loads(row.roles)),
        has_password=row.password is not None,
        subject=row.subject,
        created_s=row.created_s,
        signed_in_s=row.signed_in_s,
    )
