"""What the screen of drift shows: features against days, one of them as it was and as it is, and broken contracts."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel_proto.errors import PackageError, UsageError
from umbel_server.console.seen.marks import Mark, marks_of
from umbel_server.console.seen.watched import DAY_S, Watched
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.baseline import Baseline, released
from umbel_server.monitor.daily import Daily, daily
from umbel_server.monitor.drift_report import Drift, drift_and_reports
from umbel_server.monitor.features import WANTED, Feature, against_baseline, features
from umbel_server.monitor.report import ERRORS, PREDICTIONS
from umbel_server.store.store import Store

CONTRACT = "contract."


@dataclass(frozen=True, slots=True)
class Shape:
    """A feature as it is, and as it was.

    Args:
        edges: Inner edges of the cells.
        names: What each cell is called.
        now: Share of each cell.
        baseline: The same of the package's baseline; None: it does not tell.
        counted: How many values were counted now.
        devices: By how many devices.
    """

    edges: tuple[float, ...]
    names: tuple[str, ...]
    now: tuple[float, ...]
    baseline: tuple[float, ...] | None
    counted: int
    devices: int


@dataclass(frozen=True, slots=True)
class Broken:
    """Values that broke the contract.

    Args:
        column: The column.
        kind: How: below, above, missing.
        count: How many.
        share: Of how many predictions and refused inputs that is.
    """

    column: str
    kind: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Drifted:
    """All of it.

    Args:
        report: The drift of the whole time.
        days: Day by day.
        shapes: By feature.
        made_s: When it was made, Unix seconds.
        marks: What happened to its rollouts on these days.
    """

    report: Drift
    days: Daily
    shapes: Mapping[str, Shape]
    made_s: float
    marks: tuple[Mark, ...]


def drifted(fleet: FleetDir, store: Store, watched: Watched) -> Drifted:
    """Return what is known of a version's drift.

    Raises:
        UsageError: Nothing was reported of it.
    """
    of = watched.model, watched.version
    report, read = drift_and_reports(fleet, store, *of, days=watched.days, until_s=watched.until_s)
    try:
        baseline = released(fleet, store, *of)
    except PackageError:
        baseline = Baseline()
    told = features(read.devices, labels=len(baseline.labels))
    by_day = store.reports.by_day(
        *of, since_s=report.since_s // DAY_S * DAY_S, until_s=report.until_s, wanted=WANTED
    )
    if not by_day:
        raise UsageError(
            f"No device has reported of model {watched.model!r}, version {watched.version}, in this time:  umbel fleet "
            "telemetry  shows what there is."
        )
    before = against_baseline(told, baseline)
    shapes = {
        name: _shape(name, feature, baseline, None if name not in before else before[name].reference.told)
        for name, feature in told.items()
    }
    by_days = daily(baseline, by_day)
    marks = marks_of(store, *of, {each.day_s for each in by_days.cells})
    return Drifted(report, by_days, shapes, store.clock(), marks)


def broken(store: Store, watched: Watched) -> tuple[Broken, ...]:
    """Return which values broke the contract, the most first: from sums over the fleet."""
    counts: dict[str, int] = {}
    for each in store.cohorts.totals(
        watched.model,
        span="day",
        since_s=watched.window.until_s - watched.days * DAY_S,
        until_s=watched.window.until_s,
        version=watched.version,
        wanted=(),
    ):
        for name, count in each.counters.items():
            counts[name] = counts.get(name, 0) + count
    asked = max(counts.get(PREDICTIONS, 0) + counts.get(ERRORS, 0), 1)
    found = []
    for name, count in counts.items():
        if name.startswith(CONTRACT) and count:
            column, _, kind = name.removeprefix(CONTRACT).rpartition(".")
            found.append(Broken(column or kind, kind if column else "", count, count / asked))
    return tuple(sorted(found, key=lambda each: (-each.count, each.column, each.kind)))


def heat(found: Drifted) -> dict[str, Any]:
    """Return the heat map's chart."""
    days = sorted({each.day_s for each in found.days.cells})
    names = sorted({each.feature for each in found.days.cells})
    cells = [
        [
            days.index(each.day_s),
            names.index(each.feature),
            each.moved,
            f"{'drifted' if each.drifted else each.why}; n = {each.counted:,} on {each.devices:,} devices",
        ]
        for each in found.days.cells
    ]
    return {
        "kind": "heatmap",
        "x": {
            "name": "day",
            "values": [_name_of(day) for day in days],
        },
        "marks": [{"at": _name_of(each.day_s), "name": each.name} for each in found.marks],
        "y": {"values": names},
        "cells": cells,
        "min": 0,
        "max": max([0.1, *(each.moved or 0.0 for each in found.days.cells)]),
        "unit": "%",
        **({} if cells else {"empty": "On no day enough was reported to say anything."}),
    }


def shape(found: Drifted, feature: str) -> dict[str, Any]:
    """Return the chart of a feature as it was and as it is."""
    one = found.shapes.get(feature)
    if one is None:
        return {
            "kind": "bar",
            "x": {"type": "category", "values": []},
            "series": [],
            "empty": "No such feature.",
        }
    series: list[dict[str, Any]] = [{"name": "now", "values": list(one.now), "tone": "accent"}]
    if one.baseline is not None:
        series.insert(0, {"name": "baseline", "values": list(one.baseline), "tone": "muted"})
    return {
        "kind": "bar",
        "x": {"type": "category", "name": feature, "values": list(one.names)},
        "unit": "%",
        "y": {"name": "share of values", "min": 0},
        "series": series,
    }


def _name_of(day_s: int) -> str:
    return f"{datetime.datetime.fromtimestamp(day_s, datetime.UTC):%m-%d}"


def _shape(name: str, feature: Feature, baseline: Baseline, before: Any) -> Shape:
    gain, noise = feature.sample.response()
    now = tuple(max(float(share - noise) / gain, 0.0) for share in feature.sample.told)
    return Shape(
        feature.edges,
        _names(feature, baseline),
        now,
        None if before is None else tuple(float(share) for share in before),
        feature.sample.count,
        feature.sample.devices,
    )


def _names(feature: Feature, baseline: Baseline) -> tuple[str, ...]:
    if not feature.ordered:
        return tuple(
            baseline.labels[place] if place < len(baseline.labels) else str(place)
            for place in range(len(feature.edges) + 1)
        )
    edges = [f"{edge:.3g}" for edge in feature.edges]
    return (
        f"< {edges[0]}",
        *(f"{low}..{high}" for low, high in itertools.pairwise(edges)),
        f">= {edges[-1]}",
    )
