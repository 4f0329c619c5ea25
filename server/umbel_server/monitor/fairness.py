"""Fairness: does a model treat the devices of a cohort otherwise than the others?

Each cohort is compared with all devices outside it. Of the figures, what a label is given for (the selection rate) and
how sure the model is come from telemetry alone; how often it is right needs labels. True and false positive rates need
to know which label was right where which was given: applications count that.

Source:
    Hardt, Price, Srebro, "Equality of Opportunity in Supervised Learning", NeurIPS 2016, arXiv:1610.02413 (rates by
    group); Barocas, Hardt, Narayanan, "Fairness and Machine Learning", 2023, chapter 3 (selection, separation,
    sufficiency).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from umbel_proto.errors import UsageError
from umbel_proto.histogram import CONFIDENCE as EDGES
from umbel_proto.histogram import MAX_COUNT
from umbel_server.monitor.features import label_counts
from umbel_server.monitor.performance import AGREED, FEEDBACK, estimated
from umbel_server.monitor.rates import Gap, Rate, difference, gap, rate
from umbel_server.monitor.report import CONFIDENCE
from umbel_server.monitor.suppress import shown
from umbel_server.store.reports import Report, histograms
from umbel_server.store.waivers import Waiver

SELECTION, ACCURACY, TPR, FPR, CALIBRATION = (
    "selection rate",
    "accuracy",
    "true positive rate",
    "false positive rate",
    "calibration gap",
)
LEVEL = 0.05
_TRUTH = re.compile(r"app\.truth\.(\d{1,3})\.(\d{1,3})")
"""Application counters: `truth.T.P`, label T was right where P was given."""


@dataclass(frozen=True, slots=True)
class Waived:
    """Somebody lives with a gap for some time.

    Args:
        id: The waiver's name.
        by: Who answers for it.
        reason: Why.
        expires_s: When the gap is open again, Unix seconds.
    """

    id: str
    by: str
    reason: str
    expires_s: float


@dataclass(frozen=True, slots=True)
class CohortLine:
    """A figure of a cohort, against all devices outside it.

    Args:
        cohort: The cohort's tag.
        metric: Which figure.
        own: What it is; None: nothing was told, or it is no rate.
        others: What it is outside; None likewise.
        gap: How much higher it is in the cohort, with an interval that holds for all lines together.
        finding: Whether the interval leaves out zero, and the gap is as large as what matters.
        hidden: Whether a rate of either side is not told because fewer devices than the least told of it.
        waived: Who lives with it, and until when; None: nobody. A finding that is waived is one all the same.
    """

    cohort: str
    metric: str
    own: float | None
    others: float | None
    gap: Gap | None
    finding: bool
    hidden: bool = False
    waived: Waived | None = None

    @property
    def open(self) -> bool:
        """Whether it is a finding that nobody has waived."""
        return self.finding and self.waived is None


@dataclass(frozen=True, slots=True)
class Fairness:
    """How a model treats cohorts.

    Args:
        label: The label that the rates are of.
        least: Of how many devices anything shown is at least.
        hidden: How many cohorts are not shown: they are small, or a small one would follow.
        hidden_cohorts: Which.
        lines: By cohort and figure.
        blind: What the figures do not see.
    """

    label: int
    least: int
    hidden: int
    hidden_cohorts: tuple[str, ...]
    lines: tuple[CohortLine, ...]
    blind: tuple[str, ...]


def fairness(
    reports: Sequence[Report],
    own: Sequence[Report],
    *,
    labels: int,
    label: int,
    least: int,
    matters: float,
) -> Fairness:
    """Return how a model treats the devices of each cohort.

    Args:
        reports: Of the model, one of each device.
        own: Of applications, one of each device.
        labels: How many labels the model has.
        label: The number of the label that is a benefit, or a burden.
        least: Of how many devices anything shown is at least, >= 2.
        matters: How large a gap must be for a finding, in [0, 1).

    Raises:
        UsageError: There is no such label.
    """
    if not 0 <= label < labels:
        raise UsageError(f"The model has labels 0 to {labels - 1}, and none with number {label}.")
    everybody = frozenset(str(each.device) for each in reports)
    names = sorted({tag for each in reports for tag in each.tags})
    members = {name: frozenset(str(each.device) for each in reports if name in each.tags) for name in names}
    told = shown(members, everybody, least)
    whole = {name for name in told if members[name] == everybody}
    open_ = told - whole
    truth = {str(each.device): dict(_truth(each, labels)) for each in own}
    metrics = _metrics(labels, label, truth)
    z = -NormalDist().inv_cdf(LEVEL / 2 / max(len(open_) * (len(metrics) + 1), 1))
    lines: list[CohortLine] = []
    for name in sorted(open_):
        inside = [each for each in reports if str(each.device) in members[name]]
        outside = [each for each in reports if str(each.device) not in members[name]]
        for metric, of in metrics.items():
            lines.append(_line(name, metric, of(inside), of(outside), least, z, matters))
        lines.append(_calibration(name, inside, outside, z, matters, least))
    blind = [
        "Cohorts are of devices: people who share a device, or use several, are not told apart.",
        "A device in no cohort is among the others; what differs within a cohort is not seen.",
    ]
    if not any(truth.values()):
        blind.append(
            "True and false positive rates are not known: no application counts truth.T.P, the label that was right "
            "and the one that was given."
        )
    blind += [
        f"Cohort {name} is every device that told something: there is nobody to compare it with."
        for name in sorted(whole)
    ]
    hidden = tuple(sorted(members.keys() - told))
    return Fairness(label, least, len(hidden), hidden, tuple(lines), tuple(blind))


def with_waivers(found: Fairness, waivers: Mapping[tuple[str, str], Waiver]) -> Fairness:
    """Return what is known with the waivers that are in force beside their gaps.

    Args:
        found: What is known.
        waivers: By cohort and figure.
    """

    def line(each: CohortLine) -> CohortLine:
        waiver = waivers.get((each.cohort, each.metric))
        if waiver is None:
            return each
        return replace(each, waived=Waived(waiver.id, waiver.created_by, waiver.reason, waiver.expires_s))

    return replace(found, lines=tuple(map(line, found.lines)))


Told = Callable[[Sequence[Report]], Rate | None]


def _metrics(labels: int, label: int, truth: Mapping[str, Mapping[tuple[int, int], int]]) -> dict[str, Told]:
    def selection(reports: Sequence[Report]) -> Rate | None:
        counts = [each for one in reports if (each := label_counts(one, labels)) is not None]
        # Of randomized labels a rate of single devices is mostly noise: it is not made.
        plain = [each for each in counts if each.epsilon is None and label < len(each.counts)]
        return rate((each.counts[label], each.count) for each in plain)

    def accuracy(reports: Sequence[Report]) -> Rate | None:
        return rate((each.counters.get(AGREED, 0), each.counters.get(FEEDBACK, 0)) for each in reports)

    def given(right: bool) -> Told:
        def of(reports: Sequence[Report]) -> Rate | None:
            return rate(_given(truth.get(str(each.device), {}), label, right=right) for each in reports)

        return of

    return {SELECTION: selection, ACCURACY: accuracy, TPR: given(True), FPR: given(False)}


def _given(truth: Mapping[tuple[int, int], int], label: int, *, right: bool) -> tuple[int, int]:
    """Return how often the label was given, and how often it was asked, where it was right, or was not."""
    asked = {pair: count for pair, count in truth.items() if (pair[0] == label) is right}
    hits = sum(count for pair, count in asked.items() if pair[1] == label)
    return min(hits, MAX_COUNT), min(sum(asked.values()), MAX_COUNT)


def _truth(report: Report, labels: int) -> Iterator[tuple[tuple[int, int], int]]:
    for name, count in report.counters.items():
        found = _TRUTH.fullmatch(name)
        if found and (pair := (int(found[1]), int(found[2]))) and max(pair) < labels:
            yield pair, count


def _shown(found: Rate | None, least: int) -> Rate | None:
    """Return a rate if enough devices told of it."""
    return found if found is not None and found.devices >= least else None


def _line(
    cohort: str,
    metric: str,
    inside: Rate | None,
    outside: Rate | None,
    least: int,
    z: float,
    matters: float,
) -> CohortLine:
    own, others = _shown(inside, least), _shown(outside, least)
    apart = None if own is None or others is None else gap(own, others, z)
    return CohortLine(
        cohort,
        metric,
        None if own is None else own.value,
        None if others is None else others.value,
        apart,
        apart is not None and apart.certain and abs(apart.value) >= matters,
        hidden=own is not inside or others is not outside,
    )


def _calibration(
    cohort: str,
    inside: Sequence[Report],
    outside: Sequence[Report],
    z: float,
    matters: float,
    least: int,
) -> CohortLine:
    """Return how much more often labels agree than confidences promise, in a cohort and outside."""
    both = []
    for reports in (inside, outside):
        labeled = rate((each.counters.get(AGREED, 0), each.counters.get(FEEDBACK, 0)) for each in reports)
        real = _shown(labeled, least)
        told = [each for each in histograms(reports, CONFIDENCE) if each.edges == EDGES]
        sure = estimated(told) if len(told) >= least else None
        if real is None or sure is None:
            few = labeled is not None and bool(told)
            return CohortLine(cohort, CALIBRATION, None, None, None, False, hidden=few)
        wide = z / NormalDist().inv_cdf(0.975)
        both.append(
            difference(
                _wider(real.value, real.low, real.high, wide), _wider(sure.value, sure.low, sure.high, wide)
            )
        )
    left, right = both
    apart = difference((left.value, left.low, left.high), (right.value, right.low, right.high))
    return CohortLine(
        cohort, CALIBRATION, left.value, right.value, apart, apart.certain and abs(apart.value) >= matters
    )


def _wider(value: float, low: float, high: float, times: float) -> tuple[float, float, float]:
    return value, value - (value - low) * times, value + (high - value) * times
