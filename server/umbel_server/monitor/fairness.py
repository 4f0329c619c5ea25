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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.histogram import CONFIDENCE as EDGES
from umbel_proto.histogram import MAX_COUNT
from umbel_server.monitor.features import label_counts
from umbel_server.monitor.performance import AGREED, FEEDBACK, Estimated, estimated_of
from umbel_server.monitor.rates import Gap, Rate, counts, difference, gap, rate_of
from umbel_server.monitor.report import CONFIDENCE
from umbel_server.monitor.sample import Sample
from umbel_server.monitor.suppress import shown
from umbel_server.store.reports import Report
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
    told_of = _Told.of(reports, own, labels, label)
    z = -NormalDist().inv_cdf(LEVEL / 2 / max(len(open_) * (len(told_of.pairs) + 1), 1))
    lines: list[CohortLine] = []
    for name in sorted(open_):
        inside = np.array([str(each.device) in members[name] for each in reports])
        for metric in told_of.pairs:
            mine, others = told_of.rate(metric, inside), told_of.rate(metric, ~inside)
            lines.append(_line(name, metric, mine, others, least, z, matters))
        lines.append(_calibration(name, told_of, inside, z, matters, least))
    blind = [
        "Cohorts are of devices: people who share a device, or use several, are not told apart.",
        "A device in no cohort is among the others; what differs within a cohort is not seen.",
    ]
    if not told_of.truth:
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


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """What each device told, read once: a cohort takes its rows.

    Args:
        pairs: By figure, of each device how many hits, of how many values, shape (devices, 2); 0 of 0: nothing.
        confidences: Over telemetry's cells, shape (devices, cells).
        sure: Whether a device told any, shape (devices,).
        epsilon: With what they are randomized; None: they are not.
        truth: Whether any application told which label was right.
    """

    pairs: Mapping[str, NDArray[np.int64]]
    confidences: NDArray[np.int64]
    sure: NDArray[np.bool_]
    epsilon: float | None
    truth: bool

    @classmethod
    def of(cls, reports: Sequence[Report], own: Sequence[Report], labels: int, label: int) -> _Told:
        """Read what devices told.

        Raises:
            UsageError: Confidences of devices are randomized differently.
        """
        truth = {str(each.device): dict(_truth(each, labels)) for each in own}
        given = [truth.get(str(each.device), {}) for each in reports]
        pairs = {
            SELECTION: [_selected(each, labels, label) for each in reports],
            ACCURACY: [(each.counters.get(AGREED, 0), each.counters.get(FEEDBACK, 0)) for each in reports],
            TPR: [_given(each, label, right=True) for each in given],
            FPR: [_given(each, label, right=False) for each in given],
        }
        empty = (0,) * (len(EDGES) + 1)
        found = [each.histograms.get(CONFIDENCE) for each in reports]
        there = [None if each is None or each.edges != EDGES else each for each in found]
        epsilons = {each.epsilon for each in there if each is not None}
        if len(epsilons) > 1:
            raise UsageError("Confidences of devices have different epsilons.")
        return cls(
            {
                metric: np.array([pair if counts(*pair) else (0, 0) for pair in told], np.int64).reshape(
                    -1, 2
                )
                for metric, told in pairs.items()
            },
            np.array([empty if each is None else each.counts for each in there], np.int64).reshape(
                -1, len(empty)
            ),
            np.array([each is not None for each in there], bool),
            next(iter(epsilons), None),
            any(truth.values()),
        )

    def rate(self, metric: str, chosen: NDArray[np.bool_]) -> Rate | None:
        """Return a figure of the devices that are chosen; None: they told nothing of it."""
        pairs = self.pairs[metric]
        return rate_of(pairs[chosen & (pairs[:, 1] > 0)])

    def estimated(self, chosen: NDArray[np.bool_], least: int) -> Estimated | None:
        """Return the accuracy that the chosen devices' confidences promise; None: fewer than the least told any."""
        told = self.confidences[chosen & self.sure]
        if len(told) < least or not told.any():
            return None
        count = sum(told.sum(1, dtype=object).tolist())
        return estimated_of(Sample.of_counts(told.astype(np.float64), count=count, epsilon=self.epsilon))


def _selected(report: Report, labels: int, label: int) -> tuple[int, int]:
    """Return how often a device gave a label, of how many."""
    told = label_counts(report, labels)
    # Of randomized labels a rate of single devices is mostly noise: it is not made.
    if told is None or told.epsilon is not None or label >= len(told.counts):
        return 0, 0
    return told.counts[label], told.count


def _given(truth: Mapping[tuple[int, int], int], label: int, *, right: bool) -> tuple[int, int]:
    """Return how often the label was given, and how often it was asked, where it was right, or was not."""
    asked = {pair: count for pair, count in truth.items() if (pair[0] == label) is right}
    hits = sum(count for pair, count in asked.items() if pair[1] == label)
    return min(hits, MAX_COUNT), min(sum(asked.values()), MAX_COUNT)


def _truth(report: Report, labels: int) -> Iterator[tuple[tuple[int, int], int]]:
    for name, count in report.counters.items():
        found = _TRUTH.fullmatch(name) if name.startswith("app.truth.") else None
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
    told: _Told,
    inside: NDArray[np.bool_],
    z: float,
    matters: float,
    least: int,
) -> CohortLine:
    """Return how much more often labels agree than confidences promise, in a cohort and outside."""
    both = []
    for chosen in (inside, ~inside):
        labeled = told.rate(ACCURACY, chosen)
        real, sure = _shown(labeled, least), told.estimated(chosen, least)
        if real is None or sure is None:
            few = labeled is not None and bool((chosen & told.sure).any())
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
