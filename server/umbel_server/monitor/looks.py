"""Looks at a model in use: what is read for each figure, and of which time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from umbel_proto.errors import PackageError, UsageError
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.baseline import Baseline, released
from umbel_server.monitor.calibration import RIGHT, WRONG
from umbel_server.monitor.drift_report import DAY_S, DAYS, MAX_DAYS, usual_version
from umbel_server.monitor.fairness import Fairness, fairness, with_waivers
from umbel_server.monitor.labels import label_number
from umbel_server.monitor.operations import Ending, Operations, operations
from umbel_server.monitor.performance import Performance, performance
from umbel_server.monitor.report import CONFIDENCE, LABELS, LATENCY
from umbel_server.services.vitals import expiries
from umbel_server.store.reports import Reports
from umbel_server.store.store import Store

LEAST_DEVICES = 10
MATTERS = 0.03
APPLICATIONS = ("", 0)


@dataclass(frozen=True, slots=True)
class Look:
    """A figure of a model, and what it is of.

    Args:
        model: The model.
        version: The version.
        since_s: From when on, Unix seconds.
        until_s: To when.
        asked: How many devices were looked at.
        trusted: How many there are, neither revoked nor quarantined.
        now: The figure.
        before: The same of the time before, which is as long; None: it is not asked.
    """

    model: str
    version: int
    since_s: float
    until_s: float
    asked: int
    trusted: int
    now: Performance | Fairness | Operations
    before: Performance | Fairness | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Span:
    store: Store
    model: str
    version: int
    since_s: float
    until_s: float

    @classmethod
    def of(
        cls, store: Store, model: str, version: int | None, days: int, until_s: float | None = None
    ) -> _Span:
        if not 1 <= days <= MAX_DAYS:
            raise UsageError(f"Days are 1 to {MAX_DAYS}, not {days}.")
        until_s = store.clock() if until_s is None else until_s
        since_s = until_s - days * DAY_S
        if version is None:
            version = usual_version(store, model, since_s=since_s, until_s=until_s)
        return cls(store, model, version, since_s, until_s)

    def reports(self, wanted: Collection[str], *, back: int = 0) -> Reports:
        return self._read(self.model, self.version, wanted, back)

    def own(self, wanted: Collection[str] = (), *, back: int = 0) -> Reports:
        """What applications and devices counted, of whichever model."""
        return self._read(*APPLICATIONS, wanted, back)

    def _read(self, model: str, version: int, wanted: Collection[str], back: int) -> Reports:
        away_s = back * (self.until_s - self.since_s)
        return self.store.reports.of(
            model, version, since_s=self.since_s - away_s, until_s=self.until_s - away_s, wanted=wanted
        )

    def look(
        self,
        read: Reports,
        now: Performance | Fairness | Operations,
        before: Performance | Fairness | None = None,
    ) -> Look:
        return Look(
            self.model, self.version, self.since_s, self.until_s, read.asked, read.trusted, now, before
        )


def look_at_performance(
    fleet: FleetDir,
    store: Store,
    model: str,
    version: int | None = None,
    *,
    days: int = DAYS,
    until_s: float | None = None,
) -> Look:
    """Return how often a version is right.

    Args:
        fleet: The fleet, for the package's baseline.
        store: Its store.
        model: The model.
        version: The version; None: the one that most was reported of.
        days: How long the time is, and the one before it.
        until_s: When it ends, Unix seconds; None: now.

    Raises:
        UsageError: Nothing was reported of the model.
    """
    span = _Span.of(store, model, version, days, until_s)
    confidences = _baseline(fleet, span).histograms.get(CONFIDENCE)
    read, earlier = (span.reports((CONFIDENCE, RIGHT, WRONG), back=back) for back in (0, 1))
    return span.look(read, performance(read.devices, confidences), performance(earlier.devices, confidences))


def look_at_fairness(
    fleet: FleetDir,
    store: Store,
    model: str,
    version: int | None = None,
    *,
    label: str,
    days: int = DAYS,
    least: int = LEAST_DEVICES,
    matters: float = MATTERS,
    until_s: float | None = None,
) -> Look:
    """Return how a version treats cohorts.

    Args:
        fleet: The fleet, for the package's labels.
        store: Its store.
        model: The model.
        version: The version; None: the one that most was reported of.
        label: The label that rates are of, by name or number.
        days: How long the time is, and the one before it.
        least: Of how many devices anything shown is at least.
        matters: How large a gap must be for a finding.
        until_s: When the time ends, Unix seconds; None: now.

    Raises:
        UsageError: Nothing was reported of the model, or it has no such label.
        PackageError: The version is not released: its labels are not known.
    """
    if least < 2 or not 0 <= matters < 1:
        raise UsageError("Figures are of 2 devices or more, and a gap that matters is in [0, 1).")
    span = _Span.of(store, model, version, days, until_s)
    labels = released(fleet, store, model, span.version).labels
    number = label_number(labels, label, model)

    def treated(read: Reports, back: int) -> Fairness:
        own = span.own(back=back).devices
        return fairness(read.devices, own, labels=len(labels), label=number, least=least, matters=matters)

    read, earlier = (span.reports((CONFIDENCE, LABELS), back=back) for back in (0, 1))
    waivers = store.waivers.in_force(model, span.version, number, at_s=span.until_s)
    return span.look(read, with_waivers(treated(read, 0), waivers), treated(earlier, 1))


def label_of_model(fleet: FleetDir, store: Store, model: str, version: int | None, label: str) -> int:
    """Return the number of a label of a released version.

    Args:
        fleet: The fleet, for the package's labels.
        store: Its store.
        model: The model.
        version: The version; None: the newest that is released.
        label: By name or number.

    Raises:
        UsageError: It has no such label.
        PackageError: It is not released: its labels are not known.
    """
    if version is None:
        version = max((each.version for each in store.releases.all() if each.model == model), default=0)
    return label_number(released(fleet, store, model, version).labels, label, model)


def look_at_operations(
    fleet: FleetDir,
    store: Store,
    model: str,
    version: int | None = None,
    *,
    days: int = DAYS,
    until_s: float | None = None,
) -> Look:
    """Return how devices run a version; arguments as of ``look_at_performance``.

    Raises:
        UsageError: Nothing was reported of the model.
    """
    span = _Span.of(store, model, version, days, until_s)
    read, own = span.reports((LATENCY,)), span.own(("memory_mib",))
    delivered = store.batches.deliveries()
    return span.look(
        read,
        operations(
            read.devices,
            own.devices,
            devices=store.devices.all(),
            waiting=sum(each.sealed for each in delivered),
            rejected=sum(each.rejected for each in delivered),
            endings=[Ending(what, ends_s) for what, ends_s in expiries(fleet)],
            now_s=span.until_s,
        ),
    )


def _baseline(fleet: FleetDir, span: _Span) -> Baseline:
    try:
        return released(fleet, span.store, span.model, span.version)
    except PackageError:
        return Baseline()
