"""How long predictions take by device class, as the screens of performance and of a model show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from umbel_proto.ids import DeviceId
from umbel_server.console.seen.watched import DAY_S
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.operations import QUANTILES, quantiles
from umbel_server.monitor.report import LATENCY
from umbel_server.store.reports import Report
from umbel_server.store.store import Store

LEAST = 10
"""Of fewer devices of a class no latency is told."""
LATENCY_DAYS = 7
"""Of so many days a model's page tells."""
_OF_A_MODEL = {"p50": 0.5, "p95": 0.95}


@dataclass(frozen=True, slots=True)
class ClassLatency:
    """How fast the devices of a class are.

    Args:
        name: The class.
        devices: How many reported.
        predictions: How many predictions they timed.
        quantiles: Microseconds, by name; empty: the class has too few devices, or told nothing.
    """

    name: str
    devices: int
    predictions: int
    quantiles: Mapping[str, float]

    @property
    def few(self) -> bool:
        """Whether it is hidden because the class has too few devices."""
        return self.devices < LEAST


@dataclass(frozen=True, slots=True)
class VersionLatency:
    """How fast a version is on each class of devices.

    Args:
        version: The version.
        classes: The largest class first.
        asked: How many devices were looked at.
        trusted: How many there are.
    """

    version: int
    classes: tuple[ClassLatency, ...]
    asked: int
    trusted: int


def latency_of(name: str, reports: Sequence[Report], shares: Mapping[str, float] = QUANTILES) -> ClassLatency:
    """Return how fast devices are that are shown together.

    Args:
        name: Of which class they are.
        reports: What they told; of one device several, if they are of several days.
        shares: Which quantiles to tell, by name.
    """
    timed = Counter[str]()
    for each in reports:
        if (found := each.histograms.get(LATENCY)) is not None:
            timed[each.device] += found.count
    devices = sum(count > 0 for count in timed.values())
    # Of all devices together nothing tells of one of them, unless there are few.
    shown = quantiles(reports, LATENCY, shares) if devices >= LEAST else {}
    return ClassLatency(name, devices, sum(timed.values()), shown)


def by_class(
    classes: Mapping[DeviceId, str], reports: Sequence[Report], shares: Mapping[str, float] = QUANTILES
) -> tuple[ClassLatency, ...]:
    """Return how fast each class of devices is, the largest first.

    Args:
        classes: Of which class each device is.
        reports: As of ``latency_of``.
        shares: As of ``latency_of``.
    """
    told: dict[str, list[Report]] = {}
    for each in reports:
        told.setdefault(classes.get(each.device, "unknown"), []).append(each)
    found = [latency_of(name, some, shares) for name, some in told.items()]
    return tuple(sorted(found, key=lambda each: (-each.devices, each.name)))


def latencies(_: FleetDir, store: Store, model: str, versions: tuple[int, ...]) -> tuple[VersionLatency, ...]:
    """Return how fast versions of a model were in the last days, by class, in the order of the versions.

    It reads the same sums of devices by day as the screen of performance, of as many devices of a large fleet.
    """
    until_s = store.clock()
    since_s = (until_s - LATENCY_DAYS * DAY_S) // DAY_S * DAY_S
    classes = store.placements.classes()
    made = []
    for version in versions:
        days = store.reports.by_day(model, version, since_s=since_s, until_s=until_s, wanted=(LATENCY,))
        reports = [each for read in days.values() for each in read.devices]
        first = next(iter(days.values()), None)
        asked, trusted = (0, 0) if first is None else (first.asked, first.trusted)
        made.append(VersionLatency(version, by_class(classes, reports, _OF_A_MODEL), asked, trusted))
    return tuple(made)
