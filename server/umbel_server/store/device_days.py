"""What each device reports, summed by the day: a page of devices reads thirty rows of each, not seven hundred."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, Select, literal, select

from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.sums import Sums, add_up
from umbel_server.store.tables_devices import device_days

if TYPE_CHECKING:
    from umbel_server.store.rollups import Rollup

DAY_S = 86400


@dataclass(frozen=True, slots=True)
class DeviceSum:
    """Sums over the windows of a device and a model version, variant and engine, in a day or longer.

    Args:
        device: The device.
        model: The model; empty: what its application counted.
        version: Its version.
        variant: ``fp32`` or ``int8``.
        engine: ``onnx`` or ``tflite``.
        since_s: Start of the first day, Unix seconds by the device's clock.
        windows: How many windows are summed.
        until_s: Latest end of a window.
        counters: Name to count.
        histograms: By name; of one name several, if their edges or epsilon differ.
        left_out: Counters and histograms that are in no sum: there were too many names or kinds.
    """

    device: DeviceId
    model: ModelName
    version: int
    variant: str
    engine: str
    since_s: int
    windows: int
    until_s: int
    counters: Mapping[str, int]
    histograms: tuple[Histogram, ...]
    left_out: int


class DeviceDays:
    """The sums by device and day of a store, up to today: days of the future are of clocks that are wrong."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def days(
        self, device: DeviceId, *, since_s: float = 0, wanted: Collection[str] | None = None
    ) -> tuple[DeviceSum, ...]:
        """Return a device's days that began since, by model, version, variant, engine and day.

        Args:
            device: The device.
            since_s: From when on, Unix seconds.
            wanted: The histograms to read, by name; None: all. Each costs time.
        """
        return tuple(_sum(key, sums) for key, sums in self._read((device,), since_s, wanted))

    def totals(
        self,
        devices: Collection[DeviceId],
        *,
        since_s: float = 0,
        wanted: Collection[str] | None = None,
        model: str | None = None,
    ) -> tuple[DeviceSum, ...]:
        """Return what ``days`` does of some devices, summed over time.

        Args:
            devices: The devices: a page of them, for each has a row for each day.
            since_s: From when on, Unix seconds.
            wanted: The histograms to read, by name; None: all. Each costs time.
            model: Of this model only; empty: what applications counted; None: of any.

        Returns:
            One for each device, model, version, variant and engine, in this order.
        """
        totals: dict[tuple[object, ...], tuple[_Key, Sums]] = {}
        for key, sums in self._read(devices, since_s, wanted, model):
            if key[:-1] in totals:
                totals[key[:-1]][1].add(sums)
            else:
                totals[key[:-1]] = key, sums
        return tuple(_sum(key, sums) for key, sums in totals.values())

    def _read(
        self,
        devices: Collection[DeviceId],
        since_s: float,
        wanted: Collection[str] | None,
        model: str | None = None,
    ) -> list[tuple[_Key, Sums]]:
        shapes: ColumnElement[str] = device_days.c.histograms
        if wanted is not None and not wanted:
            shapes = literal("[]")  # Most of a row: what nobody wants to see need not travel.
        others = [column for column in device_days.columns if column is not device_days.c.histograms]
        query: Select[Any] = select(*others, shapes.label("histograms")).where(
            device_days.c.device_id.in_(devices),
            device_days.c.day_s >= since_s,
            device_days.c.day_s <= int(self._clock()),
        )
        if model is not None:
            query = query.where(device_days.c.model == model)
        with self._database.read() as connection:
            rows: Sequence[Row[Any]] = connection.execute(query.order_by(*device_days.primary_key)).all()
        return [(_Key._make(row[:6]), Sums.of_row(row, wanted)) for row in rows]


class _Key(NamedTuple):
    """The primary key, in its order."""

    device: str
    model: str
    version: int
    variant: str
    engine: str
    day_s: int


def add_to_days(connection: Connection, rollups: Sequence[Rollup]) -> None:
    """Add what devices told to the sums of their days, in the transaction that counts it.

    Args:
        connection: Of ``Database.write``: nobody else adds meanwhile.
        rollups: Each a window, or more of the same hour.
    """
    added: dict[_Key, Sums] = {}
    for rollup in rollups:
        day_s = rollup.hour_s - rollup.hour_s % DAY_S
        key = _Key(rollup.device, rollup.model, rollup.version, rollup.variant, rollup.engine, day_s)
        added.setdefault(key, Sums()).take(rollup)
    add_up(connection, device_days, added)


def _sum(key: _Key, sums: Sums) -> DeviceSum:
    return DeviceSum(
        device=DeviceId(key.device),
        model=ModelName(key.model),
        version=key.version,
        variant=key.variant,
        engine=key.engine,
        since_s=key.day_s,
        windows=sums.windows,
        until_s=sums.until_s,
        counters=sums.counters,
        histograms=sums.shapes(),
        left_out=sums.left_out,
    )
