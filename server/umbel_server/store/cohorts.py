"""What devices report, summed by cohort: every question about the fleet is a few hundred rows, however many devices.

A cohort is the devices that had a tag when their batch was opened; all devices are the cohort without a name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from sqlalchemy import Connection, case, func, select

from umbel_proto.histogram import Histogram
from umbel_proto.ids import ModelName
from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.sums import Sums, add_up
from umbel_server.store.tables import cohort_rollups
from umbel_server.store.tables_rollouts import device_tags

if TYPE_CHECKING:
    from umbel_server.store.rollups import Rollup

EVERYBODY = ""
"""The cohort of all devices."""
SPANS: Mapping[str, int] = {"hour": 3600, "day": 86400}
MAX_TAGS = 16
"""Of how many cohorts a device is at most, the first by name: each is another sum to write."""

Span = Literal["hour", "day"]


@dataclass(frozen=True, slots=True)
class CohortSum:
    """Sums over the windows of a cohort, a model version, variant and engine, and an hour, a day or longer.

    Args:
        cohort: The tag of its devices; empty: all devices.
        model: The model; empty: what applications counted.
        version: Its version.
        variant: ``fp32`` or ``int8``.
        engine: ``onnx`` or ``tflite``.
        start_s: Start of the time, Unix seconds by the devices' clocks.
        windows: How many windows are summed.
        until_s: Latest end of a window.
        counters: Name to count.
        histograms: By name; of one name several, if their edges or epsilon differ.
        left_out: Counters and histograms that are in no sum: there were too many names or kinds.
    """

    cohort: str
    model: ModelName
    version: int
    variant: str
    engine: str
    start_s: int
    windows: int
    until_s: int
    counters: Mapping[str, int]
    histograms: tuple[Histogram, ...]
    left_out: int

    def histogram(self, name: str) -> Histogram | None:
        """Return the histogram of a name that has the most counts; None if there is none."""
        found = [each for each in self.histograms if each.name == name]
        return max(found, key=lambda each: sum(each.counts), default=None)


class Cohorts:
    """The sums by cohort of a store, up to now: what begins in the future is of clocks that are wrong."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def series(
        self,
        model: str,
        *,
        span: Span,
        since_s: float,
        until_s: float,
        cohort: str = EVERYBODY,
        version: int | None = None,
        wanted: Collection[str] | None = None,
    ) -> tuple[CohortSum, ...]:
        """Return the hours or days of a model that began in ``[since_s, until_s)``, oldest first.

        Args:
            model: The model; empty: what applications counted.
            span: What to sum over.
            since_s: From when on, Unix seconds.
            until_s: To when.
            cohort: The cohort.
            version: One version only.
            wanted: The histograms to read, by name; None: all. Each costs time.
        """
        found = self._read(model, span, since_s, until_s, (cohort,), version, wanted)
        return tuple(_sum(key, sums) for key, sums in found)

    def totals(
        self,
        model: str,
        *,
        span: Span,
        since_s: float,
        until_s: float,
        cohorts: Sequence[str] = (EVERYBODY,),
        version: int | None = None,
        wanted: Collection[str] | None = None,
    ) -> tuple[CohortSum, ...]:
        """Return what ``series`` does of some cohorts, summed over time.

        Args:
            model: The model; empty: what applications counted.
            span: Of what sums; days are fewer.
            since_s: From when on, Unix seconds.
            until_s: To when.
            cohorts: The cohorts.
            version: One version only.
            wanted: The histograms to read, by name; None: all. Each costs time.

        Returns:
            One for each cohort, version, variant and engine, in this order.
        """
        totals: dict[tuple[object, ...], tuple[_Key, Sums]] = {}
        for key, sums in self._read(model, span, since_s, until_s, cohorts, version, wanted):
            of = (key.cohort, key.version, key.variant, key.engine)
            if of in totals:
                totals[of][1].add(sums)
            else:
                totals[of] = key, sums
        return tuple(_sum(key, sums) for _, (key, sums) in sorted(totals.items()))

    def names(self, *, since_s: float = 0) -> tuple[str, ...]:
        """Return the cohorts with a day that began since, until now, by name; the first is that of all devices."""
        query = (
            select(cohort_rollups.c.cohort)
            .where(
                cohort_rollups.c.span == "day",
                cohort_rollups.c.start_s >= since_s,
                cohort_rollups.c.start_s <= int(self._clock()),
            )
            .distinct()
            .order_by(cohort_rollups.c.cohort)
        )
        with self._database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def models(self, *, since_s: float = 0) -> tuple[tuple[ModelName, int], ...]:
        """Return the models and versions that any device told of on a day that began since, until now, by name."""
        query = (
            select(cohort_rollups.c.model, cohort_rollups.c.version)
            .where(
                cohort_rollups.c.span == "day",
                cohort_rollups.c.cohort == EVERYBODY,
                cohort_rollups.c.model != "",
                # Not by the index of times, which has every cohort's rows: the primary key has these alone.
                cohort_rollups.c.start_s + 0 >= since_s,
                cohort_rollups.c.start_s + 0 <= int(self._clock()),
            )
            .distinct()
            .order_by(cohort_rollups.c.model, cohort_rollups.c.version)
        )
        with self._database.read() as connection:
            return tuple((ModelName(row.model), row.version) for row in connection.execute(query))

    def windows(self, *, since_s: float, lately_s: float, until_s: float) -> dict[tuple[ModelName, int], int]:
        """Return the models and versions that ``models`` does, each with how many windows were told of it lately.

        Args:
            since_s: From when on, Unix seconds by the devices' clocks.
            lately_s: From when on windows are counted, which is no earlier.
            until_s: To when they are.
        """
        of = cohort_rollups.c
        lately = (of.start_s >= lately_s) & (of.start_s < until_s)
        query = (
            select(of.model, of.version, func.sum(case((lately, of.windows), else_=0)))
            .where(
                of.span == "day",
                of.cohort == EVERYBODY,
                of.model != "",
                of.start_s + 0 >= since_s,  # As above.
                of.start_s + 0 <= int(self._clock()),
            )
            .group_by(of.model, of.version)
            .order_by(of.model, of.version)
        )
        with self._database.read() as connection:
            return {(ModelName(row[0]), row[1]): int(row[2]) for row in connection.execute(query)}

    def _read(
        self,
        model: str,
        span: Span,
        since_s: float,
        until_s: float,
        cohorts: Sequence[str],
        version: int | None,
        wanted: Collection[str] | None,
    ) -> list[tuple[_Key, Sums]]:
        of = cohort_rollups.c
        query = select(cohort_rollups).where(
            of.span == span,
            of.cohort.in_(cohorts),
            of.model == model,
            of.start_s >= since_s,
            of.start_s < until_s,
            of.start_s <= int(self._clock()),
        )
        if version is not None:
            query = query.where(of.version == version)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(*cohort_rollups.primary_key)).all()
        return [(_Key(*row[:7]), Sums.of_row(row, wanted)) for row in rows]


class _Key(NamedTuple):
    """The primary key, in its order."""

    span: str
    cohort: str
    model: str
    start_s: int
    version: int
    variant: str
    engine: str


def add_to_cohorts(connection: Connection, rollups: Sequence[Rollup]) -> None:
    """Add what devices told to the sums of their cohorts, in the transaction that counts it.

    Args:
        connection: Of ``Database.write``: nobody else adds meanwhile.
        rollups: Each a window, or more of the same hour.
    """
    if not rollups:
        return
    cohorts = _cohorts(connection, {rollup.device for rollup in rollups})
    added: dict[_Key, Sums] = {}
    for rollup in rollups:
        for cohort in cohorts[rollup.device]:
            for span, length_s in SPANS.items():
                start_s = rollup.hour_s - rollup.hour_s % length_s
                of = (rollup.model, start_s, rollup.version, rollup.variant, rollup.engine)
                added.setdefault(_Key(span, cohort, *of), Sums()).take(rollup)
    add_up(connection, cohort_rollups, added)


def _sum(key: _Key, sums: Sums) -> CohortSum:
    return CohortSum(
        cohort=key.cohort,
        model=ModelName(key.model),
        version=key.version,
        variant=key.variant,
        engine=key.engine,
        start_s=key.start_s,
        windows=sums.windows,
        until_s=sums.until_s,
        counters=sums.counters,
        histograms=sums.shapes(),
        left_out=sums.left_out,
    )


def _cohorts(connection: Connection, devices: Iterable[str]) -> dict[str, list[str]]:
    cohorts = {device: [EVERYBODY] for device in devices}
    query = select(device_tags.c.device_id, device_tags.c.tag).where(device_tags.c.device_id.in_(cohorts))
    for row in connection.execute(query.order_by(device_tags.c.tag)):
        if len(cohorts[row.device_id]) <= MAX_TAGS:
            cohorts[row.device_id].append(row.tag)
    return cohorts
