"""The audit chain: who did what to what, why, and how it was before; each entry bound to the one before it.

Source: docs/spec/audit.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Row, Select, insert, or_, select

from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.tables_audit import audit

LABEL = "umbel/1/audit"
FIRST_PREVIOUS = bytes(32)
MAX_NAME, MAX_ACTION, MAX_REASON = 255, 63, 2000
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the audit log.

    Args:
        sequence: Its number, from 1.
        time_ms: When it was done, Unix milliseconds.
        actor: Who did it.
        action: What was done, as in ``device.revoke``.
        object: To what, as in ``device:rose``.
        reason: Why, in the actor's words.
        before: Canonical JSON: how it was.
        after: Canonical JSON: how it is since.
        previous: Hash of the entry before, 32 bytes.
        hash: Hash of this one, 32 bytes.
    """

    sequence: int
    time_ms: int
    actor: str
    action: str
    object: str
    reason: str
    before: str
    after: str
    previous: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Sought:
    """Which entries somebody wants to see; None: any.

    Args:
        actor: Of whom.
        action: A whole action, or its first word: ``device`` is each ``device.…``.
        object: Of what.
        since_s: From when on, Unix seconds.
        until_s: Before when.
    """

    actor: str | None = None
    action: str | None = None
    object: str | None = None
    since_s: float | None = None
    until_s: float | None = None


class Audit:
    """The audit log of a store. There is no way to change or delete an entry."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def append(
        self,
        connection: Connection,
        actor: Actor,
        *,
        action: str,
        object: str,  # noqa: A002  # The word that people who read audit logs know.
        reason: str = "",
        before: object = None,
        after: object = None,
    ) -> Entry:
        """Append an entry in the transaction of the change itself: both are kept, or neither.

        Args:
            connection: That of ``database.write()``.
            actor: Who does it.
            action: What is done, as in ``device.revoke``.
            object: To what, as in ``device:rose``.
            reason: Why, in the actor's words.
            before: How it was, anything that JSON can say; None: it was not. Never a secret.
            after: How it is from now on; None: it is no more. Never a secret.

        Raises:
            UsageError: A text is too long, or holds what a database cannot keep.
        """
        for what, value, longest in (
            ("actor", actor.name, MAX_NAME),
            ("action", action, MAX_ACTION),
            ("object", object, MAX_NAME),
            ("reason", reason, MAX_REASON),
        ):
            check_text(value, what, longest)
        # Changes come one after the other, on PostgreSQL too: nobody else sees the same head.
        head = connection.execute(_newest()).one_or_none()
        fields = (
            1 if head is None else head.sequence + 1,
            round(self._clock() * 1000),
            actor.name,
            action,
            object,
            reason,
            canonical(before),
            canonical(after),
            FIRST_PREVIOUS if head is None else head.hash,
        )
        entry = Entry(*fields, entry_hash(*fields))
        connection.execute(insert(audit).values({name: getattr(entry, name) for name in Entry.__slots__}))
        return entry

    def record(
        self,
        actor: Actor,
        *,
        action: str,
        object: str,  # noqa: A002  # As above.
        reason: str = "",
        before: object = None,
        after: object = None,
    ) -> Entry:
        """Append an entry on something that is no change of the store: a file, or a look at what is sensitive."""
        with self._database.write() as connection:
            return self.append(
                connection, actor, action=action, object=object, reason=reason, before=before, after=after
            )

    def newest(self) -> Entry | None:
        """Return the newest entry; None if nothing was ever done."""
        with self._database.read() as connection:
            row = connection.execute(_newest()).one_or_none()
        return None if row is None else _entry(row)

    def latest(self, sought: Sought, *, limit: int, before: int | None = None) -> tuple[Entry, ...]:
        """Return entries, the newest first.

        Args:
            sought: Which ones.
            limit: At most so many.
            before: Only those with lower numbers: the last number of the page before.
        """
        query = _matching(sought).order_by(audit.c.sequence.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.sequence < before)
        with self._database.read() as connection:
            return tuple(_entry(row) for row in connection.execute(query))

    def get(self, sequence: int) -> Entry | None:
        """Return the entry of a number; None if there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(audit).where(audit.c.sequence == sequence)).one_or_none()
        return None if row is None else _entry(row)

    def all(self, sought: Sought = Sought(), *, after: int | None = None) -> Iterator[Entry]:
        """Yield entries, the oldest first, without holding more than a page of them.

        Args:
            sought: Which ones.
            after: Only those with higher numbers.
        """
        while True:
            query = _matching(sought).order_by(audit.c.sequence).limit(_PAGE)
            if after is not None:
                query = query.where(audit.c.sequence > after)
            with self._database.read() as connection:
                page = [_entry(row) for row in connection.execute(query)]
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].sequence


def entry_hash(*fields: bytes | str | int) -> bytes:
    """Return what binds an entry: SHA-256 over its fields but the hash, in their order, 32 bytes."""
    return digest(LABEL, *fields)


def canonical(value: object) -> str:
    """Return a value as JSON with its keys in order and without spaces: equal values, equal bytes.

    Raises:
        UsageError: JSON cannot say it.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"The audit log cannot keep this as JSON: {exc}.") from exc


def check_text(value: str, what: str, longest: int) -> None:
    """Check a text that goes on record.

    Raises:
        UsageError: It is too long, or holds what a database cannot keep.
    """
    if len(value) > longest:
        raise UsageError(f"The {what} has {len(value)} characters: at most {longest} are kept.")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise UsageError(f"The {what} holds a character that cannot be kept: write it without.")


def plain(text: str) -> str:
    """Return a machine's words, as those of an error, in a form that the log keeps."""
    return "".join(each if each.isprintable() else " " for each in text)[:MAX_REASON]


def _newest() -> Select[tuple[object, ...]]:
    return select(audit).order_by(audit.c.sequence.desc()).limit(1)


def _matching(sought: Sought) -> Select[tuple[object, ...]]:
    query = select(audit)
    if sought.actor is not None:
        query = query.where(audit.c.actor == sought.actor)
    if sought.action is not None:
        kind = audit.c.action.startswith(f"{sought.action}.", autoescape=True)
        query = query.where(or_(audit.c.action == sought.action, kind))
    if sought.object is not None:
        query = query.where(audit.c.object == sought.object)
    if sought.since_s is not None:
        query = query.where(audit.c.time_ms >= round(sought.since_s * 1000))
    if sought.until_s is not None:
        query = query.where(audit.c.time_ms < round(sought.until_s * 1000))
    return query


def _entry(row: Row[tuple[object, ...]]) -> Entry:
    return Entry(**row._mapping)
