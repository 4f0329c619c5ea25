"""Schedules in the store: which runs are to begin by themselves, and when."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import Any, Literal

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import ModelName, RunId, check_name
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database
from umbel_server.store.tables import devices, rollups
from umbel_server.store.tables_schedules import schedules

HOUR_S = 3600
_LABELS = ("feedback", "review.resolved")
"""Counters of labels that a device's data has gained: docs/spec/telemetry.md, 1.1."""
MOST_USUAL = 5
"""A device's labels count for those of so many usual devices at most."""

State = Literal["active", "paused"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Runs of one plan that begin by themselves.

    Args:
        name: Its name; its runs are ``name-1``, ``name-2`` and so on.
        model: The model that they train.
        plan: The plan's fields as its author wrote them: each run pins the newest release for itself.
        every_s: Least time between two starts, seconds.
        at_s: Second of the day, UTC, at which runs start; None for any.
        labels: New labels that a run waits for; 0 for none.
        state: ``active`` or ``paused``.
        next_s: From when on the next run may start, Unix seconds.
        since_s: Labels reported from then on are new, Unix seconds.
        last_run: The run it began last.
        said: What came of it the last time it was due.
    """

    name: str
    model: ModelName
    plan: Mapping[str, Any]
    every_s: float
    at_s: int | None
    labels: int
    state: State
    next_s: float
    since_s: float
    last_run: RunId | None = None
    said: str = ""


class Schedules:
    """The schedules of a store."""

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    def add(self, schedule: Schedule, actor: Actor) -> None:
        """Keep a new schedule.

        Raises:
            UsageError: The name is taken, or is not a name.
        """
        check_name(schedule.name, "schedule")
        try:
            with self._database.write() as connection:
                connection.execute(insert(schedules).values(**_values(schedule), created_s=self._clock()))
                self._audit.append(
                    connection,
                    actor,
                    action="schedule.create",
                    object=f"schedule:{schedule.name}",
                    after={
                        "model": schedule.model,
                        "every_s": schedule.every_s,
                        "at_s": schedule.at_s,
                        "labels": schedule.labels,
                    },
                )
        except IntegrityError as exc:
            raise UsageError(f"There is already a schedule {schedule.name}: choose another name.") from exc

    def all(self) -> tuple[Schedule, ...]:
        """Return every schedule, by name."""
        with self._database.read() as connection:
            return tuple(map(_schedule, connection.execute(select(schedules).order_by(schedules.c.name))))

    def page(self, *, after: str = "", limit: int) -> tuple[Schedule, ...]:
        """Return schedules by name, those after one, at most ``limit``."""
        query = select(schedules).where(schedules.c.name > after).order_by(schedules.c.name).limit(limit)
        with self._database.read() as connection:
            return tuple(map(_schedule, connection.execute(query)))

    def find(self, name: str) -> Schedule | None:
        """Return a schedule; None if there is none of that name."""
        with self._database.read() as connection:
            row = connection.execute(select(schedules).where(schedules.c.name == name)).one_or_none()
        return None if row is None else _schedule(row)

    def due(self, now_s: float) -> tuple[Schedule, ...]:
        """Return the active schedules whose time has come, the longest overdue first."""
        query = select(schedules).where(schedules.c.state == "active", schedules.c.next_s <= now_s)
        with self._database.read() as connection:
            return tuple(map(_schedule, connection.execute(query.order_by(schedules.c.next_s))))

    def set_state(self, name: str, state: State, actor: Actor, *, reason: str = "") -> None:
        """Pause a schedule, or let it go on.

        Raises:
            UsageError: There is no such schedule.
        """
        with self._database.write() as connection:
            changed = connection.execute(
                update(schedules).where(schedules.c.name == name).values(state=state)
            )
            if changed.rowcount != 1:
                raise self._unknown(name)
            self._audit.append(
                connection,
                actor,
                action=f"schedule.{'pause' if state == 'paused' else 'resume'}",
                object=f"schedule:{name}",
                reason=reason,
                after={"state": state},
            )

    def hasten(self, name: str, actor: Actor, *, reason: str = "") -> None:
        """Let a schedule's next run begin now, and the ones after it as far apart as ever.

        One that waits for labels still does: they are what its run is for.

        Raises:
            UsageError: There is no such schedule.
            RefusedError: It is paused.
        """
        now_s = self._clock()
        with self._database.write() as connection:
            found = select(schedules.c.state, schedules.c.next_s).where(schedules.c.name == name)
            row = connection.execute(found).one_or_none()
            if row is None:
                raise self._unknown(name)
            if row.state != "active":
                raise RefusedError(f"Schedule {name} is paused: let it go on first.")
            connection.execute(
                update(schedules).where(schedules.c.name == name).values(next_s=min(now_s, row.next_s))
            )
            self._audit.append(
                connection,
                actor,
                action="schedule.hasten",
                object=f"schedule:{name}",
                reason=reason,
                before={"next_s": row.next_s},
                after={"next_s": min(now_s, row.next_s)},
            )

    def remove(self, name: str, actor: Actor, *, reason: str = "") -> None:
        """Remove a schedule. Runs that it began go on.

        Raises:
            UsageError: There is no such schedule.
        """
        with self._database.write() as connection:
            if connection.execute(delete(schedules).where(schedules.c.name == name)).rowcount != 1:
                raise self._unknown(name)
            self._audit.append(
                connection, actor, action="schedule.remove", object=f"schedule:{name}", reason=reason
            )

    def turn(
        self,
        was: Schedule,
        *,
        next_s: float,
        said: str,
        run: RunId | None = None,
        since_s: float | None = None,
    ) -> bool:
        """Note what came of a schedule that was due, if nobody else did meanwhile.

        Args:
            was: The schedule as it was read.
            next_s: From when on it is due again.
            said: What came of it.
            run: The run that began.
            since_s: From when on labels count for the next one.

        Returns:
            Whether this call did it: a second process that read the same is told no.
        """
        same = (schedules.c.name == was.name, schedules.c.next_s == was.next_s, schedules.c.state == "active")
        new: dict[str, object] = {"next_s": next_s, "said": said}
        if run is not None:
            new["last_run"] = run
        if since_s is not None:
            new["since_s"] = since_s
        with self._database.write() as connection:
            return connection.execute(update(schedules).where(*same).values(**new)).rowcount == 1

    def labels_since(self, model: ModelName, since_s: float) -> int:
        """Return how many labels devices have reported for a model, in the whole hours from a time until now.

        A run spends privacy, and no device alone is to begin one: those that are revoked or quarantined do not count,
        and none counts for more than a few usual ones of those that reported any.
        """
        query = (
            select(rollups.c.device_id, rollups.c.counters)
            .join(devices, devices.c.id == rollups.c.device_id)
            .where(
                rollups.c.model == model,
                rollups.c.hour_s >= math.ceil(since_s / HOUR_S) * HOUR_S,
                rollups.c.hour_s <= self._clock(),
                devices.c.status == "active",
                devices.c.quarantined_s.is_(None),
            )
        )
        told: Counter[str] = Counter()
        with self._database.read() as connection:
            for device, text in connection.execute(query):
                counters = json.loads(text)
                told[device] += sum(counters.get(name, 0) for name in _LABELS)
        gained = [count for count in told.values() if count]
        most = MOST_USUAL * median_low(gained or [0])
        return sum(min(count, most) for count in gained)

    @staticmethod
    def _unknown(name: str) -> UsageError:
        return UsageError(f"There is no schedule {name!r}: umbel rounds schedule list shows those there are.")


def _values(schedule: Schedule) -> dict[str, object]:
    return {
        "name": schedule.name,
        "model": schedule.model,
        "plan": json.dumps(dict(schedule.plan), sort_keys=True, allow_nan=False),
        "every_s": schedule.every_s,
        "at_s": schedule.at_s,
        "labels": schedule.labels,
        "state": schedule.state,
        "next_s": schedule.next_s,
        "since_s": schedule.since_s,
        "last_run": schedule.last_run,
        "said": schedule.said,
    }


def _schedule(row: Row[Any]) -> Schedule:
    return Schedule(
        name=row.name,
        model=ModelName(row.model),
        plan=json.loads(row.plan),
        every_s=row.every_s,
        at_s=row.at_s,
        labels=row.labels,
        state=row.state,
        next_s=row.next_s,
        since_s=row.since_s,
        last_run=None if row.last_run is None else RunId(row.last_run),
        said=row.said,
    )
