"""Rollouts: what they are, where they stand, and what happened to them; each change once, whoever tries it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import ModelName, check_name
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.rollouts.plan import RolloutPlan
from umbel_server.rollouts.state import (
    Draft,
    Event,
    Finished,
    Kept,
    Paused,
    RollBack,
    RolledBack,
    Running,
    Start,
    State,
    step,
    told,
)
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database
from umbel_server.store.tables_rollouts import baselines, leases, rollout_events, rollouts

LIVE = ("running", "paused")
_NAMES: Mapping[type[State], str] = {
    Draft: "draft",
    Running: "running",
    Paused: "paused",
    Kept: "kept",
    RolledBack: "rolled-back",
    Finished: "finished",
}
STATES = tuple(_NAMES.values())
SERVICE = Actor("service:rollouts", frozenset())
"""Who acts where a rollout's own gates do."""


class OutdatedError(RefusedError):
    """Somebody else changed the rollout meanwhile: look again."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout.

    Args:
        id: Its name.
        model: The model.
        from_version: The version that its devices come from.
        to_version: The candidate.
        plan: What it shall do.
        salt: What its draw of devices is made with.
        state: Where it stands.
        revision: Grows with every change.
        created_s: When it was made, Unix seconds.
    """

    id: str
    model: ModelName
    from_version: int
    to_version: int
    plan: RolloutPlan
    salt: str
    state: State
    revision: int
    created_s: float

    @property
    def status(self) -> str:
        """The name of its state."""
        return _NAMES[type(self.state)]

    @property
    def live(self) -> bool:
        """Whether it may still reach devices."""
        return self.status in LIVE


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of a rollout.

    Args:
        at_s: When, Unix seconds.
        actor: Who did it.
        event: What, as in ``paused``.
        reason: Why.
        figures: The verdicts that it rests on.
    """

    at_s: float
    actor: str
    event: str
    reason: str
    figures: tuple[Mapping[str, Any], ...]


class Rollouts:
    """The rollouts of a store.

    Args:
        database: The database.
        audit: Where every change is recorded.
        clock: Dates changes.
    """

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    def create(
        self, name: str, model: ModelName, versions: tuple[int, int], plan: RolloutPlan, *, actor: Actor
    ) -> Rollout:
        """Make a rollout, a draft.

        Args:
            name: Its name.
            model: The model.
            versions: The version that devices come from, and the candidate.
            plan: What it shall do.
            actor: Who makes it.

        Raises:
            RefusedError: There is one of that name.
        """
        row = {
            "id": check_name(name, "rollout"),
            "model": model,
            "from_version": versions[0],
            "to_version": versions[1],
            "plan": json.dumps(plan.to_dict()),
            # Known beforehand: a dry run shows the very devices.
            "salt": salt_of(name),
            "revision": 0,
            "created_s": self._clock(),
            **_columns(Draft(), 0.0),
        }
        try:
            with self._database.write() as connection:
                connection.execute(insert(rollouts).values(**row))
                self._audit.append(
                    connection, actor, action="rollout.create", object=f"rollout:{name}", after=_shown(row)
                )
        except IntegrityError as exc:
            raise RefusedError(f"There is a rollout {name} already: choose another name.") from exc
        return self.get(name)

    def get(self, name: str) -> Rollout:
        """Return a rollout.

        Raises:
            UsageError: There is none of that name.
        """
        with self._database.read() as connection:
            return _found(connection, name)

    def find(self, name: str) -> Rollout | None:
        """Return a rollout; None if there is none of that name."""
        with self._database.read() as connection:
            row = connection.execute(select(rollouts).where(rollouts.c.id == name)).one_or_none()
        return None if row is None else _rollout(row)

    def all(self) -> tuple[Rollout, ...]:
        """Return every rollout, the newest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(rollouts).order_by(rollouts.c.created_s.desc(), rollouts.c.id))
            return tuple(map(_rollout, rows))

    def page(self, *, after: str = "", limit: int | None = None) -> tuple[Rollout, ...]:
        """Return rollouts by name, those after one, at most ``limit``; None: all."""
        query = select(rollouts).where(rollouts.c.id > after).order_by(rollouts.c.id).limit(limit)
        with self._database.read() as connection:
            return tuple(map(_rollout, connection.execute(query)))

    def counts(self) -> dict[str, int]:
        """Return how many rollouts there are by state."""
        query = select(rollouts.c.state, func.count()).group_by(rollouts.c.state)
        with self._database.read() as connection:
            return {row.state: row[1] for row in connection.execute(query)}

    def running(self) -> tuple[Rollout, ...]:
        """Return the rollouts that are running, the oldest first."""
        query = select(rollouts).where(rollouts.c.state == "running").order_by(rollouts.c.created_s)
        with self._database.read() as connection:
            return tuple(map(_rollout, connection.execute(query)))

    def events(self, name: str) -> tuple[Happened, ...]:
        """Return what happened to a rollout, the oldest first."""
        query = select(rollout_events).where(rollout_events.c.rollout_id == name)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(rollout_events.c.number)).all()
        return tuple(
            Happened(row.at_s, row.actor, row.event, row.reason, tuple(json.loads(row.figures)))
            for row in rows
        )

    def happen(
        self,
        name: str,
        event: Event,
        *,
        actor: Actor,
        reason: str = "",
        figures: Iterable[Mapping[str, Any]] = (),
        revision: int | None = None,
    ) -> Rollout:
        """Let something happen to a rollout.

        Args:
            name: The rollout.
            event: What.
            actor: Who does it.
            reason: Why, where the event does not say.
            figures: The verdicts that it rests on.
            revision: The revision that it was decided on; None: whatever it is by now.

        Returns:
            The rollout after it.

        Raises:
            UsageError: There is no such rollout.
            OutdatedError: It was changed since that revision.
            RefusedError: It cannot happen now.
        """
        why = getattr(event, "reason", "") or reason
        try:
            with self._database.write() as connection:
                self.happen_within(
                    connection, name, event, actor=actor, reason=why, figures=figures, revision=revision
                )
        except IntegrityError as exc:
            raise RefusedError(
                f"Another rollout of {self.get(name).model} is under way: stop it first, or wait for its end."
            ) from exc
        return self.get(name)

    def happen_within(
        self,
        connection: Connection,
        name: str,
        event: Event,
        *,
        actor: Actor,
        reason: str,
        figures: Iterable[Mapping[str, Any]] = (),
        revision: int | None = None,
    ) -> None:
        """Let something happen to a rollout in the transaction of what it follows from: both happen, or neither.

        Raises:
            UsageError: There is no such rollout.
            OutdatedError: It was changed since that revision.
            RefusedError: It cannot happen now.
        """
        now_s = self._clock()
        before = _found(connection, name)
        if revision is not None and before.revision != revision:
            raise OutdatedError(f"Rollout {name} was changed meanwhile: it {told(before.state)}.")
        state = step(before.state, event, steps=len(before.plan.steps), now_s=now_s)
        number = before.revision + 1
        changed = connection.execute(
            update(rollouts)
            .where(rollouts.c.id == name, rollouts.c.revision == before.revision)
            .values(revision=number, **_columns(state, now_s))
        )
        if changed.rowcount != 1:
            raise OutdatedError(f"Rollout {name} was changed meanwhile: look again.")
        connection.execute(
            insert(rollout_events).values(
                rollout_id=name,
                number=number,
                at_s=now_s,
                actor=actor.name,
                event=type(event).__name__.lower(),
                reason=reason,
                figures=json.dumps(list(figures)),
            )
        )
        _move_baseline(connection, before, event, state, now_s)
        self._audit.append(
            connection,
            actor,
            action=f"rollout.{type(event).__name__.lower()}",
            object=f"rollout:{name}",
            reason=reason[:_AUDIT_REASON],
            before={"state": before.status},
            after={"state": _NAMES[type(state)]},
        )

    def baselines(self) -> dict[ModelName, int]:
        """Return the models whose new versions come by rollouts only, each with the version that all others get."""
        with self._database.read() as connection:
            return {ModelName(row.model): row.version for row in connection.execute(select(baselines))}

    def hold(self, model: ModelName, version: int | None, *, actor: Actor, reason: str = "") -> None:
        """Let devices get new versions of a model by rollouts only, or as they are released again.

        Args:
            model: The model.
            version: What they get until then; None: whatever is newest, at once.
            actor: Who decides it.
            reason: Why.

        Raises:
            RefusedError: A rollout of the model is under way.
        """
        with self._database.write() as connection:
            live = select(rollouts.c.id).where(rollouts.c.model == model, rollouts.c.state.in_(LIVE))
            if (name := connection.execute(live).scalar()) is not None:
                raise RefusedError(f"Rollout {name} of {model} is under way: stop it first.")
            before = connection.execute(
                select(baselines.c.version).where(baselines.c.model == model)
            ).scalar()
            _set_baseline(connection, model, version, self._clock())
            self._audit.append(
                connection,
                actor,
                action="model.hold" if version is not None else "model.unhold",
                object=f"model:{model}",
                reason=reason,
                before=before,
                after=version,
            )

    def lease(self, name: str, holder: str, *, seconds: float) -> bool:
        """Take or keep what only one process may do at a time.

        Args:
            name: What.
            holder: Random name of the process.
            seconds: For how long; another one may take it over then.

        Returns:
            Whether it is this process's now.
        """
        now_s = self._clock()
        with self._database.write() as connection:
            taken = connection.execute(
                update(leases)
                .where(leases.c.name == name, or_(leases.c.holder == holder, leases.c.until_s <= now_s))
                .values(holder=holder, until_s=now_s + seconds)
            )
            if taken.rowcount:
                return True
            if connection.execute(select(leases.c.name).where(leases.c.name == name)).scalar() is not None:
                return False
            connection.execute(insert(leases).values(name=name, holder=holder, until_s=now_s + seconds))
        return True

    def release(self, name: str, holder: str) -> None:
        """Give a lease back, so that another process need not wait for its end."""
        with self._database.write() as connection:
            connection.execute(delete(leases).where(and_(leases.c.name == name, leases.c.holder == holder)))


_AUDIT_REASON = 2000


def salt_of(name: str) -> str:
    """Return what a rollout's draw of devices is made with: another name draws others."""
    return f"rollout/{name}"


def _move_baseline(
    connection: Connection, rollout: Rollout, event: Event, state: State, now_s: float
) -> None:
    """Keep what devices get that no rollout reaches."""
    if isinstance(event, Start):
        # From now on nobody gets a newer version only because it is the newest.
        _set_baseline(connection, rollout.model, rollout.from_version, now_s)
    elif isinstance(state, Finished):
        _set_baseline(connection, rollout.model, rollout.to_version, now_s)
    elif isinstance(event, RollBack):
        present = connection.execute(
            select(baselines.c.version).where(baselines.c.model == rollout.model)
        ).scalar()
        if present == rollout.to_version:
            _set_baseline(connection, rollout.model, rollout.from_version, now_s)


def _set_baseline(connection: Connection, model: str, version: int | None, now_s: float) -> None:
    connection.execute(delete(baselines).where(baselines.c.model == model))
    if version is not None:
        connection.execute(insert(baselines).values(model=model, version=version, since_s=now_s))


def _found(connection: Connection, name: str) -> Rollout:
    row = connection.execute(select(rollouts).where(rollouts.c.id == name)).one_or_none()
    if row is None:
        raise UsageError(f"There is no rollout {name[:80]!r}:  umbel rollout list  shows them.")
    return _rollout(row)


def _columns(state: State, now_s: float) -> dict[str, Any]:
    return {
        "state": _NAMES[type(state)],
        "step": getattr(state, "step", 0),
        "since_s": now_s,
        "reason": getattr(state, "reason", ""),
    }


def _state(row: Row[Any]) -> State:
    match row.state:
        case "draft":
            return Draft()
        case "running":
            return Running(row.step, row.since_s)
        case "paused":
            return Paused(row.step, row.since_s, row.reason)
        case "kept":
            return Kept(row.step, row.since_s, row.reason)
        case "rolled-back":
            return RolledBack(row.step, row.since_s, row.reason)
        case _:
            return Finished(row.step, row.since_s)


def _rollout(row: Row[Any]) -> Rollout:
    return Rollout(
        id=row.id,
        model=ModelName(row.model),
        from_version=row.from_version,
        to_version=row.to_version,
        plan=RolloutPlan.from_dict(json.loads(row.plan)),
        salt=row.salt,
        state=_state(row),
        revision=row.revision,
        created_s=row.created_s,
    )


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("model", "from_version", "to_version", "plan")}
