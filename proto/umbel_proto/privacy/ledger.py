"""What a device has spent of its privacy budget: rules only; where charges are kept is the device's part.

Source: docs/spec/privacy.md, "Ledger".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import BudgetError, UsageError
from umbel_proto.ids import RunId
from umbel_proto.privacy.accounting import SKELLAM_ORDERS, rdp_to_epsilon, release_rdp


@dataclass(frozen=True, slots=True)
class Charge:
    """One taking part in one session: enough to account for it again, years later.

    Args:
        run: The run.
        round: Its round, >= 0.
        attempt: Which try at that round, >= 0. Each is charged: an abort refunds nothing.
        sid: The session's id, 32 bytes.
        bound_sq: B**2 of the session's encoding, > 0.
        padded: Coordinates of the encoding, those beside the update included.
        variance: Noise that may be counted: honest devices times mu_local, squared integer steps;
            0 if the session adds none.
        at_s: When it was charged, Unix seconds. Not used in accounting.

    Raises:
        UsageError: A value is out of its range.
    """

    run: RunId
    round: int
    attempt: int
    sid: bytes = field(repr=False)
    bound_sq: int
    padded: int
    variance: Fraction
    at_s: float

    def __post_init__(self) -> None:
        if self.round < 0 or self.attempt < 0:
            raise UsageError(f"round {self.round}, attempt {self.attempt}: both count from 0.")
        if len(self.sid) != 32:
            raise UsageError(f"A session id has 32 bytes, this one {len(self.sid)}.")
        if self.bound_sq < 1 or self.padded < 1:
            raise UsageError(f"bound_sq {self.bound_sq}, padded {self.padded}: both are at least 1.")
        if not isinstance(self.variance, Fraction) or self.variance < 0:
            raise UsageError(f"variance is {self.variance!r}: give a Fraction >= 0.")


def spent(charges: Iterable[Charge], delta: float) -> float:
    """Return the epsilon of all charges together; 0 for none, infinite if one had no noise.

    The same session charged twice counts twice. Only the caller knows whether it resent the same
    bytes, which costs nothing, or encoded anew, which does.

    Raises:
        UsageError: ``delta`` is not in (0, 1).
    """
    total = np.zeros(SKELLAM_ORDERS.shape)
    # A run's rounds share one curve: add it once, times their number.
    counts: dict[tuple[int, int, Fraction], int] = {}
    for charge in charges:
        key = (charge.bound_sq, charge.padded, charge.variance)
        counts[key] = counts.get(key, 0) + 1
    for (bound_sq, padded, variance), count in counts.items():
        total += count * release_rdp(bound_sq=bound_sq, padded=padded, variance=float(variance))
    return rdp_to_epsilon(total, delta, SKELLAM_ORDERS)


def course(charges: Iterable[Charge], delta: float) -> list[float]:
    """Return the epsilon after each charge, in their order: the last is what ``spent`` says of all.

    Raises:
        UsageError: ``delta`` is not in (0, 1).
    """
    total = np.zeros(SKELLAM_ORDERS.shape)
    curves: dict[tuple[int, int, Fraction], NDArray[np.float64]] = {}
    after = []
    for charge in charges:
        key = (charge.bound_sq, charge.padded, charge.variance)
        if key not in curves:
            bound_sq, padded, variance = key
            curves[key] = release_rdp(bound_sq=bound_sq, padded=padded, variance=float(variance))
        total = total + curves[key]
        after.append(rdp_to_epsilon(total, delta, SKELLAM_ORDERS))
    return after


def check(charges: Iterable[Charge], new: Charge, *, budget_epsilon: float, budget_delta: float) -> float:
    """Return the epsilon after ``new``, if the budget covers it.

    Args:
        charges: All charges of this device's life.
        new: What taking part would add.
        budget_epsilon: Most the device may spend, > 0; infinite to only keep count.
        budget_delta: The delta that goes with it, in (0, 1).

    Raises:
        BudgetError: It does not. Nothing of the session may leave the device.
        UsageError: The budget is no budget.
    """
    if not budget_epsilon > 0:
        raise UsageError(f"budget_epsilon is {budget_epsilon}: choose a number > 0.")
    before = list(charges)
    after = spent([*before, new], budget_delta)
    if after <= budget_epsilon:
        return after
    where = f"Round {new.round} of run {new.run}"
    if math.isinf(after):
        culprit = "adds no noise" if new.variance == 0 else "follows a round without noise"
        raise BudgetError(
            f"{where} {culprit}, and budget_epsilon is {budget_epsilon:g}: no finite budget covers a round "
            "without noise; plan runs with a noise_multiplier above 0."
        )
    raise BudgetError(
        f"{where} would bring this device's epsilon from {spent(before, budget_delta):.4g} to {after:.4g} at "
        f"delta {budget_delta:g}, and budget_epsilon is {budget_epsilon:g}: raise budget_epsilon in the "
        f"fleet's policy to at least {after * 1.001:.4g}, or plan the run with more noise or fewer rounds."
    )
