"""How to encode a short vector of counts: as finely as noise and slots allow, for there are few of them.

Source: docs/spec/queries.md, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from umbel_proto.errors import UsageError
from umbel_proto.privacy.accounting import epsilon as epsilon_of
from umbel_proto.privacy.accounting import rounded_l2_bound_sq, variance_for
from umbel_proto.privacy.encode import SHRINK, Encoding
from umbel_proto.privacy.plan import fraction_above
from umbel_proto.privacy.rotate import smooth_length
from umbel_proto.privacy.skellam import MAX_VARIANCE

BITS = 32
FINEST = 2.0**20
"""s C without noise: steps of a millionth of the bound."""
_COARSER = 0.9
_SPREAD = 8.0
"""So many standard deviations of noise fit beside the largest sum: a wrap is rarer than 1 in 10^15."""
_HALF = 2.0 ** (BITS - 1)


@dataclass(frozen=True, slots=True)
class CountPlan:
    """How the answers of a query are summed, and what that costs.

    Args:
        encoding: How devices encode.
        honest: n_eff, how many devices add noise that may be counted.
        epsilon: What an answer costs a device, against the server.
        noise_multiplier: z = sqrt(honest * mu_local) / B.
    """

    encoding: Encoding
    honest: int
    epsilon: float
    noise_multiplier: float

    def error(self, count: int) -> float:
        """Return the standard deviation of each number of the sum over ``count`` devices: noise and rounding."""
        return math.sqrt(count * (float(self.encoding.noise) + 0.25)) / (self.encoding.scale * SHRINK)


def plan_counts(
    *,
    dim: int,
    bound: float,
    devices: int,
    honest: int,
    delta: float,
    epsilon: float = math.inf,
    noise_floor: float = 0.0,
) -> CountPlan:
    """Plan the encoding of a query's answers.

    Args:
        dim: Numbers of an answer.
        bound: C, the largest L2 norm of an answer.
        devices: The most devices in the sum.
        honest: n_eff of the smallest cohort, in [1, devices].
        delta: In (0, 1).
        epsilon: What an answer may cost at most, > 0.
        noise_floor: Least noise multiplier; more noise than ``epsilon`` needs if that is too little.

    Raises:
        UsageError: An argument is out of its range.
    """
    if not 1 <= honest <= devices:
        raise UsageError(f"honest is {honest}: of {devices} devices, choose a number in [1, {devices}].")
    if not epsilon > 0:
        raise UsageError(f"epsilon is {epsilon}: choose a number > 0.")
    padded, length = smooth_length(dim), FINEST
    while length >= 1:
        bound_sq = math.floor(rounded_l2_bound_sq(length, padded))
        variance = noise_floor**2 * bound_sq
        if math.isfinite(epsilon):
            variance = max(variance, variance_for(epsilon, bound_sq, padded, delta, 1))
        noise = fraction_above(variance / honest)
        reach = devices * math.sqrt(bound_sq) + _SPREAD * math.sqrt(devices * (float(noise) + 0.25))
        if noise <= MAX_VARIANCE and reach < _HALF:
            encoding = Encoding(dim, padded, BITS, bound, length / bound, bound_sq, noise)
            total = float(honest * noise)
            cost = epsilon_of(bound_sq, padded, total, delta, 1)
            return CountPlan(encoding, honest, cost, math.sqrt(total / bound_sq))
        length *= _COARSER
    raise UsageError(
        f"No sum of {devices} devices carries so much noise: allow a larger epsilon, or ask more devices."
    )
