"""The attempts at a run's rounds that are over, a few at a time: a run of years has more than a page can show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select, tuple_

from umbel_proto.ids import ModelName, RunId
from umbel_server.store.database import Database
from umbel_server.store.runs import RoundRecord, round_of_row
from umbel_server.store.tables import rounds, runs


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a run is.

    Args:
        attempts: How many attempts at its rounds are over.
        opened: How many of them were opened: its rounds that are done.
        learned: Figures of the last one that was opened; none: none was.
        spent: Figures of the last one that says what devices have spent; none: none does.
    """

    attempts: int
    opened: int
    learned: Mapping[str, Any]
    spent: Mapping[str, Any]


class Attempts:
    """The attempts of a store that are over, without who was in them.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def reached(self, run: RunId) -> Reached:
        """Return how far a run is, from its last attempts alone."""
        counts = select(func.count(), func.count().filter(rounds.c.state == "opened"))
        newest = _of(run).order_by(rounds.c.round.desc(), rounds.c.attempt.desc()).limit(1)
        says = newest.where(rounds.c.figures.contains('"epsilon_server"', autoescape=True))
        with self._database.read() as connection:
            over, opened = connection.execute(
                counts.where(rounds.c.run_id == run, rounds.c.state != "running")
            ).one()
            learned = connection.execute(newest.where(rounds.c.state == "opened")).one_or_none()
            spent = connection.execute(says).one_or_none()
        return Reached(
            attempts=over,
            opened=opened,
            learned={} if learned is None else json.loads(learned.figures),
            spent={} if spent is None else json.loads(spent.figures),
        )

    def newest(
        self, run: RunId, *, before: tuple[int, int] | None = None, limit: int
    ) -> tuple[RoundRecord, ...]:
        """Return a page of a run's attempts, the last first.

        Args:
            run: The run.
            before: Round and attempt of the last one of the page before; None: the first page.
            limit: At most so many.
        """
        query = _of(run).order_by(rounds.c.round.desc(), rounds.c.attempt.desc()).limit(limit)
        if before is not None:
            query = query.where(tuple_(rounds.c.round, rounds.c.attempt) < before)
        with self._database.read() as connection:
            return tuple(round_of_row(row) for row in connection.execute(query))

    def every(self, run: RunId, step: int) -> tuple[RoundRecord, ...]:
        """Return every so many-th round of a run with all its attempts, and always the last one, in their order.

        Args:
            run: The run.
            step: Which: round ``step``, the next so many later, and so on; 1: all.
        """
        last = select(func.max(rounds.c.round)).where(rounds.c.run_id == run, rounds.c.state != "running")
        query = _of(run).order_by(rounds.c.round, rounds.c.attempt)
        if step > 1:
            query = query.where((rounds.c.round % step == 0) | (rounds.c.round == last.scalar_subquery()))
        with self._database.read() as connection:
            return tuple(round_of_row(row) for row in connection.execute(query))

    def opened(self, model: ModelName, *, since_s: float) -> tuple[tuple[RunId, float], ...]:
        """Return the rounds of a model's runs whose sum was opened since: run, and when, the oldest first."""
        query = (
            select(rounds.c.run_id, rounds.c.finished_s)
            .join(runs, runs.c.id == rounds.c.run_id)
            .where(runs.c.model == model, rounds.c.state == "opened", rounds.c.finished_s >= since_s)
            .order_by(rounds.c.finished_s, rounds.c.run_id)
        )
        with self._database.read() as connection:
            return tuple((RunId(run), at_s) for run, at_s in connection.execute(query))


def _of(run: RunId) -> Select[Any]:
    return select(rounds).where(rounds.c.run_id == run, rounds.c.state != "running")
