"""Gates: is the candidate worse on its devices than the version before is on the others, in the same time?

The unit is the device, for devices are what is drawn by chance: a million predictions of one device say how that one
is. Each device gives one value; the groups' means are compared.

Source:
    Deng, Knoblich, Lu, "Applying the Delta Method in Metric Analytics", KDD 2018, arXiv:1803.06336, section 3 (why the
    unit of analysis is what was randomized).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from umbel_proto.errors import UsageError
from umbel_proto.histogram import CONFIDENCE as CONFIDENCES
from umbel_proto.histogram import Histogram
from umbel_proto.privacy.response import Response
from umbel_server.monitor.confidences import confidences
from umbel_server.rollouts.interval import Interval, Values, difference, share_evidence
from umbel_server.rollouts.plan import Gate, Kind, RolloutPlan

PREDICTIONS, ERRORS = "predictions", "errors"
LATENCY, CONFIDENCE = "latency_us", "confidence"
CONTRACT = "contract."
AGREEMENT = "shadow.agreement"
COMPARED, AGREED, SHADOW_ERRORS = "shadow.compared", "shadow.agreed", "shadow.errors"
RANDOMIZED = (AGREEMENT, CONFIDENCE)
"""What gates read also where it is randomized: as a mean without bias, whose noise is part of how devices differ."""
HISTOGRAMS = (LATENCY, CONFIDENCE)
"""Of a model, what gates read; of the application, what metrics name."""


class Outcome(enum.StrEnum):
    """What a gate says."""

    PASS = "pass"  # noqa: S105  # No password.
    FAIL = "fail"
    OPEN = "not enough yet"
    UNDEFINED = "undefined"
    """In this step it can say nothing, and holds nothing up."""


@dataclass(frozen=True, slots=True)
class Reported:
    """What one device reported of a version in some time, summed; or of its application.

    Args:
        counters: Name to count.
        histograms: Name to histogram; randomized ones are left out, but for those of ``RANDOMIZED``.
    """

    counters: Mapping[str, int] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)

    @property
    def predictions(self) -> int:
        """How many predictions were made."""
        return self.counters.get(PREDICTIONS, 0)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the devices of a rollout reported since its step began.

    Args:
        candidate: Of each device that has the candidate, what it reported of it.
        control: Of each device that was not reached, what it reported of the version before.
        admitted: How many devices were offered the candidate.
        failed: On how many of them it failed.
        shadow: Whether the candidate was only asked beside what answers: then there is no control.
    """

    candidate: Sequence[Reported]
    control: Sequence[Reported]
    admitted: int = 0
    failed: int = 0
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says, and by what.

    Args:
        gate: Its name.
        outcome: Whether the candidate passes.
        why: In a sentence.
        estimate: How much worse it is, in the unit of the tolerance; None where too little was reported.
        low: Lower bound of that.
        high: Upper bound of that.
        tolerance: How much worse it may be.
        devices: The candidate's devices that count.
        control: The others.
    """

    gate: str
    outcome: Outcome
    why: str
    estimate: float | None
    low: float | None
    high: float | None
    tolerance: float
    devices: int
    control: int

    @property
    def within(self) -> bool:
        """Whether what was measured lies within the tolerance, sure or not."""
        return self.estimate is not None and abs(self.estimate) <= self.tolerance


def judge(plan: RolloutPlan, evidence: Evidence) -> tuple[Verdict, ...]:
    """Return what each gate of a plan says of what was reported."""
    return tuple(_judge(plan, gate, evidence) for gate in plan.gates)


def _judge(plan: RolloutPlan, gate: Gate, evidence: Evidence) -> Verdict:
    if gate.kind is Kind.FAILED:
        return _failures(plan, gate, evidence)
    if evidence.shadow != (gate.kind is Kind.AGREEMENT):
        why = _NOT_BESIDE if evidence.shadow else _NOT_ANSWERING
        return Verdict(gate.name, Outcome.UNDEFINED, why, None, None, None, gate.tolerance, 0, 0)
    if gate.kind is Kind.AGREEMENT:
        return _agreement(plan, gate, evidence)
    if gate.kind in _BY_CONFIDENCE and _tell_none(plan, evidence):
        return Verdict(gate.name, Outcome.UNDEFINED, _NO_CONFIDENCE, None, None, None, gate.tolerance, 0, 0)
    candidate = _values(gate, evidence.candidate, plan.least_predictions)
    control = _values(gate, evidence.control, plan.least_predictions)
    counts = len(candidate.values), len(control.values)
    if min(counts) < plan.least_devices:
        return _open(plan, gate, counts)
    found = difference(
        candidate.values,
        control.values,
        error=plan.gate_error,
        tuned=plan.least_devices,
        floor=_floor(candidate, control),
    )
    if gate.kind is Kind.LATENCY:  # Logarithms were compared.
        found = Interval(math.expm1(found.estimate), _grown(found.low), _grown(found.high))
    if gate.kind is Kind.ESTIMATED or (gate.kind is Kind.METRIC and gate.higher_is_better):
        found = Interval(-found.estimate, -found.high, -found.low)
    return _verdict(gate, found, counts)


@dataclass(frozen=True, slots=True)
class _Values:
    """One value of each device that counts; of shares, also of how many cases all of them are."""

    values: Values
    cases: int = 0
    hits: float = 0.0


def _values(gate: Gate, devices: Iterable[Reported], least: int) -> _Values:
    found = [each for each in (_value(gate, device, least) for device in devices) if each is not None]
    values = np.array([value for value, _ in found], np.float64)
    cases = sum(n for _, n in found)
    return _Values(values, cases, sum(value * n for value, n in found))


def _value(gate: Gate, device: Reported, least: int) -> tuple[float, int] | None:
    """Return a device's value, and of a share, of how many cases; None if it reported too little."""
    counters, predictions = device.counters, device.predictions
    match gate.kind:
        case Kind.ERRORS:
            # What fails is no prediction.
            return _share(counters.get(ERRORS, 0), predictions + counters.get(ERRORS, 0), least)
        case Kind.VIOLATIONS:
            broken = sum(count for name, count in counters.items() if name.startswith(CONTRACT))
            return _share(min(broken, predictions), predictions, least)
        case Kind.LATENCY:
            value = _quantile(device.histograms.get(LATENCY), gate.percentile / 100, least)
            return None if value is None or value <= 0 else (math.log(value), 0)
        case Kind.ESTIMATED | Kind.CONFIDENCE:
            return _sureness(device.histograms.get(CONFIDENCE), least)
        case Kind.METRIC if "/" in gate.metric:
            above, below = gate.metric.split("/")
            n = counters.get(below, 0)
            return (counters.get(above, 0) / n, 0) if n >= least else None
        case Kind.METRIC:
            return _mean(device.histograms.get(gate.metric), least)
    raise AssertionError(gate.kind)


def _share(hits: int, n: int, least: int) -> tuple[float, int] | None:
    return (hits / n, n) if n >= least else None


def _mean(histogram: Histogram | None, least: int) -> tuple[float, int] | None:
    if histogram is None or histogram.count < least or histogram.mean is None:
        return None
    return histogram.mean, 0


def _sureness(histogram: Histogram | None, least: int) -> tuple[float, int] | None:
    """Return a device's mean confidence: where confidences are calibrated, the share of answers that are right.

    Source: NannyML, "Estimation of Performance of the Monitored Model" (CBPE), as in `umbel_server.monitor.performance`.
    """
    if histogram is None or histogram.epsilon is None:
        return _mean(histogram, least)
    if histogram.count < least or histogram.edges != CONFIDENCES:
        return None
    cells = len(histogram.counts)
    # docs/spec/telemetry.md, 5.4: the share of each cell without bias.
    other = Response(cells, histogram.epsilon).other / 2**64
    shares = (np.array(histogram.counts) / histogram.count - other) / (1 - cells * other)
    return float(shares @ confidences()), 0


def _tell_none(plan: RolloutPlan, evidence: Evidence) -> bool:
    """Whether enough devices of either side reported, and none of them how sure it was."""
    sides = evidence.candidate, evidence.control
    if any(CONFIDENCE in device.histograms for side in sides for device in side):
        return False
    told = (sum(device.predictions >= plan.least_predictions for device in side) for side in sides)
    return min(told) >= plan.least_devices


def _quantile(histogram: Histogram | None, q: float, least: int) -> float | None:
    return None if histogram is None or histogram.count < least else histogram.quantile(q)


def _floor(left: _Values, right: _Values) -> float:
    """Return the variance that a difference of shares has at least, were all cases alike.

    Devices that reported no error at all differ by nothing: that does not make it sure that there will be none.
    """
    if not left.cases or not right.cases:
        return 0.0
    both = left.cases + right.cases
    share = (left.hits + right.hits + 0.5) / (both + 1)
    return share * (1 - share) * (1 / left.cases + 1 / right.cases)


def _failures(plan: RolloutPlan, gate: Gate, evidence: Evidence) -> Verdict:
    n, failed = evidence.admitted, evidence.failed
    if n < plan.least_devices:
        return _open(plan, gate, (n, 0))
    share = failed / n
    found = Interval(share, 0.0, 1.0)
    if share_evidence(failed, n, share=gate.tolerance) >= 1 / plan.gate_error:
        return _said(gate, Outcome.FAIL, Interval(share, gate.tolerance, 1.0), (n, 0))
    # A device on which it fails goes back by itself: nobody has to be sure that it is few of them.
    return _said(gate, Outcome.PASS if share <= gate.tolerance else Outcome.OPEN, found, (n, 0))


def _agreement(plan: RolloutPlan, gate: Gate, evidence: Evidence) -> Verdict:
    found = [each for each in map(_disagreed, evidence.candidate) if each[1] >= plan.least_predictions]
    counts = len(found), 0
    cases = sum(n for _, n in found)
    if counts[0] < plan.least_devices:
        why = f"{counts[0]} devices compared {plan.least_predictions} answers or more, {plan.least_devices} are needed"
        return Verdict(gate.name, Outcome.OPEN, why, None, None, None, gate.tolerance, *counts)
    shares = np.array([share for share, _ in found], np.float64)
    # As if all answers were alike: where none differed, it is not sure that none will.
    hits = max(sum(share * n for share, n in found), 0.0)
    share = min((hits + 0.5) / (cases + 1), 0.5)
    apart = difference(
        shares,
        np.zeros_like(shares),  # The active version always agrees with itself.
        error=plan.gate_error,
        tuned=plan.least_devices,
        floor=share * (1 - share) / cases,
    )
    outcome = Outcome.OPEN
    if apart.low > gate.tolerance:
        outcome = Outcome.FAIL
    elif apart.high <= gate.tolerance:
        outcome = Outcome.PASS
    why = (
        f"agrees with the active version in {_percent(1 - apart.estimate)} ({_percent(1 - apart.high)} to "
        f"{_percent(1 - apart.low)}), minimum {_percent(1 - gate.tolerance)}, of {cases} answers of {counts[0]} devices"
    )
    return Verdict(gate.name, outcome, why, apart.estimate, apart.low, apart.high, gate.tolerance, *counts)


def _disagreed(device: Reported) -> tuple[float, int]:
    """Return the share of answers in which a candidate did not say what the active version said, and of how many.

    One that it could not give is one. Where labels are randomized, without bias, so it may lie below 0 or above 1.
    """
    told = device.histograms.get(AGREEMENT)
    if told is not None and told.epsilon is not None and told.count:
        # docs/spec/telemetry.md, 5.4, of two cells.
        other = Response(2, told.epsilon).other / 2**64
        return (told.counts[0] / told.count - other) / (1 - 2 * other), told.count
    n = device.counters.get(COMPARED, 0) + device.counters.get(SHADOW_ERRORS, 0)
    return (1 - min(device.counters.get(AGREED, 0), n) / n, n) if n else (0.0, 0)


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.4g} %"


def _verdict(gate: Gate, found: Interval, counts: tuple[int, int]) -> Verdict:
    tolerance = gate.tolerance
    both_ways = gate.kind is Kind.CONFIDENCE
    if found.low > tolerance or (both_ways and found.high < -tolerance):
        outcome = Outcome.FAIL
    elif found.high <= tolerance and (not both_ways or found.low >= -tolerance):
        outcome = Outcome.PASS
    else:
        outcome = Outcome.OPEN
    return _said(gate, outcome, found, counts)


def _said(gate: Gate, outcome: Outcome, found: Interval, counts: tuple[int, int]) -> Verdict:
    words = _WORDS[gate.kind]
    with_others = f" against {counts[1]}" if counts[1] else ""
    why = (
        f"{words} {_shown(gate, found.estimate)} ({_shown(gate, found.low)} to {_shown(gate, found.high)}), "
        f"tolerance {_shown(gate, gate.tolerance)}, on {counts[0]} devices{with_others}"
    )
    return Verdict(
        gate.name, outcome, why, found.estimate, found.low, found.high, gate.tolerance, counts[0], counts[1]
    )


def _open(plan: RolloutPlan, gate: Gate, counts: tuple[int, int]) -> Verdict:
    alone = gate.kind is Kind.FAILED
    others = "" if alone else f" and {counts[1]} others"
    needed = f"{plan.least_devices} are needed" if alone else f"{plan.least_devices} of each are needed"
    why = f"{counts[0]} devices with the candidate{others} reported enough, {needed}"
    return Verdict(gate.name, Outcome.OPEN, why, None, None, None, gate.tolerance, counts[0], counts[1])


_NOT_BESIDE = (
    "nobody is answered by a candidate in a shadow step: there it is judged by agreement and failures"
)
_NOT_ANSWERING = "where the candidate answers, the version before is not asked the same: agreement is judged in shadow steps"
_NO_CONFIDENCE = "no device of either side tells how sure it is, so nothing is known without labels"
_BY_CONFIDENCE = (Kind.ESTIMATED, Kind.CONFIDENCE)
_WORDS: Mapping[Kind, str] = {
    Kind.ERRORS: "errors rose by",
    Kind.LATENCY: "latency rose by",
    Kind.ESTIMATED: "estimated accuracy fell by",
    Kind.CONFIDENCE: "confidence moved by",
    Kind.VIOLATIONS: "contract violations rose by",
    Kind.METRIC: "the metric worsened by",
    Kind.FAILED: "it failed on",
}


def _shown(gate: Gate, value: float) -> str:
    if gate.kind in (Kind.CONFIDENCE, Kind.METRIC):
        return f"{value:.4g}"
    if gate.kind is Kind.ESTIMATED:
        return f"{100 * value:.3g} points"
    if not math.isfinite(value) or value > 100:
        return "more than 10,000 %"
    return f"{100 * value:.3g} %"


def _grown(log: float) -> float:
    return math.expm1(min(log, 700.0))


def check_metrics(plan: RolloutPlan) -> None:
    """Check that metrics name what devices can report.

    Raises:
        UsageError: One has another name: it would never be reported.
    """
    for gate in plan.gates:
        for name in gate.metric.split("/") if gate.metric else ():
            if not name.startswith(("app.", "feedback", "review.")):
                raise UsageError(
                    f"No device reports {name!r}: a metric is of  app.NAME,  as the application counts it, or of "
                    "feedback."
                )
