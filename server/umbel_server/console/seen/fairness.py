"""What the screen of fairness shows: gaps by cohort and figure, day by day, and who lives with which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from umbel_server.console.seen.marks import Mark, marks_of
from umbel_server.console.seen.watched import DAY_S, Watched
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.baseline import released
from umbel_server.monitor.fairness import (
    ACCURACY,
    CALIBRATION,
    FPR,
    SELECTION,
    TPR,
    CohortLine,
    Fairness,
    fairness,
    with_waivers,
)
from umbel_server.monitor.labels import label_number
from umbel_server.monitor.looks import LEAST_DEVICES, MATTERS, Look, look_at_fairness
from umbel_server.monitor.report import CONFIDENCE, LABELS
from umbel_server.store.reports import Reports
from umbel_server.store.store import Store

FIGURES = (SELECTION, ACCURACY, TPR, FPR, CALIBRATION)
TONES = ("accent", "info", "warn", "ok", "bad", "muted")
MOST = 6
"""Cohorts that one chart of the trend has."""
MOST_LINES = 6
"""Lines across the chart of gaps, or two more."""
NOBODY = Reports((), 0, 0)


@dataclass(frozen=True, slots=True)
class Treated:
    """All of it.

    Args:
        look: The figures of the whole time.
        labels: Names of the model's labels.
        days: The figures day by day, by the day's begin.
        made_s: When it was made, Unix seconds.
        marks: What happened to its rollouts and rounds on these days.
    """

    look: Look
    labels: tuple[str, ...]
    days: dict[int, Fairness]
    made_s: float
    marks: tuple[Mark, ...]

    @property
    def before(self) -> Fairness:
        """The figures of the days before."""
        assert isinstance(self.look.before, Fairness)
        return self.look.before

    def now(self, store: Store, watched: Watched) -> Fairness:
        """Return the figures with the waivers that are in force at this moment."""
        found = self.look.now
        assert isinstance(found, Fairness)
        held = store.waivers.in_force(watched.model, watched.version, found.label, at_s=store.clock())
        return with_waivers(found, held)


def usual_label(labels: tuple[str, ...]) -> str:
    """Return the label that is looked at where nobody says which: of two the second, the benefit by habit."""
    return "1" if len(labels) == 2 else "0"


def treated(fleet: FleetDir, store: Store, watched: Watched, label: str) -> Treated:
    """Return how a version treats cohorts.

    Raises:
        UsageError: Nothing was reported of it, or it has no such label.
        PackageError: It is not released.
    """
    of = watched.model, watched.version
    labels = released(fleet, store, *of).labels
    label = label or usual_label(labels)
    look = look_at_fairness(fleet, store, *of, label=label, days=watched.days, until_s=watched.until_s)
    since_s, until_s = look.since_s // DAY_S * DAY_S, look.until_s
    by_day = store.reports.by_day(*of, since_s=since_s, until_s=until_s, wanted=(CONFIDENCE, LABELS))
    own = store.reports.by_day("", 0, since_s=since_s, until_s=until_s, wanted=())
    number = label_number(labels, label, watched.model)
    days = {
        day: fairness(
            read.devices,
            own.get(day, NOBODY).devices,
            labels=len(labels),
            label=number,
            least=LEAST_DEVICES,
            matters=MATTERS,
        )
        for day, read in by_day.items()
    }
    return Treated(look, labels, days, store.clock(), marks_of(store, *of, days))


def lines_of(found: Fairness, before: Fairness) -> Iterator[tuple[CohortLine, CohortLine | None]]:
    """Give each figure with what it was in the days before, open findings first."""
    was = {(each.cohort, each.metric): each for each in before.lines}
    order = {name: place for place, name in enumerate(FIGURES)}
    for each in sorted(
        found.lines, key=lambda one: (not one.open, not one.finding, one.cohort, order[one.metric])
    ):
        yield each, was.get((each.cohort, each.metric))


def gaps(found: Fairness, metric: str) -> dict[str, Any]:
    """Return the chart of a figure's gaps by cohort."""
    told = [(each, each.gap) for each in found.lines if each.metric == metric and each.gap is not None]
    return {
        "kind": "bar",
        "x": {"type": "category", "name": "cohort", "values": [line.cohort for line, _ in told]},
        "unit": "%",
        "y": {
            "name": "gap",
            **scale([MATTERS, -MATTERS, *(end for _, gap in told for end in (gap.low, gap.high))]),
        },
        "series": [
            {
                "name": f"here less others: {metric}",
                "tone": "accent",
                "values": [gap.value for _, gap in told],
                "low": [gap.low for _, gap in told],
                "high": [gap.high for _, gap in told],
            }
        ],
        "bounds": [{"value": sign * MATTERS, "name": "matters", "tone": "warn"} for sign in (-1, 1) if told],
        **({} if told else {"empty": f"No cohort's {metric} is known, or each is hidden."}),
    }


def scale(shown: Sequence[float]) -> dict[str, float]:
    """Return an axis that begins and ends with a line: a chart left to itself draws its last two over each other."""
    low, high = min(shown), max(shown)
    step = next((each for each in (0.05, 0.1, 0.2) if high - low <= MOST_LINES * each), 0.5)
    return {"min": math.floor(low / step) * step, "max": math.ceil(high / step) * step, "interval": step}


def trend(found: Treated, metric: str) -> dict[str, Any]:
    """Return the chart of a figure's gaps day by day, of the cohorts whose gap is largest."""
    days = sorted(found.days)
    lines: dict[str, dict[int, CohortLine]] = {}
    for day in days:
        for each in found.days[day].lines:
            if each.metric == metric and each.gap is not None:
                lines.setdefault(each.cohort, {})[day] = each

    def size(cohort: str) -> float:
        return max(abs(each.gap.value) for each in lines[cohort].values() if each.gap is not None)

    series = []
    for place, cohort in enumerate(sorted(sorted(lines), key=size, reverse=True)[:MOST]):
        told = [lines[cohort].get(day) for day in days]
        series.append(
            {
                "name": cohort,
                "tone": TONES[place % len(TONES)],
                "values": [None if each is None or each.gap is None else each.gap.value for each in told],
            }
        )
    return {
        "kind": "line",
        "x": {"type": "time", "name": "day", "values": days},
        "unit": "%",
        "y": {"name": "gap"},
        "series": series,
        "marks": [{"at": each.day_s, "name": each.name} for each in found.marks],
        **({} if series else {"empty": f"On no day a gap in {metric} is known and not hidden."}),
    }
