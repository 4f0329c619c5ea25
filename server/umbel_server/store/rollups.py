"""Rollups: what remains of opened telemetry, counters and histograms summed by the hour."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, and_, select, update
from sqlalchemy.dialects.sqlite import insert

from umbel_proto.errors import UsageError
from umbel_proto.histogram import MAX_COUNT, Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.clock import Clock
from umbel_server.store.batches import OPENED, REJECTED, SEALED
from umbel_server.store.database import Database
from umbel_server.store.tables import batches, rollups

MAX_COUNTERS = 4096
MAX_HISTOGRAMS = 256
# Names that one rollup may have: a device must not fill the store with them.


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
            UsageError: A histogram's edges differ, or a sum grows too large.
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
        reason: Why it was rejected; None if it was not.
    """

    batch: int
    rollups: tuple[Rollup, ...] = ()
    reason: str | None = None


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
            return sum(self._absorb(connection, verdict) for verdict in verdicts)

    def all(self) -> tuple[Rollup, ...]:
        """Return every rollup, by device, model, version, variant, engine and hour."""
        with self._database.read() as connection:
            rows = connection.execute(select(rollups).order_by(*rollups.primary_key)).all()
        return tuple(map(_rollup, rows))

    def _absorb(self, connection: Connection, verdict: Verdict) -> bool:
        reason, sums = verdict.reason, {}
        try:
            sums = _added(connection, verdict.rollups)
        except UsageError as exc:
            reason = str(exc)
        mark = (
            {"state": OPENED, "ciphertext": None} if reason is None else {"state": REJECTED, "reason": reason}
        )
        marked = connection.execute(
            update(batches)
            .where(batches.c.id == verdict.batch, batches.c.state == SEALED)
            .values(opened_s=self._clock(), **mark)
        )
        if marked.rowcount != 1:
            return False
        for rollup in sums.values():
            _put(connection, rollup)
        return True


def add_counters(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    """Return the sums of counters, name by name."""
    return {name: left.get(name, 0) + right.get(name, 0) for name in sorted({*left, *right})}


def add_histograms(left: Mapping[str, Histogram], right: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Return the sums of histograms, name by name.

    Raises:
        UsageError: Two of the same name have different edges.
    """
    sums = dict(left)
    for name, histogram in right.items():
        sums[name] = sums[name].merge(histogram) if name in sums else histogram
    return sums


def _added(connection: Connection, windows: Iterable[Rollup]) -> dict[tuple[object, ...], Rollup]:
    sums: dict[tuple[object, ...], Rollup] = {}
    for window in windows:
        before = sums.get(window.key) or _get(connection, window)
        sums[window.key] = window if before is None else before.merge(window)
    return sums


def _get(connection: Connection, window: Rollup) -> Rollup | None:
    same = and_(*(column == value for column, value in zip(rollups.primary_key, window.key, strict=True)))
    row = connection.execute(select(rollups).where(same)).one_or_none()
    return None if row is None else _rollup(row)


def _put(connection: Connection, rollup: Rollup) -> None:
    key = {column.name: value for column, value in zip(rollups.primary_key, rollup.key, strict=True)}
    sums = {
        "windows": rollup.windows,
        "until_s": rollup.until_s,
        "counters": json.dumps(dict(rollup.counters)),
        "histograms": json.dumps(
            {
                name: {"edges": histogram.edges, "counts": histogram.counts, "sum": histogram.sum}
                for name, histogram in rollup.histograms.items()
            }
        ),
    }
    statement = insert(rollups).values(**key, **sums)
    connection.execute(statement.on_conflict_do_update(index_elements=list(rollups.primary_key), set_=sums))


def _rollup(row: Row[Any]) -> Rollup:
    histograms = {
        name: Histogram(name, tuple(body["edges"]), tuple(body["counts"]), body["sum"])
        for name, body in json.loads(row.histograms).items()
    }
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
