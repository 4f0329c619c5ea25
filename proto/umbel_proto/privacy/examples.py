"""What training gives away about one example: the Poisson-sampled Gaussian mechanism, and its charges.

The second unit of privacy. Curves are those of ``umbel_proto.privacy.accounting``, at the same orders, and
compose in the same way; the two units are never added to each other.

Source: docs/spec/privacy.md, "Example-level privacy".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import BudgetError, UsageError
from umbel_proto.ids import RunId
from umbel_proto.privacy.accounting import LOG_FACTORIAL, ORDERS, rdp_to_epsilon


@dataclass(frozen=True, slots=True)
class NoisySteps:
    """Steps of training that each release one noised sum over a random draw of the examples.

    Args:
        rate: Probability with which each example is drawn into a step, in (0, 1].
        steps: How many steps, >= 1.
        noise: Standard deviation of the noise over the largest norm of an example's gradient; 0 if there
            is none.

    Raises:
        UsageError: A value is out of its range.
    """

    rate: float
    steps: int
    noise: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UsageError(f"rate is {self.rate}: choose one in (0, 1].")
        if self.steps < 1:
            raise UsageError(f"steps is {self.steps}: choose 1 or more.")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise UsageError(f"example_noise is {self.noise}: choose a number >= 0.")

    def rdp(self) -> NDArray[np.float64]:
        """Return the Rényi divergence bound at each of ``ORDERS``, shape (orders,); infinite without noise."""
        return self.steps * sampled_gaussian_rdp(self.rate, self.noise)


@dataclass(frozen=True, slots=True)
class ExampleCharge:
    """One training on a device's examples: enough to account for it again, years later.

    Args:
        run: The run.
        round: Its round, >= 0.
        attempt: Which try at that round, >= 0. Each is charged: an abort refunds nothing.
        sid: The id of the session that asked for it, 32 bytes.
        release: What the training gave away.
        at_s: When it was charged, Unix seconds. Not used in accounting.

    Raises:
        UsageError: A value is out of its range.
    """

    run: RunId
    round: int
    attempt: int
    sid: bytes = field(repr=False)
    release: NoisySteps
    at_s: float

    def __post_init__(self) -> None:
        if self.round < 0 or self.attempt < 0:
            raise UsageError(f"round {self.round}, attempt {self.attempt}: both count from 0.")
        if len(self.sid) != 32:
            raise UsageError(f"A session id has 32 bytes, this one {len(self.sid)}.")


def sampled_gaussian_rdp(rate: float, noise: float) -> NDArray[np.float64]:
    """Return the curve of one noised sum over a Poisson sample, shape (orders,); infinite without noise.

    Args:
        rate: Probability with which each example is drawn, in (0, 1].
        noise: Noise multiplier, >= 0.

    Source:
        Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism",
        arXiv 1908.10530, section 3.3: exact at integer orders.
    """
    with np.errstate(over="ignore", divide="ignore"):
        gap = np.divide(1.0, 2.0 * np.float64(noise) ** 2)  # a noise whose square underflows is none
        if math.isinf(gap):
            return np.full(ORDERS.shape, math.inf)
        if rate == 1:
            return np.asarray(ORDERS * gap)
        curve = np.empty(ORDERS.shape)
        for index, order in enumerate(ORDERS):
            drawn = np.arange(order + 1)
            terms = (
                LOG_FACTORIAL[order]
                - LOG_FACTORIAL[drawn]
                - LOG_FACTORIAL[order - drawn]
                + (order - drawn) * math.log1p(-rate)
                + drawn * math.log(rate)
                + drawn * (drawn - 1.0) * gap
            )
            curve[index] = np.logaddexp.reduce(terms) / (order - 1)
    return np.maximum(curve, 0.0)  # rounding may leave a hair below


def spent(charges: Iterable[ExampleCharge], delta: float) -> float:
    """Return the epsilon of all charges together; 0 for none, infinite if one had no noise.

    Raises:
        UsageError: ``delta`` is not in (0, 1).
    """
    # Trainings of one run often share a rate and noise: add their curve once, times their steps.
    steps: dict[tuple[float, float], int] = {}
    for charge in charges:
        key = (charge.release.rate, charge.release.noise)
        steps[key] = steps.get(key, 0) + charge.release.steps
    total = np.zeros(ORDERS.shape)
    for (rate, noise), count in steps.items():
        total += NoisySteps(rate, count, noise).rdp()
    return rdp_to_epsilon(total, delta)


def course(charges: Iterable[ExampleCharge], delta: float) -> list[float]:
    """Return the epsilon after each charge, in their order: the last is what ``spent`` says of all.

    Raises:
        UsageError: ``delta`` is not in (0, 1).
    """
    total = np.zeros(ORDERS.shape)
    step: dict[tuple[float, float], NDArray[np.float64]] = {}
    after = []
    for charge in charges:
        rate, noise = charge.release.rate, charge.release.noise
        if (rate, noise) not in step:
            step[rate, noise] = NoisySteps(rate, 1, noise).rdp()
        total = total + charge.release.steps * step[rate, noise]
        after.append(rdp_to_epsilon(total, delta))
    return after


def unprotected(sessions: Iterable[bytes], trainings: Iterable[ExampleCharge]) -> int:
    """Return in how many sessions an update left that no noisy training is charged for.

    If it is any, what is spent on the device's examples is infinite, whatever ``spent`` says of the others.

    Args:
        sessions: Ids of the sessions that the device is charged for.
        trainings: The charges of its trainings.
    """
    return len(set(sessions) - {training.sid for training in trainings})


def check(
    charges: Iterable[ExampleCharge], new: ExampleCharge, *, budget_epsilon: float, budget_delta: float
) -> float:
    """Return the epsilon after ``new``, if the budget covers it.

    Args:
        charges: All charges of this device's life.
        new: What training would add.
        budget_epsilon: Most that may be spent on one example, > 0; infinite to only keep count.
        budget_delta: The delta that goes with it, in (0, 1).

    Raises:
        BudgetError: It does not. The device must not train.
        UsageError: The budget is no budget.
    """
    if not budget_epsilon > 0:
        raise UsageError(f"example_budget_epsilon is {budget_epsilon}: choose a number > 0.")
    before = list(charges)
    after = spent([*before, new], budget_delta)
    if after <= budget_epsilon:
        return after
    raise BudgetError(
        f"Round {new.round} of run {new.run} would bring the epsilon of this device's examples from "
        f"{spent(before, budget_delta):.4g} to {after:.4g} at delta {budget_delta:g}, and the budget is "
        f"{budget_epsilon:g}: plan the run with a greater example_noise, fewer epochs or fewer rounds."
    )


def noise_for(target_epsilon: float, delta: float, *, rate: float, steps: int) -> float:
    """Return the least noise multiplier, to a relative 1e-6, that keeps ``steps`` to a target.

    Args:
        target_epsilon: > 0, finite.
        delta: In (0, 1).
        rate: Probability with which each example is drawn into a step, in (0, 1].
        steps: Steps in all rounds together, >= 1.

    Raises:
        UsageError: An argument is out of its range.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise UsageError(f"The target epsilon is {target_epsilon}: choose a finite number > 0.")

    def misses(noise: float) -> bool:
        return rdp_to_epsilon(NoisySteps(rate, steps, noise).rdp(), delta) > target_epsilon

    low, high = 0.0, 1.0
    while misses(high):
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if misses(middle) else (low, middle)
    return high
