"""Notices that are to be sent: an outbox. What is in it is sent at least once, by whichever process is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, exists, func, insert, select, update

from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.tables_alerts import alert_notices

WAITING, SENT, GIVEN_UP = "waiting", "sent", "given-up"


@dataclass(frozen=True, slots=True)
class Queued:
    """A notice.

    Args:
        id: Its number.
        channel: The channel that it goes to.
        rule: The rule whose alerts it tells of; None: it is a test.
        kind: ``firing``, ``resolved`` or ``test``.
        body: What it says.
        made_s: When it was to be told, Unix seconds.
        tries: How often it was tried, this time included.
        state: ``waiting``, ``sent`` or ``given-up``.
        said: Why the last try failed; empty: none did.
        done_s: When it was sent or given up; None: it waits.
    """

    id: int
    channel: str
    rule: str | None
    kind: str
    body: Mapping[str, Any]
    made_s: float
    tries: int
    state: str
    said: str
    done_s: float | None


class Notices:
    """The notices of a store.

    Args:
        database: The database.
        clock: Dates changes.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def add(self, channel: str, body: Mapping[str, Any]) -> int:
        """Let a test of a channel be sent; return its number."""
        with self._database.write() as connection:
            return enqueue(connection, channel, None, "test", body, self._clock())

    def take(self, *, hold_s: float) -> Queued | None:
        """Take the next notice to send, if there is one: nobody else gets it for so long.

        Of one rule and channel they come in their order: the end of an alert is never told before its begin.

        Args:
            hold_s: How long sending it may take, seconds; then another process may try.
        """
        now_s = self._clock()
        older = alert_notices.alias()
        behind = exists().where(
            older.c.state == WAITING,
            older.c.channel == alert_notices.c.channel,
            older.c.rule == alert_notices.c.rule,
            older.c.id < alert_notices.c.id,
        )
        due = (
            select(alert_notices)
            .where(alert_notices.c.state == WAITING, alert_notices.c.due_s <= now_s, ~behind)
            .order_by(alert_notices.c.due_s, alert_notices.c.id)
            .limit(1)
        )
        with self._database.read() as connection:
            if connection.execute(due).one_or_none() is None:
                return None
        with self._database.write() as connection:
            row = connection.execute(due).one_or_none()
            if row is None:
                return None
            connection.execute(
                update(alert_notices)
                .where(alert_notices.c.id == row.id)
                .values(due_s=now_s + hold_s, tries=row.tries + 1)
            )
        return _notice(row, tries=row.tries + 1)

    def sent(self, notice: Queued) -> None:
        """Note that a notice arrived."""
        self._end(notice, SENT, "")

    def failed(self, notice: Queued, said: str, *, again_s: float | None) -> None:
        """Note that a notice did not arrive.

        Args:
            notice: The notice.
            said: Why.
            again_s: When to try again, Unix seconds; None: never.
        """
        if again_s is None:
            self._end(notice, GIVEN_UP, said)
            return
        with self._database.write() as connection:
            connection.execute(update(alert_notices).where(_still(notice)).values(due_s=again_s, said=said))

    def recent(self, *, limit: int = 100, before: int | None = None) -> tuple[Queued, ...]:
        """Return notices, the newest first; those before a number only, if it is given."""
        query = select(alert_notices).order_by(alert_notices.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(alert_notices.c.id < before)
        with self._database.read() as connection:
            return tuple(_notice(row, tries=row.tries) for row in connection.execute(query))

    def waiting(self) -> int:
        """Return how many wait."""
        query = select(func.count()).where(alert_notices.c.state == WAITING)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def prune(self, *, before_s: float) -> int:
        """Forget notices that were done before a time; return how many."""
        with self._database.write() as connection:
            return connection.execute(
                delete(alert_notices).where(
                    alert_notices.c.state != WAITING, alert_notices.c.done_s < before_s
                )
            ).rowcount

    def _end(self, notice: Queued, state: str, said: str) -> None:
        with self._database.write() as connection:
            connection.execute(
                update(alert_notices)
                .where(_still(notice))
                .values(state=state, said=said, done_s=self._clock())
            )


def enqueue(
    connection: Connection, channel: str, rule: str | None, kind: str, body: Mapping[str, Any], now_s: float
) -> int:
    """Put a notice into the outbox in the transaction of what it tells of; return its number."""
    made = connection.execute(
        insert(alert_notices).values(
            channel=channel,
            rule=rule,
            kind=kind,
            body=json.dumps(dict(body), allow_nan=False),
            made_s=now_s,
            due_s=now_s,
            tries=0,
            state=WAITING,
            said="",
        )
    )
    key = made.inserted_primary_key
    assert key is not None
    return int(key[0])


def last_told(connection: Connection, channel: str, rule: str) -> float:
    """Return when a channel was last to be told that something of a rule fires, Unix seconds; 0: never."""
    query = select(func.max(alert_notices.c.made_s)).where(
        alert_notices.c.channel == channel, alert_notices.c.rule == rule, alert_notices.c.kind == "firing"
    )
    return float(connection.execute(query).scalar() or 0.0)


def _still(notice: Queued) -> Any:
    """Whoever took it since has it now: what happened to an earlier try changes nothing."""
    return and_(
        alert_notices.c.id == notice.id,
        alert_notices.c.state == WAITING,
        alert_notices.c.tries == notice.tries,
    )


def _notice(row: Row[Any], *, tries: int) -> Queued:
    return Queued(
        id=row.id,
        channel=row.channel,
        rule=row.rule,
        kind=row.kind,
        body=json.loads(row.body),
        made_s=row.made_s,
        tries=tries,
        state=row.state,
        said=row.said,
        done_s=row.done_s,
    )
