"""Queries: what the fleet was asked, by whom and what for, and what it answered. Each is a run of one round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Row, Select, insert, select, update
from sqlalchemy.exc import IntegrityError

from umbel_proto.analytics.query import Query
from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName, RunId
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database
from umbel_server.store.runs import ITSELF
from umbel_server.store.tables import runs
from umbel_server.store.tables_queries import queries


@dataclass(frozen=True, slots=True)
class QueryRecord:
    """A query. Times are Unix seconds.

    Args:
        id: Its name, and its run's.
        kind: ``histogram``, ``mean``, ``quantile`` or ``fairness``.
        model: Whose examples it is about.
        plan: JSON: the question and how it is put, as it was asked.
        asked_by: Who asked.
        why: What for.
        signed: As the fleet's authority signed it.
        state: Where it stands.
        reason: Why it ended; empty while running.
        created_s: When it was asked.
        finished_s: When it ended; None while running.
        result: The answer with its intervals; None: there is none.
    """

    id: RunId
    kind: str
    model: ModelName
    plan: str
    asked_by: str
    why: str
    signed: bytes = field(repr=False)
    state: Literal["running", "finished", "stopped", "failed"]
    reason: str
    created_s: float
    finished_s: float | None
    result: Mapping[str, Any] | None


class Queries:
    """The queries of a store.

    Args:
        database: The database.
        audit: Where every question is recorded.
        clock: Dates them.
    """

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database, self._audit, self._clock = database, audit, clock

    def ask(self, query: Query, signed: bytes, plan: str, *, actor: Actor) -> None:
        """Put a query on record, before any device hears of it.

        Args:
            query: The question.
            signed: As the authority signed it.
            plan: JSON: the question and how it is put.
            actor: Who asks.

        Raises:
            UsageError: The name is taken.
        """
        run = {"id": query.id, "model": query.model, "plan": plan, "state": "running", "reason": ""}
        row = {"id": query.id, "kind": query.kind, "asked_by": actor.name, "why": query.why, "signed": signed}
        try:
            with self._database.write() as connection:
                connection.execute(insert(runs).values(created_s=self._clock(), **run))
                connection.execute(insert(queries).values(**row))
                self._audit.append(
                    connection,
                    actor,
                    action="query.ask",
                    object=f"query:{query.id}",
                    reason=query.why,
                    after={
                        "asks": query.sentence,
                        "kind": query.kind,
                        "query_sha256": hashlib.sha256(signed).hexdigest(),
                    },
                )
        except IntegrityError as exc:
            raise UsageError(f"There is already a run or query {query.id}: choose another name.") from exc

    def get(self, name: RunId) -> QueryRecord | None:
        """Return a query; None if there is none of that name."""
        with self._database.read() as connection:
            row = connection.execute(_SELECT.where(queries.c.id == name)).one_or_none()
        return None if row is None else _record(row)

    def all(self) -> tuple[QueryRecord, ...]:
        """Return every query, the oldest first."""
        with self._database.read() as connection:
            return tuple(map(_record, connection.execute(_SELECT.order_by(runs.c.created_s, runs.c.id))))

    def running(self) -> tuple[RunId, ...]:
        """Return the names of the queries that have not ended."""
        with self._database.read() as connection:
            found = connection.execute(
                select(queries.c.id).join(runs, runs.c.id == queries.c.id).where(runs.c.state == "running")
            )
            return tuple(RunId(name) for name in found.scalars())

    def answer(self, name: RunId, result: Mapping[str, Any]) -> None:
        """End a running query with its answer: both, or neither.

        Raises:
            UsageError: There is no such query, or it has ended.
        """
        now_s, told = self._clock(), json.dumps(result, allow_nan=False)
        with self._database.write() as connection:
            ended = connection.execute(
                update(runs)
                .where(runs.c.id == name, runs.c.state == "running")
                .values(state="finished", reason="", finished_s=now_s)
            )
            if ended.rowcount != 1:
                raise UsageError(f"There is no running query {name}.")
            connection.execute(
                update(queries).where(queries.c.id == name).values(result=told, answered_s=now_s)
            )
            self._audit.append(
                connection,
                ITSELF,
                action="query.answer",
                object=f"query:{name}",
                before={"state": "running"},
                after={"state": "finished", "result_sha256": hashlib.sha256(told.encode()).hexdigest()},
            )


_SELECT: Select[Any] = select(
    queries.c.id,
    queries.c.kind,
    runs.c.model,
    runs.c.plan,
    queries.c.asked_by,
    queries.c.why,
    queries.c.signed,
    runs.c.state,
    runs.c.reason,
    runs.c.created_s,
    runs.c.finished_s,
    queries.c.result,
).join(runs, runs.c.id == queries.c.id)


def _record(row: Row[Any]) -> QueryRecord:
    return QueryRecord(
        RunId(row.id),
        row.kind,
        ModelName(row.model),
        row.plan,
        row.asked_by,
        row.why,
        bytes(row.signed),
        row.state,
        row.reason,
        row.created_s,
        row.finished_s,
        None if row.result is None else json.loads(row.result),
    )
