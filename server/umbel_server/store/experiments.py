"""Experiments: what they ask, and what was decided by what was seen; each decision for good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic_core import from_json
from sqlalchemy import Connection, Row, insert, literal, select, update

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.rollouts.state import Event
from umbel_server.store.audit import MAX_REASON, Audit
from umbel_server.store.database import Database
from umbel_server.store.rollouts import OutdatedError, Rollouts
from umbel_server.store.tables import rollups
from umbel_server.store.tables_experiments import experiment_decisions, experiments
from umbel_server.store.tables_rollouts import rollout_controls

SHIP, STOP, EXTEND = "ship", "stop", "extend"
_CHUNK = 500


class Told(NamedTuple):
    """What a device reported in an hour, as the store has it.

    Args:
        device: The device.
        hour_s: Start of the hour, Unix seconds by the device's clock.
        application: Whether its application reported it, not a model.
        counters: Name to count.
        histograms: Name to the body of a histogram; empty if they were not asked for.
    """

    device: DeviceId
    hour_s: int
    application: bool
    counters: Mapping[str, int]
    histograms: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision about an experiment.

    Args:
        number: They are counted, from 1.
        at_s: When, Unix seconds.
        actor: Who decided.
        decision: ``ship``, ``stop`` or ``extend``.
        comment: Why, in their own words.
        figures: What was seen when it was decided; never changed.
    """

    number: int
    at_s: float
    actor: str
    decision: str
    comment: str
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment. Where it stands is its rollout's affair, which has the same name.

    Args:
        id: Its name.
        plan: What it shall find out.
        created_s: When it was made, Unix seconds.
        created_by: Who made it.
        ends_s: When somebody is to decide, Unix seconds.
        decisions: What was decided, the oldest first.
    """

    id: str
    plan: ExperimentPlan
    created_s: float
    created_by: str
    ends_s: float
    decisions: tuple[Decision, ...] = ()

    @property
    def final(self) -> Decision | None:
        """The decision that ended it; None: it is not decided."""
        return next((each for each in self.decisions if each.decision != EXTEND), None)


class Experiments:
    """The experiments of a store.

    Args:
        database: The database.
        audit: Where every change is recorded.
        rollouts: The rollouts that experiments are.
        clock: Dates changes.
    """

    def __init__(self, database: Database, audit: Audit, rollouts: Rollouts, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._rollouts = rollouts
        self._clock = clock

    def add(self, name: str, plan: ExperimentPlan, *, actor: Actor, reason: str = "") -> Experiment:
        """Make a rollout an experiment, before it starts."""
        now_s = self._clock()
        row = {
            "id": name,
            "plan": json.dumps(plan.to_dict()),
            "created_s": now_s,
            "created_by": actor.name,
            "ends_s": now_s + plan.days * 86400,
        }
        with self._database.write() as connection:
            connection.execute(insert(experiments).values(**row))
            self._audit.append(
                connection,
                actor,
                action="experiment.create",
                object=f"experiment:{name}",
                reason=reason[:MAX_REASON],
                after={"plan": row["plan"], "ends_s": row["ends_s"]},
            )
        return self.get(name)

    def get(self, name: str) -> Experiment:
        """Return an experiment.

        Raises:
            UsageError: There is none of that name.
        """
        found = self.find(name)
        if found is None:
            raise UsageError(f"There is no experiment {name[:80]!r}:  umbel experiment list  shows them.")
        return found

    def find(self, name: str) -> Experiment | None:
        """Return an experiment; None if there is none of that name."""
        with self._database.read() as connection:
            return _found(connection, name)

    def all(self) -> tuple[Experiment, ...]:
        """Return every experiment, the newest first."""
        query = select(experiments).order_by(experiments.c.created_s.desc(), experiments.c.id)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            decided: dict[str, list[Decision]] = {}
            for row in connection.execute(
                select(experiment_decisions).order_by(experiment_decisions.c.number)
            ):
                decided.setdefault(row.experiment_id, []).append(_decision(row))
        return tuple(_experiment(row, decided.get(row.id, ())) for row in rows)

    def decide(
        self,
        name: str,
        decision: str,
        *,
        actor: Actor,
        comment: str,
        figures: Mapping[str, Any],
        event: Event | None = None,
        ends_s: float | None = None,
        known: int | None = None,
    ) -> Experiment:
        """Put a decision on record, and let happen what follows from it: both, or neither.

        Args:
            name: The experiment.
            decision: ``ship``, ``stop`` or ``extend``.
            actor: Who decides.
            comment: Why.
            figures: What was seen.
            event: What happens to its rollout; None: nothing.
            ends_s: When somebody is to decide next; None: as before.
            known: How many decisions whoever decides had seen; None: whatever there are by now.

        Raises:
            RefusedError: It was decided before, or its rollout is not where this can happen.
            OutdatedError: Somebody else decided something since.
            UsageError: There is no such experiment, or the comment is too long.
        """
        if len(comment) > MAX_REASON:
            raise UsageError(f"The comment has {len(comment)} characters: say it in {MAX_REASON}.")
        now_s, told = self._clock(), json.dumps(figures, allow_nan=False, sort_keys=True)
        with self._database.write() as connection:
            before = _found(connection, name)
            if before is None:
                raise UsageError(f"There is no experiment {name[:80]!r}.")
            if before.final is not None:
                raise RefusedError(
                    f"{before.final.actor} decided about experiment {name} already: to {before.final.decision}."
                )
            if known is not None and known != len(before.decisions):
                raise OutdatedError(
                    f"Somebody else decided something about experiment {name} meanwhile: look again."
                )
            number = len(before.decisions) + 1
            connection.execute(
                insert(experiment_decisions).values(
                    experiment_id=name,
                    number=number,
                    at_s=now_s,
                    actor=actor.name,
                    decision=decision,
                    comment=comment,
                    figures=told,
                )
            )
            if ends_s is not None:
                connection.execute(update(experiments).where(experiments.c.id == name).values(ends_s=ends_s))
            self._audit.append(
                connection,
                actor,
                action=f"experiment.{decision}",
                object=f"experiment:{name}",
                reason=comment,
                before={"ends_s": before.ends_s},
                # The figures are bound to the log, which nobody can change unseen.
                after={
                    "number": number,
                    "ends_s": before.ends_s if ends_s is None else ends_s,
                    "figures_sha256": hashlib.sha256(told.encode()).hexdigest(),
                },
            )
            if event is not None:
                self._rollouts.happen_within(
                    connection, name, event, actor=actor, reason=comment, figures=figures.get("gates", ())
                )
        return self.get(name)

    def kept(self, name: str) -> dict[DeviceId, float]:
        """Return the devices that an experiment keeps as they are, each with when it first asked, Unix seconds."""
        query = select(rollout_controls.c.device_id, rollout_controls.c.since_s).where(
            rollout_controls.c.rollout_id == name
        )
        with self._database.read() as connection:
            return {DeviceId(device): since_s for device, since_s in connection.execute(query)}

    def rows(
        self,
        names: Sequence[DeviceId],
        *,
        model: str,
        versions: tuple[int, ...],
        since_s: float,
        until_s: float,
        application: bool,
        amounts: bool,
    ) -> Iterator[Told]:
        """Return what devices reported of two versions, hour by hour.

        Args:
            names: The devices.
            model: The model.
            versions: Its versions; none: nothing of the model is asked for.
            since_s: Hours before do not count, Unix seconds by the devices' clocks.
            until_s: Hours from then on do not either.
            application: Whether what their applications reported is asked for as well.
            amounts: Whether histograms are: they cost time.
        """
        told = (rollups.c.model == model) & rollups.c.version.in_(versions)
        if application:
            told |= rollups.c.model == ""
        columns = rollups.c.device_id, rollups.c.hour_s, rollups.c.model, rollups.c.counters
        for begin in range(0, len(names), _CHUNK):
            query = select(*columns, rollups.c.histograms if amounts else literal("{}")).where(
                rollups.c.device_id.in_(names[begin : begin + _CHUNK]),
                told,
                rollups.c.hour_s >= since_s,
                rollups.c.hour_s < until_s,
            )
            with self._database.read() as connection:
                for device, hour_s, of_model, counters, histograms in connection.execute(query):
                    yield Told(
                        DeviceId(device), hour_s, not of_model, from_json(counters), from_json(histograms)
                    )

    def randomized(self, model: str, version: int, name: str) -> bool:
        """Return whether what devices lately reported of a version tells an amount only with noise."""
        query = (
            select(rollups.c.histograms)
            .where(rollups.c.model == model, rollups.c.version == version)
            .order_by(rollups.c.hour_s.desc())
            .limit(100)
        )
        with self._database.read() as connection:
            bodies = [from_json(row).get(name) for row in connection.execute(query).scalars()]
        return any(body is not None and body.get("epsilon") is not None for body in bodies)


def _found(connection: Connection, name: str) -> Experiment | None:
    row = connection.execute(select(experiments).where(experiments.c.id == name)).one_or_none()
    if row is None:
        return None
    mine = select(experiment_decisions).where(experiment_decisions.c.experiment_id == name)
    decided = connection.execute(mine.order_by(experiment_decisions.c.number))
    return _experiment(row, map(_decision, decided))


def _experiment(row: Row[Any], decisions: Iterable[Decision]) -> Experiment:
    return Experiment(
        id=row.id,
        plan=ExperimentPlan.from_dict(json.loads(row.plan)),
        created_s=row.created_s,
        created_by=row.created_by,
        ends_s=row.ends_s,
        decisions=tuple(decisions),
    )


def _decision(row: Row[Any]) -> Decision:
    return Decision(row.number, row.at_s, row.actor, row.decision, row.comment, json.loads(row.figures))
