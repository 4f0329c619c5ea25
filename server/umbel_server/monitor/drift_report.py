"""The drift of a model in use: this week against its baseline, and against the week before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from umbel_proto.errors import PackageError, UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.baseline import Baseline, released
from umbel_server.monitor.drift import FLOOR, LEVEL, Finding, Pair, judge
from umbel_server.monitor.features import WANTED, against_baseline, against_before, features
from umbel_server.store.reports import Reports
from umbel_server.store.store import Store

DAY_S = 86400
DAYS = 7
MAX_DAYS = 90

Reference = Literal["baseline", "before"]


@dataclass(frozen=True, slots=True)
class DriftLine:
    """What is known of a feature, and of how much it is known.

    Args:
        against: What it is compared with: the package's ``baseline``, or the time ``before``.
        finding: What is known.
        reference_values: How many independent values it is compared with.
        values: How many it is worth itself.
        counted: How many were counted.
        devices: By how many devices.
        limited: How many of these count for less than they told.
        epsilon: With what it is randomized; None: it is not.
    """

    against: Reference
    finding: Finding
    reference_values: float
    values: float
    counted: int
    devices: int
    limited: int
    epsilon: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """The drift of a version.

    Args:
        model: The model.
        version: The version.
        since_s: From when on, Unix seconds.
        until_s: To when; the time before it is as long.
        level: Chance of any false alarm against one reference, if nothing has changed.
        floor: The share of values that must have moved for a finding.
        asked: How many devices were looked at.
        trusted: How many there are.
        lines: Every feature against every reference.
        notes: What was not compared, and why.
    """

    model: str
    version: int
    since_s: float
    until_s: float
    level: float
    floor: float
    asked: int
    trusted: int
    lines: tuple[DriftLine, ...]
    notes: tuple[str, ...]

    @property
    def drifted(self) -> tuple[DriftLine, ...]:
        """Return the findings, what moved most first."""
        found = (line for line in self.lines if line.finding.drifted)
        return tuple(sorted(found, key=lambda line: -_moved(line)))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "drifted": [line.finding.feature for line in self.drifted]}


def drift(
    fleet: FleetDir,
    store: Store,
    model: str,
    version: int | None = None,
    *,
    days: int = DAYS,
    level: float = LEVEL,
    floor: float = FLOOR,
    until_s: float | None = None,
) -> Drift:
    """Return the drift of a version over the last days.

    Args:
        fleet: The fleet, for the package's baseline.
        store: Its store.
        model: The model.
        version: The version; None: the one that most was reported of.
        days: How long the time is, and the one before it.
        level: Chance of any false alarm against one reference, in (0, 1).
        floor: The share of values that must have moved, in [0, 1).
        until_s: When the time ends, Unix seconds; None: now.

    Raises:
        UsageError: Nothing was reported of the model, or an argument is out of range.
    """
    found, _ = drift_and_reports(
        fleet, store, model, version, days=days, level=level, floor=floor, until_s=until_s
    )
    return found


def drift_and_reports(
    fleet: FleetDir,
    store: Store,
    model: str,
    version: int | None = None,
    *,
    days: int = DAYS,
    level: float = LEVEL,
    floor: float = FLOOR,
    until_s: float | None = None,
) -> tuple[Drift, Reports]:
    """Return what ``drift`` does, and what devices reported in these days."""
    if not (1 <= days <= MAX_DAYS and 0 < level < 1 and 0 <= floor < 1):
        raise UsageError(f"Drift takes 1 to {MAX_DAYS} days, a level in (0, 1) and a floor in [0, 1).")
    until_s = store.clock() if until_s is None else until_s
    since_s = until_s - days * DAY_S
    version = usual_version(store, model, since_s=since_s, until_s=until_s) if version is None else version
    notes: list[str] = []
    try:
        baseline = released(fleet, store, model, version)
    except PackageError as exc:
        baseline = Baseline()
        notes.append(str(exc))
    now = store.reports.of(model, version, since_s=since_s, until_s=until_s, wanted=WANTED)
    before = store.reports.of(model, version, since_s=since_s - days * DAY_S, until_s=since_s, wanted=WANTED)
    of = model, version, since_s, until_s
    return examined(baseline, now, before, of=of, level=level, floor=floor, notes=notes), now


def examined(
    baseline: Baseline,
    now: Reports,
    before: Reports,
    *,
    of: tuple[str, int, float, float],
    level: float = LEVEL,
    floor: float = FLOOR,
    notes: list[str] | None = None,
) -> Drift:
    """Return the drift in what devices reported.

    Args:
        baseline: What the package tells.
        now: What they reported.
        before: What they reported in the time before.
        of: Model, version, and from when to when.
        level: As of ``drift``.
        floor: As of ``drift``.
        notes: What is known not to be compared.
    """
    notes = list(notes or ())
    current = features(now.devices, labels=len(baseline.labels))
    pairs: dict[Reference, Mapping[str, Pair]] = {
        "baseline": against_baseline(current, baseline),
        "before": against_before(current, features(before.devices, labels=len(baseline.labels))),
    }
    only = sorted(set(current) - set(pairs["baseline"]))
    if only and pairs["baseline"]:
        notes.append(f"The package's baseline says nothing comparable of {', '.join(only)}.")
    if now.asked < now.trusted:
        notes.append(f"Read of {now.asked:,} of {now.trusted:,} devices, drawn once for this model.")
    lines = [
        DriftLine(
            against,
            finding,
            pair.reference.values,
            pair.current.values,
            pair.current.count,
            pair.current.devices,
            pair.current.limited,
            pair.current.epsilon,
        )
        for against, found in pairs.items()
        for finding in judge(found, level=level, floor=floor)
        for pair in (found[finding.feature],)
    ]
    return Drift(*of, level, floor, now.asked, now.trusted, tuple(lines), tuple(notes))


def usual_version(store: Store, model: str, *, since_s: float, until_s: float) -> int:
    """Return the version of a model that devices reported most windows of.

    Raises:
        UsageError: They reported none.
    """
    sums = store.cohorts.totals(model, span="day", since_s=since_s - DAY_S, until_s=until_s, wanted=())
    windows: dict[int, int] = {}
    for each in sums:
        windows[each.version] = windows.get(each.version, 0) + each.windows
    if not windows:
        raise UsageError(
            f"No device has reported of model {model!r} in this time:  umbel fleet telemetry  shows what there is."
        )
    return max(windows, key=lambda version: (windows[version], version))


def _moved(line: DriftLine) -> float:
    return 0.0 if line.finding.comparison is None else line.finding.comparison.moved
