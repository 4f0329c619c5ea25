"""Runs: what was trained, round by round, and who took part. The truth that exporters read.

An attempt at a round is on record from its beginning, so that a server that is killed in it leaves
behind that there was one, and who was charged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, Row, and_, delete, func, insert, literal, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, ModelName, RunId, check_name
from umbel_server.access.actor import Actor, local_actor
from umbel_server.clock import Clock
from umbel_server.store.audit import Audit, plain
from umbel_server.store.database import Database
from umbel_server.store.tables import participations, rounds, runs
from umbel_server.store.tables_queries import queries

RunState = Literal["running", "paused", "finished", "stopped", "failed"]
LIVE: tuple[RunState, ...] = ("running", "paused")
"""Of a run that has not ended: it holds its place, and what it may still ask of budgets."""
RoundState = Literal["opened", "aborted"]
Phase: TypeAlias = str  # As its masking engine calls it.
Outcome = Literal["summed", "charged", "dropped"]

ITSELF = Actor("service:runs", frozenset())
"""Who ends a run when nobody does."""
UNENDED = "the round never ended"
"""The reason of devices that were asked for their updates, until the round says another."""


class NotRunningError(RefusedError):
    """The run begins no round: it is paused, or has ended."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run.

    Args:
        id: Its name.
        model: The model it trains.
        plan: JSON: the plan as it was approved.
        state: Where it stands.
        reason: Why it ended or is paused; empty while running.
        created_s: When it was created, Unix seconds.
        finished_s: When it ended; None before.
        paused_s: When it was paused; None: it is not.
    """

    id: RunId
    model: ModelName
    plan: str
    state: RunState
    reason: str
    created_s: float
    finished_s: float | None
    paused_s: float | None = None


@dataclass(frozen=True, slots=True)
class Participation:
    """A device's part in a round.

    Args:
        device: The device.
        outcome: ``summed``: it is in the sum; ``charged``: its ledger was charged, but the sum
            lacks it; ``dropped``: it was lost before that.
        reason: Why it is not in the sum; empty if it is.
    """

    device: DeviceId
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One attempt at a round, when it is over.

    Args:
        run: The run.
        round: The round, from 1.
        attempt: The attempt at it, from 1.
        state: ``opened`` if its sum was used.
        started_s: When it began, Unix seconds.
        finished_s: When it ended, Unix seconds.
        reason: Why it was aborted; empty if opened.
        figures: What it cost and gave: JSON values under names that carry units. A number that is
            not finite comes back as None, as JSON has no word for it.
        participations: Who took part.
    """

    run: RunId
    round: int
    attempt: int
    state: RoundState
    started_s: float
    finished_s: float
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    participations: tuple[Participation, ...] = ()


@dataclass(frozen=True, slots=True)
class RunningAttempt:
    """An attempt at a round that has not ended.

    Args:
        run: The run.
        round: The round, from 1.
        attempt: The attempt at it, from 1.
        phase: The last phase that began.
        started_s: When it began, Unix seconds.
        charged: The devices asked for their updates so far.
    """

    run: RunId
    round: int
    attempt: int
    phase: Phase
    started_s: float
    charged: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """How often a device took part in a run: the service's side of the devices' own ledgers.

    Args:
        device: The device.
        run: The run.
        summed: Rounds whose sum has it.
        charged: Rounds that its ledger was charged for, but whose sum lacks it.
        dropped: Rounds it was lost in before its ledger was charged.
    """

    device: DeviceId
    run: RunId
    summed: int
    charged: int
    dropped: int


class Runs:
    """The runs of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._audit = Audit(database, clock)

    def create(
        self, run: RunId, model: ModelName, plan: str, *, actor: Actor | None = None, reason: str = ""
    ) -> RunRecord:
        """Begin a run with a plan, JSON; its actor is by default whoever runs this process.

        Raises:
            UsageError: The name is taken, or is not a name.
        """
        check_name(run, "run")
        values = {"id": run, "model": model, "plan": plan, "state": "running", "reason": ""}
        try:
            with self._database.write() as connection:
                connection.execute(insert(runs).values(created_s=self._clock(), **values))
                made = run_of_row(connection.execute(select(runs).where(runs.c.id == run)).one())
                self._audit.append(
                    connection,
                    actor or local_actor(),
                    action="run.start",
                    object=f"run:{run}",
                    reason=reason,
                    after={"model": model, "plan": hashlib.sha256(plan.encode()).hexdigest()},
                )
                return made
        except IntegrityError as exc:
            raise UsageError(f"There is already a run {run}: choose another name.") from exc

    def get(self, run: RunId) -> RunRecord | None:
        """Return a run that trains; None if there is none of that name."""
        with self._database.read() as connection:
            row = connection.execute(_TRAINING.where(runs.c.id == run)).one_or_none()
        return None if row is None else run_of_row(row)

    def all(self) -> tuple[RunRecord, ...]:
        """Return every run that trains, oldest first; queries are runs of their own table."""
        with self._database.read() as connection:
            return tuple(map(run_of_row, connection.execute(_TRAINING.order_by(runs.c.created_s, runs.c.id))))

    def page(self, *, after: str = "", limit: int | None = None) -> tuple[RunRecord, ...]:
        """Return runs that train by name, those after one, at most ``limit``; None: all."""
        query = _TRAINING.where(runs.c.id > after).order_by(runs.c.id).limit(limit)
        with self._database.read() as connection:
            return tuple(map(run_of_row, connection.execute(query)))

    def driven(self) -> tuple[RunId, ...]:
        """Return what wants a server process, the oldest first: runs that train and are not paused, and queries."""
        query = select(runs.c.id).where(RUNNING).order_by(runs.c.created_s, runs.c.id)
        with self._database.read() as connection:
            return tuple(RunId(name) for name in connection.execute(query).scalars())

    def begin_round(self, run: RunId, number: int, attempt: int) -> None:
        """Put an attempt at a round on record, before anyone hears of it.

        Raises:
            NotRunningError: The run is paused, or has ended.
            UsageError: The run is unknown, an attempt of it is running, or this one is on record already.
        """
        row = {"run_id": run, "round": number, "attempt": attempt, "state": "running", "phase": "train"}
        try:
            with self._database.write() as connection:
                _require_running(connection, run)
                connection.execute(
                    insert(rounds).values(started_s=self._clock(), reason="", figures="{}", **row)
                )
        except IntegrityError as exc:
            raise UsageError(
                f"Attempt {attempt} at round {number} of run {run} cannot begin: the run is unknown, another "
                "attempt is running, or it is on record already."
            ) from exc

    def require_running(self, run: RunId) -> None:
        """Say so if a run is to begin no round; otherwise do nothing.

        Raises:
            NotRunningError: It is paused, or has ended.
        """
        with self._database.read() as connection:
            _require_running(connection, run)

    def enter_phase(
        self, run: RunId, number: int, attempt: int, phase: Phase, charged: Iterable[DeviceId] = ()
    ) -> None:
        """Note that a phase of a running attempt begins, before its requests are sent.

        Args:
            run: The run.
            number: The round.
            attempt: The attempt.
            phase: The phase.
            charged: Devices that are now asked for their updates: from here on they count as charged.

        Raises:
            UsageError: No such attempt is running.
        """
        key = {"run_id": run, "round": number, "attempt": attempt}
        parts = [{**key, "device_id": name, "outcome": "charged", "reason": UNENDED} for name in charged]
        with self._database.write() as connection:
            _change(connection, run, number, attempt, phase=phase)
            if parts:
                connection.execute(insert(participations), parts)

    def end_round(self, record: RoundRecord) -> None:
        """Keep how a running attempt ended and who took part: all of it or, if this raises, nothing.

        Raises:
            UsageError: No such attempt is running, or a device is named twice.
        """
        key = {"run_id": record.run, "round": record.round, "attempt": record.attempt}
        parts = [
            {**key, "device_id": part.device, "outcome": part.outcome, "reason": part.reason}
            for part in record.participations
        ]
        try:
            with self._database.write() as connection:
                _change(
                    connection,
                    record.run,
                    record.round,
                    record.attempt,
                    state=record.state,
                    reason=record.reason,
                    figures=json.dumps(_json(dict(record.figures)), allow_nan=False),
                    started_s=record.started_s,
                    finished_s=record.finished_s,
                )
                connection.execute(delete(participations).filter_by(**key))
                if parts:
                    connection.execute(insert(participations), parts)
        except IntegrityError as exc:
            raise UsageError(
                f"Attempt {record.attempt} at round {record.round} of run {record.run} cannot be kept: "
                "a device is in it twice."
            ) from exc

    def running_attempt(self, run: RunId) -> RunningAttempt | None:
        """Return the attempt of a run that has not ended; None if there is none."""
        with self._database.read() as connection:
            row = connection.execute(
                select(rounds).where(rounds.c.run_id == run, rounds.c.state == "running")
            ).one_or_none()
            if row is None:
                return None
            devices = connection.execute(
                select(participations.c.device_id)
                .filter_by(run_id=run, round=row.round, attempt=row.attempt)
                .order_by(participations.c.device_id)
            ).scalars()
            charged = tuple(map(DeviceId, devices))
        return RunningAttempt(run, row.round, row.attempt, row.phase, row.started_s, charged)

    def abandon(self, run: RunId, why: str) -> None:
        """End a run's running attempt, if it has one, as aborted; whom it charged stays charged.

        Args:
            run: The run.
            why: The beginning of the reason; the phase is its end.
        """
        reason = literal(f"{why} in phase ") + rounds.c.phase
        with self._database.write() as connection:
            connection.execute(
                update(rounds)
                .filter_by(run_id=run, state="running")
                .values(state="aborted", reason=reason, finished_s=self._clock())
            )

    def rounds(self, run: RunId, *, with_devices: bool = True) -> tuple[RoundRecord, ...]:
        """Return the attempts of a run that have ended, by round and attempt.

        Args:
            run: The run.
            with_devices: Whether to say who took part, a row for each device and attempt.
        """
        parts: dict[tuple[int, int], list[Participation]] = {}
        query = select(participations).where(participations.c.run_id == run)
        with self._database.read() as connection:
            took_part = connection.execute(query.order_by(participations.c.device_id)) if with_devices else ()
            for row in took_part:
                part = Participation(DeviceId(row.device_id), row.outcome, row.reason)
                parts.setdefault((row.round, row.attempt), []).append(part)
            rows = connection.execute(
                select(rounds)
                .where(rounds.c.run_id == run, rounds.c.state != "running")
                .order_by(rounds.c.round, rounds.c.attempt)
            ).all()
        return tuple(round_of_row(row, tuple(parts.get((row.round, row.attempt), ()))) for row in rows)

    def attempts(
        self, run: RunId, *, after: tuple[int, int] = (0, 0), limit: int, with_devices: bool = True
    ) -> tuple[RoundRecord, ...]:
        """Return a page of what ``rounds`` does.

        Args:
            run: The run.
            after: Round and attempt of the last one of the page before.
            limit: At most so many.
            with_devices: Whether to say who took part, a row for each device and attempt of the page.
        """
        place = tuple_(rounds.c.round, rounds.c.attempt)
        query = (
            select(rounds)
            .where(rounds.c.run_id == run, rounds.c.state != "running", place > after)
            .order_by(rounds.c.round, rounds.c.attempt)
            .limit(limit)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            parts: dict[tuple[int, int], list[Participation]] = {}
            if rows and with_devices:
                took_part = select(participations).where(
                    participations.c.run_id == run,
                    tuple_(participations.c.round, participations.c.attempt) > after,
                    tuple_(participations.c.round, participations.c.attempt)
                    <= (rows[-1].round, rows[-1].attempt),
                )
                for row in connection.execute(took_part.order_by(participations.c.device_id)):
                    part = Participation(DeviceId(row.device_id), row.outcome, row.reason)
                    parts.setdefault((row.round, row.attempt), []).append(part)
        return tuple(round_of_row(row, tuple(parts.get((row.round, row.attempt), ()))) for row in rows)

    def finish(
        self,
        run: RunId,
        state: Literal["finished", "stopped", "failed"],
        reason: str,
        *,
        actor: Actor = ITSELF,
    ) -> None:
        """End a run, paused or not, with the reason. An attempt that is running may still end.

        Raises:
            UsageError: It is unknown or has ended.
        """
        with self._database.write() as connection:
            before = _state(connection, run)
            if before not in LIVE:
                raise UsageError(f"There is no running run {run}.")
            values = {"state": state, "reason": reason, "finished_s": self._clock(), "paused_s": None}
            connection.execute(update(runs).where(runs.c.id == run).values(**values))
            self._audit.append(
                connection,
                actor,
                action="run.stop" if state == "stopped" else "run.end",
                object=f"run:{run}",
                reason=plain(reason),
                before={"state": before},
                after={"state": state},
            )

    def ledger(self, devices: Collection[DeviceId] | None = None) -> tuple[LedgerLine, ...]:
        """Return how often each device took part in each run, by device and run, attempts still running too.

        Args:
            devices: Only these, a page of them; None: all, a row of each that ever took part.
        """
        outcome = participations.c.outcome
        key = (participations.c.device_id, participations.c.run_id)
        counts = (func.count().filter(outcome == name) for name in ("summed", "charged", "dropped"))
        query = select(*key, *counts).group_by(*key).order_by(*key)
        if devices is not None:
            query = query.where(participations.c.device_id.in_(devices))
        with self._database.read() as connection:
            return tuple(LedgerLine(*row) for row in connection.execute(query))


RUNNING = and_(runs.c.state == "running", runs.c.paused_s.is_(None))
"""Of runs that begin rounds."""
_TRAINING = select(runs).where(runs.c.id.not_in(select(queries.c.id)))


def _state(connection: Connection, run: RunId) -> RunState | None:
    row = connection.execute(select(runs).where(runs.c.id == run)).one_or_none()
    return None if row is None else run_of_row(row).state


def _require_running(connection: Connection, run: RunId) -> None:
    state = _state(connection, run)
    if state not in ("running", None):
        raise NotRunningError(f"Run {run} is {state}: it begins no round.")


def _change(connection: Connection, run: RunId, number: int, attempt: int, **values: object) -> None:
    changed = connection.execute(
        update(rounds).filter_by(run_id=run, round=number, attempt=attempt, state="running").values(**values)
    )
    if changed.rowcount != 1:
        raise UsageError(f"Attempt {attempt} at round {number} of run {run} is not running.")


def _json(value: Any) -> Any:
    match value:
        case dict():
            return {str(name): _json(item) for name, item in value.items()}
        case list() | tuple():
            return [_json(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def run_of_row(row: Row[Any]) -> RunRecord:
    """Return a run of its row."""
    return RunRecord(
        RunId(row.id),
        ModelName(row.model),
        row.plan,
        row.state if row.paused_s is None else "paused",
        row.reason,
        row.created_s,
        row.finished_s,
        row.paused_s,
    )


def round_of_row(row: Row[Any], parts: tuple[Participation, ...] = ()) -> RoundRecord:
    """Return an attempt of its row, with who was in it."""
    return RoundRecord(
        run=RunId(row.run_id),
        round=row.round,
        attempt=row.attempt,
        state=row.state,
        started_s=row.started_s,
        finished_s=row.finished_s,
        reason=row.reason,
        figures=json.loads(row.figures),
        participations=parts,
    )
