"""Pauses of runs: one that is paused begins no round, keeps its place, and goes on when somebody says so."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import RunId
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.store.audit import Audit, plain
from umbel_server.store.database import Database
from umbel_server.store.runs import RUNNING, RunRecord, run_of_row
from umbel_server.store.tables import rounds, runs
from umbel_server.store.tables_queries import queries


class Pauses:
    """The pauses of a store's runs.

    Args:
        database: The database.
        audit: Where every pause and its end is recorded.
        clock: Dates them.
    """

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database, self._audit, self._clock = database, audit, clock

    def begin(self, run: RunId, *, actor: Actor, reason: str) -> None:
        """Pause a run that trains: from here on it begins no round. An attempt that is running may still end.

        Raises:
            UsageError: There is no such run.
            RefusedError: It is paused already, or has ended.
        """
        with self._database.write() as connection:
            found = _found(connection, run)
            if found.state != "running":
                raise RefusedError(f"Run {run} is {_told(found)}: only one that runs can be paused.")
            self._change(connection, found, "paused", actor, reason, paused_s=self._clock(), reason=reason)

    def end(self, run: RunId, *, actor: Actor, reason: str, since_s: float | None = None) -> None:
        """Let a paused run begin rounds again.

        Args:
            run: The run.
            actor: Who lets it.
            reason: Why.
            since_s: When it was paused, as whoever decided saw it; None: whenever it was.

        Raises:
            UsageError: There is no such run.
            RefusedError: It is not paused, or has been paused anew since then.
        """
        with self._database.write() as connection:
            found = _found(connection, run)
            if found.state != "paused":
                raise RefusedError(f"Run {run} is {_told(found)}: only one that is paused can go on.")
            if since_s not in (None, found.paused_s):
                raise RefusedError(f"Run {run} was paused anew meanwhile ({found.reason}): look at it again.")
            self._change(connection, found, "running", actor, reason, paused_s=None, reason="")

    def all(self) -> tuple[RunId, ...]:
        """Return the runs that are paused, by name."""
        query = select(runs.c.id).where(runs.c.paused_s.is_not(None)).order_by(runs.c.id)
        with self._database.read() as connection:
            return tuple(RunId(name) for name in connection.execute(query).scalars())

    def left_behind(self) -> tuple[RunId, ...]:
        """Return the runs that begin no round and have a running attempt: it is coming to its end, or its server was lost."""
        query = (
            select(rounds.c.run_id)
            .join(runs, runs.c.id == rounds.c.run_id)
            .where(rounds.c.state == "running", ~RUNNING)
            .order_by(rounds.c.run_id)
        )
        with self._database.read() as connection:
            return tuple(RunId(name) for name in connection.execute(query).scalars())

    def _change(
        self, connection: Connection, found: RunRecord, to: str, actor: Actor, why: str, **values: Any
    ) -> None:
        connection.execute(update(runs).where(runs.c.id == found.id).values(**values))
        self._audit.append(
            connection,
            actor,
            action="run.pause" if to == "paused" else "run.resume",
            object=f"run:{found.id}",
            reason=plain(why),
            before={"state": found.state},
            after={"state": to},
        )


def _found(connection: Connection, run: RunId) -> RunRecord:
    trains = runs.c.id.not_in(select(queries.c.id))
    row = connection.execute(select(runs).where(runs.c.id == run, trains)).one_or_none()
    if row is None:
        raise UsageError(f"There is no run {run}.")
    return run_of_row(row)


def _told(found: RunRecord) -> str:
    said = f" ({found.reason})" if found.reason else ""
    return f"{found.state} already{said}"
