"""How often a model is right: by labels that came later, and, without labels, by how sure it is.

Without labels: where confidences are calibrated, a prediction with confidence c is right with chance c, and the mean of
all confidences is the expected accuracy. That is the method of CBPE. It is right about data that changes, as long as
a given confidence means what it meant. It is blind to the rest, and the answer says so.

Source:
    NannyML, "Estimation of Performance of the Monitored Model" (CBPE); Garg et al., "Leveraging Unlabeled Data to
    Predict Out-of-Distribution Performance", ICLR 2022, arXiv:2201.04234, section 3 (average confidence, and why no
    such estimate can be right about every change).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from umbel_proto.histogram import CONFIDENCE as EDGES
from umbel_proto.histogram import MAX_COUNT, Histogram
from umbel_server.monitor.calibration import Calibration, calibration
from umbel_server.monitor.confidences import confidences
from umbel_server.monitor.rates import Gap, Rate, Z, difference, rate
from umbel_server.monitor.report import CONFIDENCE
from umbel_server.monitor.sample import Sample
from umbel_server.store.reports import Report, histograms

FEEDBACK, AGREED = "feedback", "feedback.agreed"
RESOLVED, CHANGED, OVERRIDDEN = "review.resolved", "review.changed", "review.overridden"
FROM, COMPARED, ALIKE = "feedback.from.", "feedback.compared", "feedback.alike"
SOURCES = ("user", "expert", "sensor", "outcome", "rule", "other")
BLIND = (
    "Estimated from confidences as if they were calibrated: a change in what is right for the same input (concept "
    "shift), inputs on which the model is sure and wrong, and a model that was never calibrated are not seen."
)
CHOSEN = "Realized accuracy is of the predictions that somebody labeled, who may have chosen which."


@dataclass(frozen=True, slots=True)
class Estimated:
    """Accuracy as confidences promise it.

    Args:
        value: In 0..1.
        low: Where its interval of 95 % begins: by chance and noise only, as if confidences were calibrated.
        high: Where it ends.
        counted: Of how many predictions.
        devices: Of how many devices.
        epsilon: With what confidences are randomized; None: they are not.
    """

    value: float
    low: float
    high: float
    counted: int
    devices: int
    epsilon: float | None


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where labels are from.

    Args:
        feedback: Labels that arrived after a prediction.
        sources: Those by where they are from, as far as devices tell: older ones do not.
        reviews: Labels of predictions that people reviewed.
        overrides: Decisions that people took the place of.
        agreement: How often a second person gave the label that the first had; None: nobody labeled one twice.
    """

    feedback: int
    sources: Mapping[str, int]
    reviews: int
    overrides: int
    agreement: Rate | None


@dataclass(frozen=True, slots=True)
class Performance:
    """What is known of how often a model is right.

    Args:
        realized: Labels that came later: how many agreed with the model; None: none came.
        people: Of the predictions that people reviewed, how many they let stand; None: they reviewed none. These are
            the ones that the model was least sure of.
        estimated: As confidences promise; None: the model has none, or none were told.
        promised: As they promised when the model was made; None: its package does not tell.
        change: How much lower or higher that is than promised.
        calibration: How much more often labels agree than confidences promise: of different predictions.
        curve: The same by confidence, of the predictions that a label arrived for; None: too few did.
        labels: Where labels are from.
        blind: What the figures do not see.
    """

    realized: Rate | None
    people: Rate | None
    estimated: Estimated | None
    promised: float | None
    change: Gap | None
    calibration: Gap | None
    curve: Calibration | None
    labels: Lineage
    blind: tuple[str, ...]


def performance(reports: Sequence[Report], baseline: Histogram | None = None) -> Performance:
    """Return what is known of how often a model is right.

    Args:
        reports: One of each device.
        baseline: Confidences when the model was made.
    """
    realized = rate((each.counters.get(AGREED, 0), each.counters.get(FEEDBACK, 0)) for each in reports)
    changed = rate((each.counters.get(CHANGED, 0), each.counters.get(RESOLVED, 0)) for each in reports)
    people = changed and Rate(
        1 - changed.value,
        1 - changed.high,
        1 - changed.low,
        changed.counted,
        changed.worth,
        changed.devices,
    )
    now = estimated([each for each in histograms(reports, CONFIDENCE) if each.edges == EDGES])
    before = None if baseline is None or baseline.edges != EDGES else estimated([baseline])
    blind = ((BLIND,) if now else ()) + ((CHOSEN,) if realized else ())
    return Performance(
        realized=realized,
        people=people,
        estimated=now,
        promised=None if before is None else before.value,
        change=None if now is None or before is None else difference(_told(now), _told(before)),
        calibration=None if now is None or realized is None else difference(_told(realized), _told(now)),
        curve=calibration(reports),
        labels=lineage(reports),
        blind=blind,
    )


def lineage(reports: Sequence[Report]) -> Lineage:
    """Return where labels are from, by what devices counted."""

    def total(name: str) -> int:
        return min(sum(each.counters.get(name, 0) for each in reports), MAX_COUNT)

    return Lineage(
        feedback=total(FEEDBACK),
        sources={word: count for word in SOURCES if (count := total(FROM + word))},
        reviews=total(RESOLVED),
        overrides=total(OVERRIDDEN),
        agreement=rate((each.counters.get(ALIKE, 0), each.counters.get(COMPARED, 0)) for each in reports),
    )


def estimated(told: Sequence[Histogram]) -> Estimated | None:
    """Return the accuracy that confidences promise; None if there are none.

    Args:
        told: Confidences of each device, over telemetry's cells.
    """
    if not told or not any(each.count for each in told):
        return None
    return estimated_of(Sample.of_devices(told))


def estimated_of(sample: Sample) -> Estimated:
    """Return the accuracy that confidences promise.

    Args:
        sample: What devices told, over telemetry's cells; not nothing.
    """
    gain, noise = sample.response()
    shares = (sample.told - noise) / gain
    middles = confidences()
    value = float(shares @ middles)
    if sample.covariance is not None:
        variance = float(middles @ sample.covariance @ middles) / gain**2
    else:
        spread = sample.told @ middles**2 - (sample.told @ middles) ** 2
        variance = float(spread) / sample.values / gain**2
    half = Z * math.sqrt(max(variance, 0.0))
    value = min(max(value, 0.0), 1.0)
    return Estimated(
        value, max(value - half, 0.0), min(value + half, 1.0), sample.count, sample.devices, sample.epsilon
    )


def _told(of: Rate | Estimated) -> tuple[float, float, float]:
    return of.value, of.low, of.high
