"""How long what devices report is kept, and the end of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, TableClause, and_, column, delete, select, table, tuple_

from umbel_server.clock import Clock
from umbel_server.store import partitions
from umbel_server.store.batches import SEALED
from umbel_server.store.database import Database
from umbel_server.store.settings import RetentionPolicy
from umbel_server.store.tables import batches, cohort_rollups, rollups
from umbel_server.store.tables_devices import device_days
from umbel_server.store.tables_enrollment import quarantined_batches
from umbel_server.store.tables_reviews import reviews

DAY_S = 86400.0
ROWS_PER_STEP = 2000
"""One step holds up writers for some milliseconds only."""


@dataclass(frozen=True, slots=True)
class Expired:
    """What came to its end.

    Args:
        batches: Batches, those of quarantined devices among them.
        hours: Sums by the hour, those of each device by the day, and reviews.
        days: Sums by the day.
    """

    batches: int = 0
    hours: int = 0
    days: int = 0

    @property
    def total(self) -> int:
        """How many rows."""
        return self.batches + self.hours + self.days


class Retention:
    """What of a store ends when."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def expire(self, policy: RetentionPolicy) -> Expired:
        """Delete what is older than the policy keeps it, and make room for the months to come.

        Sums that begin more than a day from now go too: they are of clocks that are wrong, count nowhere, and would stay
        until that time has come. In steps, each a transaction: interrupted, it goes on the next time. What nobody has
        opened yet stays.

        Raises:
            UnavailableError: The store is busy; what was deleted until then is gone.
        """
        now_s = self._clock()
        raw_s, hour_s, day_s = (
            now_s - days * DAY_S for days in (policy.raw_days, policy.hours_days, policy.days_days)
        )
        done = self._batches(now_s, raw_s)
        done += self._delete(quarantined_batches, quarantined_batches.c.received_s < raw_s)
        ahead_s = int(now_s + DAY_S)
        of = cohort_rollups.c
        hours = self._outside(rollups.c.hour_s, hour_s, ahead_s)
        hours += self._outside(device_days.c.day_s, hour_s - DAY_S, ahead_s)
        hours += self._outside(of.start_s, hour_s, ahead_s, of.span == "hour")
        hours += self._delete(reviews, reviews.c.announced_s < hour_s)
        return Expired(done, hours, self._outside(of.start_s, day_s, ahead_s, of.span == "day"))

    def _batches(self, now_s: float, raw_s: float) -> int:
        old = and_(batches.c.received_s < raw_s, batches.c.state != SEALED)
        if not self._database.is_postgresql:
            return self._delete(batches, old)
        partitions.make_ahead(self._database, now_s)
        # Months end whole; row by row only what is of none.
        other = table(partitions.OTHER, column("id"), column("received_s"), column("state"))
        deleted = self._delete(other, and_(other.c.received_s < raw_s, other.c.state != SEALED), other.c.id)
        return deleted + partitions.drop_before(self._database, raw_s)

    def _outside(
        self, begins_s: Column[int], old_s: float, ahead_s: float, *which: ColumnElement[bool]
    ) -> int:
        """Delete rows that began before a time or begin after another; return how many."""
        ends = begins_s < old_s, begins_s > ahead_s  # One by one, each by the index.
        return sum(self._delete(begins_s.table, and_(end, *which)) for end in ends)

    def _delete(self, of: TableClause, old: ColumnElement[bool], *key: ColumnElement[Any]) -> int:
        """Delete rows in steps; return how many."""
        key = key or tuple(of.primary_key)
        deleted = 0
        while True:
            with self._database.write_beside() as connection:
                some = select(*key).where(old).limit(ROWS_PER_STEP)
                step = connection.execute(delete(of).where(tuple_(*key).in_(some))).rowcount
            deleted += step
            if step < ROWS_PER_STEP:
                return deleted
