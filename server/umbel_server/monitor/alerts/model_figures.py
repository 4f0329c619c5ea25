"""What rules find of models in use: drift, accuracy, fairness, errors, latency, crash loops, work for people, labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from umbel_proto.errors import PackageError, UsageError
from umbel_proto.ids import ModelName
from umbel_server.monitor.alerts.rules import EVERY_MODEL, Rule
from umbel_server.monitor.alerts.scene import Scene, percent, points
from umbel_server.monitor.baseline import Baseline, released
from umbel_server.monitor.drift_report import DAY_S, examined, usual_version
from umbel_server.monitor.fairness import fairness, with_waivers
from umbel_server.monitor.features import WANTED
from umbel_server.monitor.operations import quantiles
from umbel_server.monitor.performance import performance
from umbel_server.monitor.rates import gap, rate
from umbel_server.monitor.report import CONFIDENCE, ERRORS, FELL_BACK, LABELS, LATENCY, PREDICTIONS
from umbel_server.store.alerts import Reading
from umbel_server.store.reports import Report

_APPLICATIONS = ("", 0)


@dataclass(frozen=True, slots=True)
class _Subject:
    """A version that a rule looks at."""

    scene: Scene
    rule: Rule
    model: str
    version: int

    @property
    def labels(self) -> dict[str, str]:
        tag = {"cohort": self.rule.tag} if self.rule.tag else {}
        return {"model": self.model, "version": str(self.version), **tag}

    @property
    def since_s(self) -> float:
        return self.scene.now_s - self.rule.window_s

    def reports(self, wanted: Collection[str] = (), *, back: int = 0) -> list[Report]:
        """What devices reported in the window, or in one before it."""
        return self._read(self.model, self.version, wanted, back)

    def own(self, *, back: int = 0) -> list[Report]:
        """What applications counted."""
        return self._read(*_APPLICATIONS, (), back)

    def _read(self, model: str, version: int, wanted: Collection[str], back: int) -> list[Report]:
        away_s = back * self.rule.window_s
        read = self.scene.store.reports.of(
            model,
            version,
            since_s=self.since_s - away_s,
            until_s=self.scene.now_s - away_s,
            wanted=wanted,
        )
        if not self.rule.tag:
            return list(read.devices)
        # Of a tag, or of a group, those that are in it now.
        mine = self.scene.store.groups.members(self.rule.tag)
        return [each for each in read.devices if each.device in mine]

    def baseline(self) -> Baseline:
        try:
            return released(self.scene.fleet, self.scene.store, self.model, self.version)
        except PackageError:
            return Baseline()

    def few(self, devices: int) -> list[Reading]:
        """Say that too few devices told something to judge by: nothing changes."""
        return [
            Reading(
                self.labels, None, None, f"{devices} devices reported, {self.rule.least_devices} are needed"
            )
        ]


def of_models(scene: Scene, rule: Rule) -> list[Reading]:
    """Return what a rule about models finds, of each model that devices told of lately."""
    since_s = scene.now_s - rule.window_s
    told = {model for model, _ in scene.store.cohorts.models(since_s=since_s - DAY_S)}
    models = sorted(told) if rule.model == EVERY_MODEL else [ModelName(rule.model)] * (rule.model in told)
    found: list[Reading] = []
    for model in models:
        version = rule.version
        if version is None:
            try:
                version = usual_version(scene.store, model, since_s=since_s, until_s=scene.now_s)
            except UsageError:
                continue  # Nobody told of it in this time.
        found += _FIGURES[rule.what](_Subject(scene, rule, str(model), version))
    return found


def _drift(subject: _Subject) -> list[Reading]:
    scene, rule = subject.scene, subject.rule
    now, before = (
        scene.store.reports.of(
            subject.model,
            subject.version,
            since_s=subject.since_s - back * rule.window_s,
            until_s=scene.now_s - back * rule.window_s,
            wanted=WANTED,
        )
        for back in (0, 1)
    )
    if len(now.devices) < rule.least_devices:
        return subject.few(len(now.devices))
    of = (subject.model, subject.version, subject.since_s, scene.now_s)
    drift = examined(subject.baseline(), now, before, of=of, level=rule.level, floor=rule.threshold)
    found = []
    for line in drift.lines:
        told, finding = line.finding.comparison, line.finding
        against = "its baseline" if line.against == "baseline" else "the time before"
        moved = None if told is None else told.moved
        why = f"{finding.feature} against {against}: {finding.why}"
        if told is not None and finding.drifted:
            why = (
                f"{finding.feature} drifted against {against}: {percent(told.moved)} of {line.values:,.0f} values "
                f"moved, adjusted p {finding.adjusted:.2g}"
            )
        labels = {**subject.labels, "feature": finding.feature, "against": line.against}
        found.append(Reading(labels, None if told is None else finding.drifted, moved, why))
    return found


def _estimated(subject: _Subject) -> list[Reading]:
    reports = subject.reports((CONFIDENCE,))
    found = performance(reports, subject.baseline().histograms.get(CONFIDENCE))
    if found.estimated is None or found.change is None or found.promised is None:
        return []
    if found.estimated.devices < subject.rule.least_devices:
        return subject.few(found.estimated.devices)
    fall = -found.change.value
    why = (
        f"confidences promise {percent(found.estimated.value)} right answers, {points(fall)} less than the "
        f"{percent(found.promised)} of when it was made (surely {points(-found.change.high)}, limit "
        f"{points(subject.rule.threshold)}; blind to concept shift)"
    )
    return [Reading(subject.labels, -found.change.high > subject.rule.threshold, fall, why)]


def _realized(subject: _Subject) -> list[Reading]:
    now, before = (performance(subject.reports((), back=back)).realized for back in (0, 1))
    if now is None or before is None:
        return []
    if min(now.devices, before.devices) < subject.rule.least_devices:
        return subject.few(min(now.devices, before.devices))
    fall = gap(before, now)
    why = (
        f"labels agree with {percent(now.value)} of answers, {points(fall.value)} less than the {percent(before.value)} "
        f"of the time before (surely {points(fall.low)}, limit {points(subject.rule.threshold)}), of {now.counted:,} labels"
    )
    return [Reading(subject.labels, fall.low > subject.rule.threshold, fall.value, why)]


def _fairness(subject: _Subject) -> list[Reading]:
    rule = subject.rule
    names = subject.baseline().labels
    number = (
        names.index(rule.label)
        if rule.label in names
        else int(rule.label)
        if rule.label.isascii() and rule.label.isdecimal()
        else -1
    )
    if not 0 <= number < len(names):
        return []  # A rule for every model is of those that have this label.
    found = fairness(
        subject.reports((CONFIDENCE, LABELS)),
        subject.own(),
        labels=len(names),
        label=number,
        least=max(rule.least_devices, 2),
        matters=rule.threshold,
    )
    # A gap that somebody lives with fires nothing until its waiver is over.
    waivers = subject.scene.store.waivers.in_force(
        subject.model, subject.version, number, at_s=subject.scene.now_s
    )
    told = with_waivers(found, waivers)
    return [
        Reading(
            {**subject.labels, "cohort": line.cohort, "metric": line.metric},
            line.open if line.gap is not None else None,
            None if line.gap is None else line.gap.value,
            "too little was told"
            if line.gap is None
            else (
                f"{line.metric} of cohort {line.cohort} is {points(abs(line.gap.value))} "
                f"{'higher' if line.gap.value > 0 else 'lower'} than elsewhere ({points(line.gap.low)} to "
                f"{points(line.gap.high)}, limit {points(rule.threshold)})"
            ),
        )
        for line in told.lines
    ]


def _errors(subject: _Subject) -> list[Reading]:
    reports = subject.reports()
    found = rate(
        (
            each.counters.get(ERRORS, 0),
            each.counters.get(ERRORS, 0) + each.counters.get(PREDICTIONS, 0),
        )
        for each in reports
    )
    if found is None or found.devices < subject.rule.least_devices:
        return subject.few(0 if found is None else found.devices)
    why = (
        f"{percent(found.value)} of {found.counted:,} inputs were refused or failed on {found.devices:,} devices "
        f"(surely {percent(found.low)}, limit {percent(subject.rule.threshold)})"
    )
    return [Reading(subject.labels, found.low > subject.rule.threshold, found.value, why)]


def _latency(subject: _Subject) -> list[Reading]:
    reports = subject.reports((LATENCY,))
    name = f"p{subject.rule.percentile:g}"
    of = sum(LATENCY in each.histograms for each in reports)
    if of < subject.rule.least_devices:
        return subject.few(of)
    value_ms = quantiles(reports, LATENCY).get(name, 0.0) / 1000
    why = f"latency {name} is {value_ms:,.3g} ms on {of:,} devices (limit {subject.rule.threshold:,.3g} ms)"
    return [Reading(subject.labels, value_ms > subject.rule.threshold, value_ms, why)]


def _crashes(subject: _Subject) -> list[Reading]:
    gave_up = sum(bool(each.counters.get(FELL_BACK)) for each in subject.reports())
    why = f"the version failed on {gave_up:,} devices, which fell back (limit {subject.rule.threshold:,.0f})"
    return [Reading(subject.labels, gave_up > subject.rule.threshold, gave_up, why)]


def _queue(subject: _Subject) -> list[Reading]:
    counts = {
        name: sum(max(each.counters.get(f"review.{name}", 0), 0) for each in subject.reports())
        for name in ("asked", "resolved", "dropped")
    }
    waiting = max(counts["asked"] - counts["resolved"] - counts["dropped"], 0)
    why = (
        f"{waiting:,} of {counts['asked']:,} predictions that were put to people wait for one (limit "
        f"{subject.rule.threshold:,.0f}); {counts['dropped']:,} were given up"
    )
    return [Reading(subject.labels, waiting > subject.rule.threshold, waiting, why)]


def _new_labels(subject: _Subject) -> list[Reading]:
    store = subject.scene.store
    begun = [run.created_s for run in store.runs.all() if run.model == subject.model]
    count = store.schedules.labels_since(ModelName(subject.model), max(begun, default=0.0))
    since = "since the model's last run began" if begun else "since devices began to report"
    why = f"devices gained {count:,} labels {since} (enough: {subject.rule.threshold:,.0f})"
    return [Reading({"model": subject.model}, count >= subject.rule.threshold, count, why)]


_FIGURES: Mapping[str, Callable[[_Subject], list[Reading]]] = {
    "drift": _drift,
    "estimated_accuracy": _estimated,
    "realized_accuracy": _realized,
    "fairness_gap": _fairness,
    "error_rate": _errors,
    "latency_ms": _latency,
    "crash_loops": _crashes,
    "review_queue": _queue,
    "new_labels": _new_labels,
}
