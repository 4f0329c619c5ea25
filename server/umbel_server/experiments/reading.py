"""What an experiment says at a moment: nothing yet, that its arms do not match, or which is better."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

from umbel_server.experiments.evidence import HOUR_S, Arm
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.experiments.ratio import Ratio, ratio_of
from umbel_server.experiments.sequence import arms_difference
from umbel_server.rollouts.interval import Interval, Values

POINTS = 48
"""Looks that the course of an experiment is shown by."""


class Outcome(enum.StrEnum):
    """What an experiment says."""

    WAITING = "too little yet"
    MISMATCH = "the arms do not match"
    RANDOMIZED = "only told with noise"
    BETTER = "better"
    WORSE = "worse"
    SAME = "no difference that matters"
    OPEN = "not sure yet"


@dataclass(frozen=True, slots=True)
class ArmReading:
    """What is known of an arm.

    Args:
        drawn: Devices that were drawn into it, and asked.
        compared: Those of them that reported enough.
        pinned: Those left out because they are pinned.
        gone: Those left out because they may not call any more.
        mean: Mean of the metric over the compared devices; None: not told.
    """

    drawn: int
    compared: int
    pinned: int
    gone: int
    mean: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """The difference as it was known at a time.

    Args:
        at_s: The time, Unix seconds.
        treatment: Devices of the treatment that were compared.
        control: Those of the control.
        interval: The difference.
    """

    at_s: float
    treatment: int
    control: int
    interval: Interval


@dataclass(frozen=True, slots=True)
class Reading:
    """What an experiment says at a moment.

    Args:
        at_s: The moment, Unix seconds.
        outcome: In a word.
        why: In a sentence.
        treatment: The devices with the candidate.
        control: Those kept as they were.
        ratio: Whether there are as many of each as were drawn.
        difference: How much higher the metric is in the treatment; None: not told.
        course: The same at times before, the oldest first.
    """

    at_s: float
    outcome: Outcome
    why: str
    treatment: ArmReading
    control: ArmReading
    ratio: Ratio
    difference: Interval | None
    course: tuple[Point, ...]

    @property
    def tells(self) -> bool:
        """Whether there is anything to decide by."""
        return self.difference is not None


def read(plan: ExperimentPlan, treatment: Arm, control: Arm, *, now_s: float) -> Reading:
    """Return what an experiment says.

    Args:
        plan: Its plan.
        treatment: The devices with the candidate.
        control: Those kept as they were.
        now_s: The moment, Unix seconds.
    """
    arms = treatment, control

    def at(until_s: float) -> tuple[Values, Values]:
        return (
            treatment.values(plan.measured, until_s=until_s, least=plan.least_samples, cap=plan.cap),
            control.values(plan.measured, until_s=until_s, least=plan.least_samples, cap=plan.cap),
        )

    # A device's clock may be ahead: the hour that has begun counts.
    values = at(now_s + HOUR_S)
    ratio = ratio_of(len(values[0]), len(values[1]), share=plan.treatment_share)
    outcome, why, found = _judge(plan, values, ratio, randomized=any(arm.randomized for arm in arms))
    shown = found is not None
    return Reading(
        at_s=now_s,
        outcome=outcome,
        why=why,
        treatment=_arm(treatment, values[0], shown=shown),
        control=_arm(control, values[1], shown=shown),
        ratio=ratio,
        difference=found,
        course=_course(plan, arms, at, now_s) if shown else (),
    )


def _judge(
    plan: ExperimentPlan, values: tuple[Values, Values], ratio: Ratio, *, randomized: bool
) -> tuple[Outcome, str, Interval | None]:
    if randomized:
        return Outcome.RANDOMIZED, _SENTENCES[Outcome.RANDOMIZED].format(metric=plan.metric), None
    counts = f"{ratio.treatment} devices of the treatment and {ratio.control} of the control"
    if ratio.mismatch:
        told = _SENTENCES[Outcome.MISMATCH].format(
            counts=counts, share=f"{ratio.share:.3g}", odds=_odds(ratio.chance_ever)
        )
        return Outcome.MISMATCH, told, None
    if min(map(len, values)) < plan.least_devices:
        return (
            Outcome.WAITING,
            f"{counts} reported enough; {plan.least_devices} of each are needed.",
            None,
        )
    found = arms_difference(*values, error=plan.error, effect=plan.least_effect)
    if found is None:
        return (
            Outcome.WAITING,
            f"Nearly all devices report the same {plan.metric}: nothing is known yet.",
            None,
        )
    outcome = _outcome(plan, found)
    return outcome, _SENTENCES[outcome].format(least=f"{plan.least_effect:g}"), found


def _outcome(plan: ExperimentPlan, found: Interval) -> Outcome:
    low, high = (found.low, found.high) if plan.higher_is_better else (-found.high, -found.low)
    if low > 0:
        return Outcome.BETTER
    if high < 0:
        return Outcome.WORSE
    return Outcome.SAME if max(high, -low) < plan.least_effect else Outcome.OPEN


_SENTENCES = {
    Outcome.RANDOMIZED: (
        "Devices report {metric} only with noise against the fleet: the value of one device is mostly noise. Choose a "
        "metric that is not randomized."
    ),
    Outcome.MISMATCH: (
        "{counts} report enough, and {share} of them should be in the treatment: by chance that happens in one of "
        "{odds} experiments at most. What is compared is not alike: find out why devices of one arm say less, and "
        "begin anew."
    ),
    Outcome.BETTER: "The treatment is better: the whole interval lies on its side.",
    Outcome.WORSE: "The treatment is worse: the whole interval lies on the control's side.",
    Outcome.SAME: "If they differ, then by less than {least}, which is what matters.",
    Outcome.OPEN: "The interval holds no difference and one of {least} or more: it needs more devices, or more time.",
}


def _course(
    plan: ExperimentPlan,
    arms: tuple[Arm, Arm],
    at: Callable[[float], tuple[Values, Values]],
    now_s: float,
) -> tuple[Point, ...]:
    """Return the difference as it was known before: by what is dated before, not by when it arrived."""
    begin_s = min(float(arm.since_s.min()) for arm in arms)
    hours = max(1, math.ceil((now_s - begin_s) / HOUR_S))
    every = math.ceil(hours / POINTS)
    points = []
    for hour in range(hours, 0, -every):
        until_s = begin_s + hour * HOUR_S
        values = at(until_s)
        if min(map(len, values)) < plan.least_devices:
            break
        found = arms_difference(*values, error=plan.error, effect=plan.least_effect)
        if found is not None:
            points.append(Point(min(until_s, now_s), len(values[0]), len(values[1]), found))
    return tuple(reversed(points))


def _arm(arm: Arm, values: Values, *, shown: bool) -> ArmReading:
    mean = float(values.mean()) if shown else None
    return ArmReading(arm.drawn, len(values), arm.pinned, arm.gone, mean)


def _odds(chance: float) -> str:
    return f"{1 / chance:,.0f}" if chance > 1e-9 else "a billion"
