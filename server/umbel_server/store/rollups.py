"""Rollups: what remains of opened telemetry, counters and histograms summed by the hour."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, select, tuple_, update

from umbel_proto.errors import UsageError
from umbel_proto.histogram import MAX_COUNT, Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_proto.reviews import EndedReview, WaitingReview
from umbel_server.clock import Clock
from umbel_server.store.batches import OPENED, REJECTED, SEALED
from umbel_server.store.cohorts import add_to_cohorts
from umbel_server.store.database import Database, insert
from umbel_server.store.deliveries import add_deliveries
from umbel_server.store.device_days import add_to_days
from umbel_server.store.histograms import body_of, histogram_of
from umbel_server.store.reviews import add_reviews
from umbel_server.store.tables import batches, rollups

MAX_COUNTERS = 4096
MAX_HISTOGRAMS = 512
# Names that one rollup may have: a device must not fill the store with them.
_KEYS_PER_QUERY = 100


@dataclass(frozen=True, slots=True)
class Rollup:
    """Sums over the windows of one device, model version, variant, engine and hour.

    One window is a rollup of itself; rollups of the same key add.

    Args:
        device: Who reported.
        model: The model.
        version: Its version.
        variant: ``fp32`` or ``int8``.
        engine: ``onnx`` or ``tflite``.
        hour_s: Start of the hour, Unix seconds by the device's clock.
        windows: How many windows are summed.
        until_s: Latest end of a window, Unix seconds by the device's clock.
        counters: Name to count.
        histograms: Name to histogram.

    Raises:
        UsageError: There are too many names, or a count is too large.
    """

    device: DeviceId
    model: ModelName
    version: int
    variant: str
    engine: str
    hour_s: int
    windows: int
    until_s: int
    counters: Mapping[str, int]
    histograms: Mapping[str, Histogram]

    def __post_init__(self) -> None:
        if len(self.counters) > MAX_COUNTERS:
            raise UsageError(f"More than {MAX_COUNTERS} counters are reported for {self.model} in one hour.")
        if len(self.histograms) > MAX_HISTOGRAMS:
            raise UsageError(f"More than {MAX_HISTOGRAMS} histograms are reported for {self.model}.")
        if any(not 0 <= count <= MAX_COUNT for count in self.counters.values()):
            raise UsageError(f"A counter of {self.model} is outside 0 to 2**63 - 1.")

    @property
    def key(self) -> tuple[DeviceId, ModelName, int, str, str, int]:
        """What two rollups must share to add."""
        return self.device, self.model, self.version, self.variant, self.engine, self.hour_s

    def merge(self, other: Rollup) -> Rollup:
        """Return the rollup of the windows of both; the key stays this one's.

        Raises:
            UsageError: A histogram's edges or epsilon differ, or a sum grows too large.
        """
        return replace(
            self,
            windows=self.windows + other.windows,
            until_s=max(self.until_s, other.until_s),
            counters=add_counters(self.counters, other.counters),
            histograms=add_histograms(self.histograms, other.histograms),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the opener made of a sealed batch.

    Args:
        batch: The batch's number.
        rollups: Its windows; empty if it was rejected.
        waiting: Predictions that wait for a person; the same.
        ended: Those that were announced and do no more; the same.
        reason: Why it was rejected; None if it was not.
    """

    batch: int
    rollups: tuple[Rollup, ...] = ()
    reason: str | None = None
    waiting: tuple[WaitingReview, ...] = ()
    ended: tuple[EndedReview, ...] = ()


class Rollups:
    """The rollups of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def absorb(self, verdicts: Sequence[Verdict]) -> int:
        """Add opened batches to the rollups and mark them, in one transaction.

        A batch that is no longer sealed, because another opener was first, is left alone: each
        counts once, whatever crashes. One that does not add to what is there is rejected whole.

        Returns:
            How many batches were marked.
        """
        with self._database.write() as connection:
            waiting = _waiting(connection, verdicts)
            fresh: dict[int, Verdict] = {}
            for verdict in verdicts:
                if verdict.batch in waiting:
                    fresh.setdefault(verdict.batch, verdict)
            judged, sums = _judged(connection, fresh.values())
            _put(connection, sums)
            counted = [rollup for verdict in judged for rollup in verdict.rollups]
            add_to_days(connection, counted)
            add_to_cohorts(connection, counted)
            now_s = self._clock()
            add_reviews(
                connection,
                [(DeviceId(waiting[each.batch][0]), each.waiting, each.ended) for each in judged],
                now_s=now_s,
            )
            _mark(connection, judged, now_s=now_s)
            add_deliveries(connection, [(*waiting[each.batch], each.reason is None) for each in judged])
            return len(judged)

    def all(self) -> tuple[Rollup, ...]:
        """Return every rollup, by device, model, version, variant, engine and hour: of a large fleet, far too many."""
        with self._database.read() as connection:
            rows = connection.execute(select(rollups).order_by(*rollups.primary_key)).all()
        return tuple(map(_rollup, rows))

    def of(self, device: DeviceId, *, since_s: float = 0) -> tuple[Rollup, ...]:
        """Return a device's rollups of hours that began since, by model, version, variant, engine and hour."""
        query = select(rollups).where(rollups.c.device_id == device, rollups.c.hour_s >= since_s)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(*rollups.primary_key)).all()
        return tuple(map(_rollup, rows))


def add_counters(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    """Return the sums of counters, name by name."""
    return {name: left.get(name, 0) + right.get(name, 0) for name in sorted({*left, *right})}


def add_histograms(left: Mapping[str, Histogram], right: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Return the sums of histograms, name by name.

    Raises:
        UsageError: Two of the same name have different edges, or are randomized otherwise.
    """
    sums = dict(left)
    for name, histogram in right.items():
        sums[name] = sums[name].merge(histogram) if name in sums else histogram
    return sums


def _waiting(connection: Connection, verdicts: Sequence[Verdict]) -> dict[int, tuple[str, float]]:
    """Return of the batches that nobody has opened yet who sent them, and when."""
    of = batches.c
    query = select(of.id, of.device_id, of.received_s).where(
        of.id.in_([verdict.batch for verdict in verdicts]), of.state == SEALED
    )
    return {row.id: (row.device_id, row.received_s) for row in connection.execute(query)}


def _judged(
    connection: Connection, verdicts: Collection[Verdict]
) -> tuple[list[Verdict], dict[tuple[object, ...], Rollup]]:
    """Return what becomes of batches, one after the other, and the hours that they add to, summed."""
    hours = _present(connection, {window.key for verdict in verdicts for window in verdict.rollups})
    judged: list[Verdict] = []
    changed: dict[tuple[object, ...], Rollup] = {}
    for verdict in verdicts:
        if verdict.reason is not None:
            judged.append(Verdict(verdict.batch, reason=verdict.reason))
            continue
        try:
            added = _added(hours, verdict.rollups)
        except UsageError as exc:
            judged.append(Verdict(verdict.batch, reason=str(exc)))
            continue
        judged.append(verdict)
        hours |= added
        changed |= added
    return judged, changed


def _added(
    hours: Mapping[tuple[object, ...], Rollup], windows: Iterable[Rollup]
) -> dict[tuple[object, ...], Rollup]:
    sums: dict[tuple[object, ...], Rollup] = {}
    for window in windows:
        before = sums.get(window.key) or hours.get(window.key)
        sums[window.key] = window if before is None else before.merge(window)
    return sums


def _present(connection: Connection, keys: Collection[tuple[Any, ...]]) -> dict[tuple[object, ...], Rollup]:
    found: dict[tuple[object, ...], Rollup] = {}
    ordered = sorted(keys)
    for begin in range(0, len(ordered), _KEYS_PER_QUERY):
        some = ordered[begin : begin + _KEYS_PER_QUERY]
        rows = connection.execute(select(rollups).where(tuple_(*rollups.primary_key).in_(some)))
        found |= {rollup.key: rollup for rollup in map(_rollup, rows)}
    return found


def _put(connection: Connection, sums: Mapping[tuple[object, ...], Rollup]) -> None:
    if not sums:
        return
    statement = insert(connection, rollups)
    own = ("windows", "until_s", "counters", "histograms")
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=list(rollups.primary_key), set_={name: statement.excluded[name] for name in own}
        ),
        [_values(sums[key]) for key in sorted(sums, key=repr)],
    )


def _values(rollup: Rollup) -> dict[str, object]:
    histograms = {
        name: body_of(each.edges, each.counts, each.sum, each.epsilon)
        for name, each in rollup.histograms.items()
    }
    return {
        **{column.name: value for column, value in zip(rollups.primary_key, rollup.key, strict=True)},
        "windows": rollup.windows,
        "until_s": rollup.until_s,
        "counters": json.dumps(dict(rollup.counters)),
        "histograms": json.dumps(histograms),
    }


def _mark(connection: Connection, judged: Sequence[Verdict], *, now_s: float) -> None:
    opened = [verdict.batch for verdict in judged if verdict.reason is None]
    if opened:
        connection.execute(
            update(batches)
            .where(batches.c.id.in_(opened))
            .values(state=OPENED, ciphertext=None, opened_s=now_s)
        )
    for verdict in judged:
        if verdict.reason is not None:
            connection.execute(
                update(batches)
                .where(batches.c.id == verdict.batch)
                .values(state=REJECTED, reason=verdict.reason, opened_s=now_s)
            )


def _rollup(row: Row[Any]) -> Rollup:
    histograms = {name: histogram_of(name, body) for name, body in json.loads(row.histograms).items()}
    return Rollup(
        device=DeviceId(row.device_id),
        model=ModelName(row.model),
        version=row.version,
        variant=row.variant,
        engine=row.engine,
        hour_s=row.hour_s,
        windows=row.windows,
        until_s=row.until_s,
        counters=json.loads(row.counters),
        histograms=histograms,
    )
