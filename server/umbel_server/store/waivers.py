"""Fairness waivers: which gaps somebody lives with, why, and until when. None lasts for good, and none hides a gap."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import check_name
from umbel_server.access.actor import Actor
from umbel_server.clock import Clock
from umbel_server.store.audit import MAX_REASON, Audit
from umbel_server.store.database import Database
from umbel_server.store.tables_waivers import fairness_waivers

MAX_DAYS = 180
DAY_S = 86400.0
METRICS = ("selection rate", "accuracy", "true positive rate", "false positive rate", "calibration gap")
"""What a gap may be in; as ``umbel_server.monitor.fairness`` names them."""
MAX_LABEL = 1000


@dataclass(frozen=True, slots=True)
class Gap:
    """Which gap a waiver is of.

    Args:
        model: The model.
        version: Its version; None: every version.
        label: The number of the label that rates are of.
        cohort: The tag of the cohort.
        metric: One of ``METRICS``.

    Raises:
        UsageError: There can be no such gap.
    """

    model: str
    version: int | None
    label: int
    cohort: str
    metric: str

    def __post_init__(self) -> None:
        check_name(self.model, "model")
        check_name(self.cohort, "cohort")
        if self.metric not in METRICS:
            raise UsageError(
                f"{self.metric[:40]!r} is no figure of fairness: choose of {', '.join(METRICS)}."
            )
        if not 0 <= self.label < MAX_LABEL or (self.version is not None and not 1 <= self.version < 1 << 31):
            raise UsageError("A waiver is of a label from 0 on, and of a version from 1 on or of every one.")

    @property
    def words(self) -> str:
        """What it is called."""
        version = "every version" if self.version is None else f"version {self.version}"
        return f"{self.metric} of {self.cohort}, label {self.label}, {self.model} {version}"


@dataclass(frozen=True, slots=True)
class Waiver:
    """A gap that somebody lives with for some time. Times are Unix seconds.

    Args:
        id: Its name.
        gap: Of which gap.
        reason: Why.
        created_s: When it was made.
        created_by: Who made it.
        expires_s: When the gap is open again by itself.
        ended_s: When somebody ended it before that; None: nobody did.
        ended_by: Who ended it; None: nobody did.
    """

    id: str
    gap: Gap
    reason: str
    created_s: float
    created_by: str
    expires_s: float
    ended_s: float | None
    ended_by: str | None

    def holds(self, now_s: float) -> bool:
        """Return whether it is in force at a time."""
        return self.created_s <= now_s < self.expires_s and (self.ended_s is None or now_s < self.ended_s)

    def to_json(self, now_s: float) -> dict[str, Any]:
        """Return it as JSON values, and whether it is in force."""
        body = asdict(self)
        return {"id": self.id, **body.pop("gap"), **body, "holds": self.holds(now_s)}


class Waivers:
    """The fairness waivers of a store.

    Args:
        database: The database.
        audit: Where each is recorded.
        clock: Dates them.
    """

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database, self._audit, self._clock = database, audit, clock

    def waive(self, gap: Gap, *, days: float, reason: str, actor: Actor) -> Waiver:
        """Put on record that somebody lives with a gap until a day.

        Args:
            gap: The gap.
            days: For how many days, > 0 and at most ``MAX_DAYS``.
            reason: Why; it must say something.
            actor: Who answers for it.

        Raises:
            UsageError: There is no reason, or the time is out of range.
            RefusedError: A waiver of this gap is in force already.
        """
        if not 0 < days <= MAX_DAYS:
            raise UsageError(f"A waiver lasts for more than 0 and at most {MAX_DAYS} days, not {days:g}.")
        reason = reason.strip()
        if not reason or len(reason) > MAX_REASON:
            raise UsageError(f"A waiver needs a reason of 1 to {MAX_REASON} characters.")
        now_s = self._clock()
        row: dict[str, Any] = {
            "id": f"waiver-{secrets.token_hex(5)}",
            **asdict(gap),
            "reason": reason,
            "created_s": now_s,
            "created_by": actor.name,
            "expires_s": now_s + days * DAY_S,
        }
        with self._database.write() as connection:
            there = next((each for each in _of(connection, gap) if each.holds(now_s)), None)
            if there is not None:
                raise RefusedError(
                    f"{there.created_by} has waived this already ({there.id}): end that one first."
                )
            connection.execute(insert(fairness_waivers).values(**row))
            self._audit.append(
                connection,
                actor,
                action="fairness.waive",
                object=f"waiver:{row['id']}",
                reason=reason,
                after={**asdict(gap), "expires_s": row["expires_s"]},
            )
        return self.get(row["id"])

    def end(self, name: str, *, reason: str, actor: Actor) -> Waiver:
        """End a waiver before its time: the gap is open again.

        Raises:
            UsageError: There is none of that name, or no reason.
            RefusedError: It is in force no more.
        """
        if not reason.strip():
            raise UsageError("Say why the waiver ends: give a reason.")
        now_s = self._clock()
        with self._database.write() as connection:
            before = _found(connection, name)
            if not before.holds(now_s):
                raise RefusedError(f"Waiver {name} is in force no more.")
            connection.execute(
                update(fairness_waivers)
                .where(fairness_waivers.c.id == name)
                .values(ended_s=now_s, ended_by=actor.name)
            )
            self._audit.append(
                connection,
                actor,
                action="fairness.waiver_end",
                object=f"waiver:{name}",
                reason=reason,
                before={"expires_s": before.expires_s},
                after={"ended_s": now_s},
            )
        return self.get(name)

    def get(self, name: str) -> Waiver:
        """Return a waiver.

        Raises:
            UsageError: There is none of that name.
        """
        with self._database.read() as connection:
            return _found(connection, name)

    def of(self, model: str | None = None) -> tuple[Waiver, ...]:
        """Return every waiver, of a model or of all, also those that are over, the newest first."""
        query = select(fairness_waivers).order_by(fairness_waivers.c.created_s.desc(), fairness_waivers.c.id)
        if model is not None:
            query = query.where(fairness_waivers.c.model == model)
        with self._database.read() as connection:
            return tuple(map(_waiver, connection.execute(query)))

    def in_force(
        self, model: str, version: int, label: int, *, at_s: float
    ) -> Mapping[tuple[str, str], Waiver]:
        """Return the waivers that hold for a version's gaps at a time, by cohort and figure."""
        found: dict[tuple[str, str], Waiver] = {}
        for each in self.of(model):
            if each.holds(at_s) and each.gap.label == label and each.gap.version in (None, version):
                found.setdefault((each.gap.cohort, each.gap.metric), each)
        return found


def _of(connection: Connection, gap: Gap) -> list[Waiver]:
    of = fairness_waivers.c
    query = select(fairness_waivers).where(
        of.model == gap.model, of.label == gap.label, of.cohort == gap.cohort, of.metric == gap.metric
    )
    found = map(_waiver, connection.execute(query))
    return [each for each in found if each.gap.version in (None, gap.version)]


def _found(connection: Connection, name: str) -> Waiver:
    row = connection.execute(select(fairness_waivers).where(fairness_waivers.c.id == name)).one_or_none()
    if row is None:
        raise UsageError(f"There is no waiver {name[:80]!r}:  umbel monitor waivers  shows them.")
    return _waiver(row)


def _waiver(row: Row[Any]) -> Waiver:
    return Waiver(
        id=row.id,
        gap=Gap(row.model, row.version, row.label, row.cohort, row.metric),
        reason=row.reason,
        created_s=row.created_s,
        created_by=row.created_by,
        expires_s=row.expires_s,
        ended_s=row.ended_s,
        ended_by=row.ended_by,
    )
