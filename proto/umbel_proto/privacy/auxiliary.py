"""Quantities that devices add to the sum beside their updates: metrics, weights, who was clipped.

The server sees their noised means over the survivors, and no device's own.

Source: docs/spec/privacy.md, "Auxiliary quantities".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name

WITHIN_CLIP = "within_clip"
"""1 if the update was no longer than the clip, else 0: what adaptive clipping follows."""

WITHIN: Mapping[str, float] = {
    "within_quarter_clip": 0.25,
    "within_half_clip": 0.5,
    WITHIN_CLIP: 1.0,
    "within_double_clip": 2.0,
    "within_fourfold_clip": 4.0,
}
"""Clips that an update, before it is clipped, must be no longer than for a 1, else it is a 0; the shortest first.

Their means are the cumulative distribution of the lengths.
"""

WEIGHT = "weight"
"""How many examples a device weighs: its update is multiplied by it, over the quantity's ``high``."""

LOSS = "loss"
"""Mean loss of the model as received, on the device's evaluation examples."""

ACCURACY = "accuracy"
"""Share of the device's evaluation examples that the model as received classifies right."""

TRAINING_LOSS = "training_loss"
"""Mean loss over the last epoch of training."""

NAMES = frozenset({*WITHIN, WEIGHT, LOSS, ACCURACY, TRAINING_LOSS})
"""All that a device answers; it refuses to be asked for anything else."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number that each device adds to the sum.

    Args:
        name: One of ``NAMES``.
        low: Values below count as this.
        high: Values above count as this; > ``low``.

    Raises:
        UsageError: The name is unknown, or the bounds are no interval.
    """

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        check_name(self.name, "quantity")
        if self.name not in NAMES:
            raise UsageError(f"{self.name!r} is no quantity: choose from {', '.join(sorted(NAMES))}.")
        # An overflow on the way to [-1, 1] would be found when the ledger is charged already.
        if not (self.low < self.high and math.isfinite(2 * (self.high - self.low))):
            raise UsageError(f"{self.name} is bounded by {self.low} and {self.high}: choose low < high.")
        if self.name == WEIGHT and self.low != 0:
            raise UsageError(f"weight is bounded by {self.low} below: choose 0, or the mean is not a mean.")
        if self.name in WITHIN and (self.low, self.high) != (0, 1):
            raise UsageError(f"{self.name} is 0 or 1: bound it by these.")

    def to_unit(self, value: float) -> float:
        """Return ``value``, clamped, on the scale from -1 (low) to 1 (high).

        Raises:
            UsageError: It is not a number.
        """
        if math.isnan(value):
            raise UsageError(f"{self.name} is not a number: the model gives no finite result on this data.")
        clamped = min(max(value, self.low), self.high)
        return min(max(2 * (clamped - self.low) / (self.high - self.low) - 1, -1.0), 1.0)

    def from_unit(self, mean: float) -> float:
        """Return the mean that stands at ``mean`` on that scale; noise may have taken it outside."""
        return self.low + (mean + 1) * (self.high - self.low) / 2

    def error_from_unit(self, deviation: float) -> float:
        """Return a standard deviation on that scale in the quantity's own unit."""
        return deviation * (self.high - self.low) / 2


def within(length: float, clip: float) -> dict[str, float]:
    """Return the value of each of ``WITHIN`` on one device.

    Args:
        length: L2 norm of its update before it is clipped, model units.
        clip: C of the round, model units.
    """
    return {name: float(length <= clips * clip) for name, clips in WITHIN.items()}


def next_clip(
    clip: float, within: float, *, quantile: float = 0.5, rate: float = 0.2, low: float, high: float
) -> float:
    """Return the clip of the next round: longer if more than ``quantile`` of the updates were cut.

    Args:
        clip: C of this round, model units.
        within: Share of updates within C, as decoded; noise may have taken it out of [0, 1].
        quantile: The share to reach, in (0, 1).
        rate: How fast, > 0.
        low: Least clip, > 0.
        high: Largest clip.

    Source:
        Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive
        Clipping", NeurIPS 2021 (arXiv 1905.03871), algorithm 1: the geometric update.
    """
    share = min(max(within, 0.0), 1.0)
    return min(max(clip * math.exp(-rate * (share - quantile)), low), high)
