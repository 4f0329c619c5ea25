"""Who took part in runs, counted in the database: a run of a large fleet has a million rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import and_, case, func, or_, select

from umbel_proto.ids import DeviceId, RunId
from umbel_server.store.database import Database
from umbel_server.store.runs import Outcome
from umbel_server.store.tables import participations, rounds, runs

SILENT = "no answer while "
"""Begins the reason of a device that did not answer in time, as secure aggregation tells it."""


@dataclass(frozen=True, slots=True)
class Turnout:
    """How many devices were in an attempt at a round.

    Args:
        summed: They are in its sum.
        charged: Their ledgers were charged, and the sum lacks them.
        dropped: They were lost before.
        silent: Of those that the sum lacks, the ones that did not answer in time: stragglers.
    """

    summed: int = 0
    charged: int = 0
    dropped: int = 0
    silent: int = 0

    @property
    def asked(self) -> int:
        """All of them."""
        return self.summed + self.charged + self.dropped


@dataclass(frozen=True, slots=True)
class Lost:
    """Why devices are not in sums.

    Args:
        outcome: ``charged`` or ``dropped``.
        reason: In the server's words.
        times: How often.
        devices: How many devices.
    """

    outcome: Outcome
    reason: str
    times: int
    devices: int


@dataclass(frozen=True, slots=True)
class Part:
    """A device's part in an attempt.

    Args:
        round: The round, from 1.
        attempt: The attempt at it, from 1.
        device: The device.
        outcome: ``summed``, ``charged`` or ``dropped``.
        reason: Why it is not in the sum; empty if it is.
    """

    round: int
    attempt: int
    device: DeviceId
    outcome: Outcome
    reason: str


class Participants:
    """The participations of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def turnout(
        self, run: RunId, *, since: int = 1, until: int | None = None, of: Collection[int] | None = None
    ) -> dict[tuple[int, int], Turnout]:
        """Return how many devices were in each attempt of a run, by round and attempt.

        Args:
            run: The run.
            since: The first round that counts.
            until: The last one; None: there is no last.
            of: Only these rounds; None: all.
        """
        key, outcome = (participations.c.round, participations.c.attempt), participations.c.outcome
        silent = case((participations.c.reason.startswith(SILENT, autoescape=True), 1), else_=0)
        counts = (func.sum(case((outcome == name, 1), else_=0)) for name in ("summed", "charged", "dropped"))
        query = select(*key, *counts, func.sum(silent)).where(
            participations.c.run_id == run, participations.c.round >= since
        )
        if until is not None:
            query = query.where(participations.c.round <= until)
        if of is not None:
            query = query.where(participations.c.round.in_(of))
        with self._database.read() as connection:
            rows = connection.execute(query.group_by(*key)).all()
        return {(row[0], row[1]): Turnout(*map(int, row[2:])) for row in rows}

    def lost(self, run: RunId) -> tuple[Lost, ...]:
        """Return why devices were not in a run's sums, the most frequent reason first."""
        times = func.count().label("times")
        key = (participations.c.outcome, participations.c.reason)
        query = (
            select(*key, times, func.count(participations.c.device_id.distinct()))
            .where(participations.c.run_id == run, participations.c.outcome != "summed")
            .group_by(*key)
            .order_by(times.desc(), *key)
        )
        with self._database.read() as connection:
            return tuple(Lost(*row) for row in connection.execute(query))

    def parts(
        self,
        run: RunId,
        *,
        limit: int,
        of: tuple[int, int] | None = None,
        outcome: Outcome | None = None,
        device: DeviceId | None = None,
        after: tuple[int, int, str] = (0, 0, ""),
    ) -> tuple[Part, ...]:
        """Return devices' parts in a run, by round, attempt and name.

        Args:
            run: The run.
            limit: At most so many.
            of: Only of this round and attempt; None: of all.
            outcome: Only with this outcome; None: with any.
            device: Only of this device; None: of all.
            after: Round, attempt and device of the last one of the page before.
        """
        table = participations.c
        query = select(participations).where(
            table.run_id == run,
            or_(
                table.round > after[0],
                and_(table.round == after[0], table.attempt > after[1]),
                and_(table.round == after[0], table.attempt == after[1], table.device_id > after[2]),
            ),
        )
        if of is not None:
            query = query.where(table.round == of[0], table.attempt == of[1])
        if outcome is not None:
            query = query.where(table.outcome == outcome)
        if device is not None:
            query = query.where(table.device_id == device)
        query = query.order_by(table.round, table.attempt, table.device_id).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return tuple(
            Part(row.round, row.attempt, DeviceId(row.device_id), row.outcome, row.reason) for row in rows
        )

    def rounds_done(self) -> dict[RunId, int]:
        """Return how many rounds of each run were opened; runs without one are left out."""
        query = (
            select(rounds.c.run_id, func.count())
            .join(runs, runs.c.id == rounds.c.run_id)
            .where(rounds.c.state == "opened")
            .group_by(rounds.c.run_id)
        )
        with self._database.read() as connection:
            return {RunId(run): count for run, count in connection.execute(query)}

    def charged(self, device: DeviceId) -> tuple[tuple[RunId, int, int], ...]:
        """Return run, round and attempt of all that a device was charged for, in their order."""
        key = (participations.c.run_id, participations.c.round, participations.c.attempt)
        query = (
            select(*key)
            .where(participations.c.device_id == device, participations.c.outcome != "dropped")
            .order_by(*key)
        )
        with self._database.read() as connection:
            return tuple((RunId(run), number, attempt) for run, number, attempt in connection.execute(query))

    def charged_devices(self, *, after: str = "", limit: int) -> tuple[DeviceId, ...]:
        """Return devices that were ever charged by name, those after one, at most ``limit``."""
        name = participations.c.device_id
        query = select(name).where(name > after, participations.c.outcome != "dropped").distinct()
        with self._database.read() as connection:
            return tuple(
                DeviceId(each) for each in connection.execute(query.order_by(name).limit(limit)).scalars()
            )
