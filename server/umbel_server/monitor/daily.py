"""Day by day: how far each feature was from the baseline, and which of all these days chance does not explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from umbel_server.monitor.baseline import Baseline
from umbel_server.monitor.drift import FLOOR, LEVEL, Finding, Pair, judge
from umbel_server.monitor.features import Feature, against_baseline, features
from umbel_server.store.reports import Reports

BEFORE, BASELINE = "the first day", "the package's baseline"


@dataclass(frozen=True, slots=True)
class DayCell:
    """A feature on a day.

    Args:
        day_s: The day's begin, Unix seconds.
        feature: The feature.
        moved: The share of values in another cell than they would be; None: too few to say.
        adjusted: Its p-value among all features and days; None likewise.
        drifted: Whether chance does not explain it, and it is as large as what matters.
        why: What it rests on, or why nothing is said.
        counted: How many values were counted.
        devices: By how many devices.
    """

    day_s: int
    feature: str
    moved: float | None
    adjusted: float | None
    drifted: bool
    why: str
    counted: int
    devices: int


@dataclass(frozen=True, slots=True)
class Daily:
    """The drift of a version, day by day.

    Args:
        against: What each day is compared with.
        cells: By feature and day.
        asked: How many devices were looked at.
        trusted: How many there are.
    """

    against: str
    cells: tuple[DayCell, ...]
    asked: int
    trusted: int


def daily(
    baseline: Baseline, days: Mapping[int, Reports], *, level: float = LEVEL, floor: float = FLOOR
) -> Daily:
    """Return the drift of each feature on each day.

    All of them are one question: if nothing has changed, any cell is marked with a chance of ``level``.

    Args:
        baseline: What the package tells; where that is nothing, days are compared with the first one.
        days: What devices reported, by day.
        level: As of ``judge``.
        floor: As of ``judge``.
    """
    told = {day: features(read.devices, labels=len(baseline.labels)) for day, read in sorted(days.items())}
    of = {
        (name, day): pair
        for day, found in told.items()
        for name, pair in against_baseline(found, baseline).items()
    }
    against = BASELINE if of else BEFORE
    if not of:
        of = _against_first(told)
    found = judge({f"{name}@{day}": pair for (name, day), pair in of.items()}, level=level, floor=floor)
    cells = [
        _cell(name, day, finding, pair)
        for ((name, day), pair), finding in zip(of.items(), found, strict=True)
    ]
    last = max(days.values(), key=lambda read: read.asked, default=None)
    return Daily(
        against,
        tuple(sorted(cells, key=lambda each: (each.feature, each.day_s))),
        0 if last is None else last.asked,
        0 if last is None else last.trusted,
    )


def _against_first(told: Mapping[int, Mapping[str, Feature]]) -> dict[tuple[str, int], Pair]:
    first: dict[str, Feature] = {}
    pairs = {}
    for day, found in told.items():
        for name, feature in found.items():
            before = first.setdefault(name, feature)
            if before is not feature and before.edges == feature.edges:
                edges = feature.edges if feature.ordered else None
                pairs[name, day] = Pair(before.sample, feature.sample, edges)
    return pairs


def _cell(name: str, day: int, finding: Finding, pair: Pair) -> DayCell:
    comparison = finding.comparison
    return DayCell(
        day,
        name,
        None if comparison is None else comparison.moved,
        finding.adjusted,
        finding.drifted,
        finding.why,
        pair.current.count,
        pair.current.devices,
    )
