"""What the screen of performance shows: realized against estimated, calibration, and latency by device class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from umbel_proto.histogram import CONFIDENCE as EDGES
from umbel_server.console.seen.latency import LEAST, ClassLatency, by_class, latency_of
from umbel_server.console.seen.marks import Mark, marks_of
from umbel_server.console.seen.watched import DAY_S, Watched
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.looks import Look, look_at_performance
from umbel_server.monitor.performance import AGREED, FEEDBACK, Estimated, Performance, estimated
from umbel_server.monitor.rates import Rate, rate
from umbel_server.monitor.report import CONFIDENCE, LATENCY
from umbel_server.store.reports import Reports, histograms
from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Day:
    """How often the model was right on a day.

    Args:
        day_s: The day's begin, Unix seconds.
        realized: By labels.
        estimated: By confidences.
    """

    day_s: int
    realized: Rate | None
    estimated: Estimated | None


@dataclass(frozen=True, slots=True)
class Performed:
    """All of it.

    Args:
        look: The figures of the whole time.
        days: Day by day.
        classes: Latency by device class, the largest first.
        everybody: Latency of all devices.
        made_s: When it was made, Unix seconds.
        marks: What happened to its rollouts on these days.
    """

    look: Look
    days: tuple[Day, ...]
    classes: tuple[ClassLatency, ...]
    everybody: ClassLatency
    made_s: float
    marks: tuple[Mark, ...]

    @property
    def now(self) -> Performance:
        """The figures now."""
        assert isinstance(self.look.now, Performance)
        return self.look.now

    @property
    def before(self) -> Performance:
        """The figures of the days before."""
        assert isinstance(self.look.before, Performance)
        return self.look.before


def performed(fleet: FleetDir, store: Store, watched: Watched) -> Performed:
    """Return how often a version is right, and how fast.

    Raises:
        UsageError: Nothing was reported of it.
    """
    of = watched.model, watched.version
    look = look_at_performance(fleet, store, *of, days=watched.days, until_s=watched.until_s)
    by_day = store.reports.by_day(
        *of,
        since_s=look.since_s // DAY_S * DAY_S,
        until_s=look.until_s,
        wanted=(CONFIDENCE, LATENCY),
    )
    days = tuple(_day(day_s, read) for day_s, read in by_day.items())
    reports = [each for read in by_day.values() for each in read.devices]
    return Performed(
        look,
        days,
        by_class(store.placements.classes(), reports),
        latency_of("all devices", reports),
        store.clock(),
        marks_of(store, *of, by_day),
    )


def accuracy(found: Performed) -> dict[str, Any]:
    """Return the chart of realized against estimated accuracy, day by day."""
    days = found.days
    series = []
    for name, tone, values in (
        ("realized: labels", "accent", [each.realized for each in days]),
        ("estimated: confidences", "info", [each.estimated for each in days]),
    ):
        if any(values):
            series.append(
                {
                    "name": name,
                    "tone": tone,
                    "values": [None if each is None else each.value for each in values],
                    "low": [None if each is None else each.low for each in values],
                    "high": [None if each is None else each.high for each in values],
                    "n": [0 if each is None else each.counted for each in values],
                }
            )
    promised = found.now.promised
    return {
        "kind": "line",
        "x": {"type": "time", "name": "day", "values": [each.day_s for each in days]},
        "unit": "%",
        "y": {"name": "accuracy", "max": 1},
        "series": series,
        "marks": [{"at": each.day_s, "name": each.name} for each in found.marks],
        "bounds": [] if promised is None else [{"value": promised, "name": "promised", "tone": "muted"}],
        **({} if series else {"empty": "Devices told neither labels nor confidences."}),
    }


def calibration_plot(found: Performed) -> dict[str, Any]:
    """Return the chart of how often predictions were right, by how sure they were."""
    curve = found.now.curve
    if curve is None:
        return {"kind": "line", "empty": "Too few labels arrived with a confidence: 30 say something."}
    sure = [each.confidence for each in curve.cells]
    return {
        "kind": "line",
        "x": {"type": "value", "name": "confidence", "values": sure, "unit": "%"},
        "unit": "%",
        "y": {"name": "right", "min": 0, "max": 1},
        "series": [
            {
                "name": "right, by labels",
                "tone": "accent",
                "values": [each.right for each in curve.cells],
                "low": [each.right_low for each in curve.cells],
                "high": [each.right_high for each in curve.cells],
                "n": [round(each.labels) for each in curve.cells],
            },
            {"name": "as promised", "tone": "muted", "dashed": True, "values": sure},
        ],
    }


def latency(found: Performed) -> dict[str, Any]:
    """Return the chart of latency percentiles by device class."""
    shown = [each for each in (found.everybody, *found.classes) if each.quantiles]
    names = ("p50", "p90", "p99")
    return {
        "kind": "bar",
        "x": {"type": "category", "name": "device class", "values": [each.name for each in shown]},
        "unit": "ms",
        "y": {"name": "time", "min": 0},
        "series": [
            {"name": name, "tone": tone, "values": [each.quantiles[name] / 1000 for each in shown]}
            for name, tone in zip(names, ("accent", "info", "muted"), strict=True)
        ],
        **({} if shown else {"empty": f"No class has {LEAST} devices that told a latency."}),
    }


def _day(day_s: int, read: Reports) -> Day:
    told = [each for each in histograms(read.devices, CONFIDENCE) if each.edges == EDGES]
    return Day(
        day_s,
        rate((each.counters.get(AGREED, 0), each.counters.get(FEEDBACK, 0)) for each in read.devices),
        estimated(told),
    )
