"""What single devices reported of a model in some time, for figures that are of devices and not of sums."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from umbel_proto.histogram import MAX_COUNT, Histogram
from umbel_proto.ids import DeviceId
from umbel_server.store.database import Database
from umbel_server.store.histograms import histogram_of
from umbel_server.store.tables import devices, rollups
from umbel_server.store.tables_devices import device_days
from umbel_server.store.tables_rollouts import device_tags

ROWS = 20_000
"""Hours of devices that are read for one answer: about a second. Of larger fleets it is some devices, by a draw."""
_CHUNK = 100
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


@dataclass(slots=True)
class _Sums:
    counters: Counter[str] = field(default_factory=Counter)
    kinds: dict[_Kind, Histogram] = field(default_factory=dict)


_Kind = tuple[str, tuple[float, ...], float | None]


class DeviceReports:
    """The reports of a store's devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        with self._database.read() as connection:
            names = connection.execute(
                select(devices.c.id).where(devices.c.status == "active", devices.c.quarantined_s.is_(None))
            )
            order = sorted(names.scalars(), key=lambda name: _place(model, name))
            found: dict[str, _Sums] = {}
            tags: dict[str, set[str]] = {}
            read = asked = 0
            for begin in range(0, len(order), _CHUNK):
                some = order[begin : begin + _CHUNK]
                query = select(rollups.c.device_id, rollups.c.counters, rollups.c.histograms).where(
                    rollups.c.device_id.in_(some),
                    rollups.c.model == model,
                    rollups.c.version == version,
                    rollups.c.hour_s >= int(since_s) // _HOUR_S * _HOUR_S,
                    rollups.c.hour_s < until_s,
                )
                for device, counters, histograms in connection.execute(query):
                    _add(found.setdefault(device, _Sums()), counters, histograms, wanted)
                    read += 1
                asked += len(some)
                tagged = select(device_tags.c.device_id, device_tags.c.tag).where(
                    device_tags.c.device_id.in_([name for name in some if name in found])
                )
                for device, tag in connection.execute(tagged):
                    tags.setdefault(device, set()).add(tag)
                if read >= rows:
                    break
        usual = _usual(found.values())
        return Reports(_reports(found, usual, tags), asked, len(order))

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
        of = device_days.c
        with self._database.read() as connection:
            names = connection.execute(
                select(devices.c.id).where(devices.c.status == "active", devices.c.quarantined_s.is_(None))
            )
            order = sorted(names.scalars(), key=lambda name: _place(model, name))
            found: dict[int, dict[str, _Sums]] = {}
            tags: dict[str, set[str]] = {}
            read = asked = 0
            for begin in range(0, len(order), _CHUNK):
                some = order[begin : begin + _CHUNK]
                query = select(of.device_id, of.day_s, of.counters, of.histograms).where(
                    of.device_id.in_(some),
                    of.model == model,
                    of.version == version,
                    of.day_s >= since_s,
                    of.day_s < until_s,
                )
                for device, day_s, counters, histograms in connection.execute(query):
                    sums = found.setdefault(day_s, {}).setdefault(device, _Sums())
                    _add_counters(sums, counters)
                    if wanted is None or wanted:
                        for body in json.loads(histograms):
                            _add_histogram(sums, body["name"], body, wanted)
                    read += 1
                asked += len(some)
                tagged = select(device_tags.c.device_id, device_tags.c.tag).where(
                    device_tags.c.device_id.in_(some)
                )
                for device, tag in connection.execute(tagged):
                    tags.setdefault(device, set()).add(tag)
                if read >= rows:
                    break
        usual = _usual([sums for day in found.values() for sums in day.values()])
        return {
            day_s: Reports(_reports(day, usual, tags), asked, len(order))
            for day_s, day in sorted(found.items())
        }


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
