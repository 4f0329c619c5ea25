"""What single devices reported of a model in some time, for figures that are of devices and not of sums."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, func, select

from umbel_proto.histogram import MAX_COUNT, Histogram
from umbel_proto.ids import DeviceId
from umbel_server.store.database import Database, among
from umbel_server.store.histograms import histogram_of
from umbel_server.store.tables import devices, rollups
from umbel_server.store.tables_audit import audit
from umbel_server.store.tables_devices import device_days
from umbel_server.store.tables_rollouts import device_tags

ROWS = 20_000
"""Hours of devices that are read for one answer: about a second. Of larger fleets it is some devices, by a draw."""
_FEW = 2000
"""So many rows are read at once, whoever told them: not a hundred thousand devices asked for what a few have."""
_CHUNK, _MOST = 100, 1000
"""Devices that are asked for at a time, at first and at most."""
_ORDERS = 16
"""Of so many models the order is kept: 100,000 devices are a megabyte in each."""
_HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Report:
    """What one device reported of a version in some time, summed.

    Args:
        device: The device.
        counters: Name to count.
        histograms: By name: of one name those whose edges and epsilon most devices have.
        tags: The cohorts that it is in now.
    """

    device: DeviceId
    counters: Mapping[str, int]
    histograms: Mapping[str, Histogram]
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reports:
    """What devices reported of a version in some time.

    Args:
        devices: Those that reported.
        asked: How many devices were looked at.
        trusted: How many there are: neither revoked nor quarantined.
    """

    devices: tuple[Report, ...]
    asked: int
    trusted: int


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The devices that counted when an entry was the audit log's newest, and their order for each model asked of."""

    newest: int | None
    names: frozenset[str]
    orders: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Sums:
    counters: Counter[str] = field(default_factory=Counter)
    kinds: dict[_Kind, Histogram] = field(default_factory=dict)


_Kind = tuple[str, tuple[float, ...], float | None]


class DeviceReports:
    """The reports of a store's devices."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._drawn = _Drawn(None, frozenset())

    def of(
        self,
        model: str,
        version: int,
        *,
        since_s: float,
        until_s: float,
        wanted: Collection[str] | None = None,
        rows: int = ROWS,
    ) -> Reports:
        """Return what devices reported of a version in the hours that began in ``[since_s, until_s)``.

        A device that is revoked or quarantined does not count. Hours of the future are not read, whatever a device's
        clock says. Where there are too many, the devices come in an order drawn once for each model.

        Args:
            model: The model; empty: what applications and devices counted themselves.
            version: Its version; 0 of an application.
            since_s: From when on, Unix seconds by the devices' clocks.
            until_s: To when.
            wanted: Histograms to read, by name or by a beginning that ends in a dot; None: all.
            rows: After how many hours of devices no further devices are read.
        """
        found: dict[str, _Sums] = {}
        since_s = int(since_s) // _HOUR_S * _HOUR_S
        with self._database.read() as connection:
            read = _Read(connection, self._draw(connection, model), model, rows)
            for row in read.of(rollups, rollups.c.hour_s, version, since_s, until_s):
                _add(found.setdefault(row.device_id, _Sums()), row.counters, row.histograms, wanted)
            tags = _tags(connection, list(found))
        usual = _usual(found.values())
        return Reports(_reports(found, usual, tags), read.asked, len(read.order))

    def by_day(
        self,
        model: str,
        version: int,
        *,
        since_s: float,
        until_s: float,
        wanted: Collection[str] | None = None,
        rows: int = ROWS,
    ) -> dict[int, Reports]:
        """Return what devices reported of a version on each day that began in ``[since_s, until_s)``, the oldest first.

        Devices are the same ones every day, those that ``of`` takes.

        Args:
            model: As of ``of``.
            version: As of ``of``.
            since_s: From which day on, Unix seconds by the devices' clocks.
            until_s: To when.
            wanted: As of ``of``.
            rows: After how many days of devices no further devices are read.
        """
        found: dict[int, dict[str, _Sums]] = {}
        with self._database.read() as connection:
            read = _Read(connection, self._draw(connection, model), model, rows)
            for row in read.of(device_days, device_days.c.day_s, version, since_s, until_s):
                sums = found.setdefault(row.at_s, {}).setdefault(row.device_id, _Sums())
                _add_counters(sums, row.counters)
                if wanted is None or wanted:
                    for body in json.loads(row.histograms):
                        _add_histogram(sums, body["name"], body, wanted)
            tags = _tags(connection, list({name for day in found.values() for name in day}))
        usual = _usual([sums for day in found.values() for sums in day.values()])
        return {
            day_s: Reports(_reports(day, usual, tags), read.asked, len(read.order))
            for day_s, day in sorted(found.items())
        }

    def _draw(self, connection: Connection, model: str) -> _Drawn:
        """Return the devices that count, with their order for a model: read again when anybody's standing changed."""
        # Whoever is let in, revoked, quarantined or released is in the audit log.
        newest = connection.execute(select(func.max(audit.c.sequence))).scalar_one()
        drawn = self._drawn
        if drawn.newest != newest or newest is None:
            counts = (devices.c.status == "active", devices.c.quarantined_s.is_(None))
            drawn = _Drawn(
                newest, frozenset(connection.execute(select(devices.c.id).where(*counts)).scalars())
            )
            self._drawn = drawn
        if model not in drawn.orders:
            if len(drawn.orders) >= _ORDERS:
                drawn.orders.clear()
            drawn.orders[model] = sorted(drawn.names, key=lambda name: _place(model, name))
        return drawn


class _Read:
    """What devices told of a model, read device by device until it is enough.

    Args:
        connection: The database.
        drawn: The devices that count.
        model: The model.
        rows: After how many rows no further devices are read.
    """

    def __init__(self, connection: Connection, drawn: _Drawn, model: str, rows: int) -> None:
        self._connection, self._names, self._model, self._rows = connection, drawn.names, model, rows
        self.order: Sequence[str] = drawn.orders[model]
        self.asked = 0

    def of(
        self, table: Table, at: ColumnElement[int], version: int, since_s: float, until_s: float
    ) -> Iterator[Row[Any]]:
        """Yield the rows of a version that began in ``[since_s, until_s)``, each with its begin as ``at_s``."""
        of = table.c
        query = select(of.device_id, at.label("at_s"), of.counters, of.histograms).where(
            of.model == self._model, of.version == version, at >= since_s, at < until_s
        )
        most = min(_FEW, self._rows)
        some = self._connection.execute(query.limit(most)).all()
        if len(some) < most:
            self.asked = len(self.order)
            yield from (row for row in some if row.device_id in self._names)
            return
        read, chunk = 0, _CHUNK
        while read < self._rows and self.asked < len(self.order):
            names = self.order[self.asked : self.asked + chunk]
            found = self._connection.execute(query.where(among(self._connection, of.device_id, names)))
            for row in found:
                read += 1
                yield row
            self.asked += len(names)
            chunk = min(max((self._rows - read) * self.asked // max(read, 1), _CHUNK), _MOST)


def _tags(connection: Connection, names: Sequence[str]) -> dict[str, set[str]]:
    """Return the tags of devices, by name."""
    tags: dict[str, set[str]] = {}
    for begin in range(0, len(names), _MOST):
        of_them = among(connection, device_tags.c.device_id, names[begin : begin + _MOST])
        for device, tag in connection.execute(
            select(device_tags.c.device_id, device_tags.c.tag).where(of_them)
        ):
            tags.setdefault(device, set()).add(tag)
    return tags


def _reports(
    found: Mapping[str, _Sums], usual: Mapping[str, _Kind], tags: Mapping[str, set[str]]
) -> tuple[Report, ...]:
    return tuple(
        Report(DeviceId(name), dict(sums.counters), _told(sums, usual), frozenset(tags.get(name, ())))
        for name, sums in sorted(found.items())
    )


def _place(model: str, name: str) -> bytes:
    return hashlib.sha256(f"{model}/{name}".encode()).digest()


def _add(sums: _Sums, counters: str, histograms: str, wanted: Collection[str] | None) -> None:
    _add_counters(sums, counters)
    if wanted is not None and not wanted:
        return
    for name, body in json.loads(histograms).items():
        _add_histogram(sums, name, body, wanted)


def _add_counters(sums: _Sums, counters: str) -> None:
    for name, count in json.loads(counters).items():
        sums.counters[name] = min(sums.counters[name] + count, MAX_COUNT)


def _add_histogram(sums: _Sums, name: str, body: Mapping[str, Any], wanted: Collection[str] | None) -> None:
    if wanted is not None and not _is_wanted(name, wanted):
        return
    histogram = histogram_of(name, body)
    kind = name, histogram.edges, histogram.epsilon
    before = sums.kinds.get(kind)
    sums.kinds[kind] = histogram if before is None else _merged(before, histogram)


def _merged(left: Histogram, right: Histogram) -> Histogram:
    """Return both together; a sum or count that nothing holds stays at its bound."""
    total = left.sum + right.sum
    counts = tuple(min(a + b, MAX_COUNT) for a, b in zip(left.counts, right.counts, strict=True))
    return Histogram(left.name, left.edges, counts, total if abs(total) < 1e300 else left.sum, left.epsilon)


def _is_wanted(name: str, wanted: Collection[str]) -> bool:
    head, dot, _ = name.partition(".")
    return name in wanted or head + dot in wanted


def _usual(found: Collection[_Sums]) -> dict[str, _Kind]:
    """Return of each name the edges and epsilon that most devices have: no device chooses them for the others."""
    often = Counter(kind for sums in found for kind in sums.kinds)
    usual: dict[str, _Kind] = {}
    for kind, _ in sorted(often.items(), key=lambda item: (-item[1], repr(item[0]))):
        usual.setdefault(kind[0], kind)
    return usual


def _told(sums: _Sums, usual: Mapping[str, _Kind]) -> dict[str, Histogram]:
    return {kind[0]: histogram for kind, histogram in sums.kinds.items() if usual[kind[0]] == kind}


def histograms(reports: Sequence[Report], name: str) -> list[Histogram]:
    """Return a histogram of each device that has one: all of the same edges and epsilon."""
    return [report.histograms[name] for report in reports if name in report.histograms]
