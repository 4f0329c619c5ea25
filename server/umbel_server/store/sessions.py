"""Sessions: who is signed in with a browser. The secret is in its cookie; here is a hash of it."""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import delete, insert, or_, select, update

from umbel_server.clock import Clock
from umbel_server.store.accounts import ACTIVE, Account, account_of
from umbel_server.store.database import Database
from umbel_server.store.tables_access import accounts, sessions

LIFE_S = 12 * 3600.0
"""A working day: afterwards somebody signs in again, busy or not."""
IDLE_S = 3600.0
"""After so long without a request a session is over: a screen left alone."""
_SEEN_EVERY_S = 60.0


class Sessions:
    """The sessions of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def open(self, account: Account) -> str:
        """Begin a session, and return the secret for its cookie; what has ended is forgotten."""
        secret, now_s = secrets.token_urlsafe(32), self._clock()
        row = {
            "hash": _hash(secret),
            "account": account.name,
            "created_s": now_s,
            "seen_s": now_s,
            "expires_s": now_s + LIFE_S,
        }
        over = or_(sessions.c.expires_s <= now_s, sessions.c.seen_s <= now_s - IDLE_S)
        with self._database.write() as connection:
            connection.execute(delete(sessions).where(over))
            connection.execute(insert(sessions).values(row))
        return secret

    def find(self, secret: str, *, busy: bool = True) -> Account | None:
        """Return who is signed in with this secret; None if nobody is, or no more.

        Args:
            secret: What the cookie holds.
            busy: Whether somebody asks; not a screen that refreshes itself, which would never be left alone.
        """
        now_s, wanted = self._clock(), _hash(secret)
        query = (
            select(accounts, sessions.c.seen_s)
            .join(sessions, sessions.c.account == accounts.c.name)
            .where(
                sessions.c.hash == wanted,
                sessions.c.expires_s > now_s,
                sessions.c.seen_s > now_s - IDLE_S,
                accounts.c.status == ACTIVE,
            )
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if busy and now_s - row.seen_s >= _SEEN_EVERY_S:
            with self._database.write() as connection:
                connection.execute(update(sessions).where(sessions.c.hash == wanted).values(seen_s=now_s))
        return account_of(row)

    def close(self, secret: str) -> None:
        """End a session; again is no error."""
        with self._database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.hash == _hash(secret)))


def _hash(secret: str) -> bytes:
    # Whoever guesses steers no index with it: it is looked up by a hash of what they send.
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
