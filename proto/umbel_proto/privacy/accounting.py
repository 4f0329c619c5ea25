"""What a noised sum gives away: Rényi curves of the Skellam mechanism, and epsilon from them.

A curve is the Rényi divergence bound at each of ``SKELLAM_ORDERS``, shape (orders,). Curves of
releases about the same device add up. Orders from 2 on are integers, for which the published bound
is proven; the others have a bound of our own, and matter to an epsilon above about 10.

Source: docs/spec/privacy.md, "Accounting".
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError

ORDERS: NDArray[np.int64] = np.array([*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512], np.int64)
ORDERS.setflags(write=False)
"""The integer orders, for bounds that are proven for integers only."""

_BETWEEN = [2.25, 2.5, 2.75, 3.25, 3.5, 3.75, 4.25, 4.5, 4.75, 5.5, 6.5, 7.5]
_REAL_ORDERS = np.array([*(1 + 2.0 ** (-np.arange(24, 0, -1) / 4)), *_BETWEEN])

SKELLAM_ORDERS: NDArray[np.float64] = np.concatenate([_REAL_ORDERS, ORDERS])
SKELLAM_ORDERS.setflags(write=False)
"""Those, and others before them: a large epsilon is least at an order near 1."""

LEAST_VARIANCE = 100.0
"""Of the noise, for the bound at real orders."""

_EVERY_ORDER = np.arange(2, int(ORDERS[-1]) + 1)
LOG_FACTORIAL = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, int(ORDERS[-1]) + 1)))])
"""Logarithms of 0! to 512!."""


def rounded_l2_bound_sq(scaled_clip: float, padded: int) -> float:
    """Return the largest sum of squares that randomized rounding is allowed to reach.

    Rounding that is redrawn until it stays below succeeds with probability 1 - exp(-1/2) or more
    at each try, whatever the vector.

    Args:
        scaled_clip: ``scale * clip``, the length before rounding, > 0.
        padded: Coordinates.

    Source:
        Kairouz, Liu, Steinke, ICML 2021 (arXiv 2102.06387v4), theorem 1, with beta = exp(-1/2).
    """
    # The theorem's other bound, (scaled_clip + sqrt(padded))**2, is never the smaller at this beta.
    return scaled_clip**2 + padded / 4 + scaled_clip + math.sqrt(padded) / 2


def l1_bound(bound_sq: float, padded: int) -> float:
    """Return the largest L1 norm of integers whose squares sum to ``bound_sq`` at most.

    An integer's size is never above its square; and by Cauchy-Schwarz.
    """
    return min(math.sqrt(padded * bound_sq), bound_sq)


def skellam_rdp(
    orders: NDArray[np.int64], *, bound_sq: float, padded: int, variance: float
) -> NDArray[np.float64]:
    """Return the Rényi divergence bound of one Skellam release at ``orders``, same shape.

    Args:
        orders: Integers >= 2.
        bound_sq: L2 sensitivity squared, of integers.
        padded: Coordinates.
        variance: Noise per coordinate in the sum, > 0.

    Source:
        Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated
        Learning", NeurIPS 2021 (arXiv 2110.04995), section 3: the multidimensional bound.
    """
    # B**2 is an integer of any size: times an order it would wrap in 64 bits, and the cost become negative.
    real, bound_sq = orders.astype(np.float64), float(bound_sq)
    l1 = l1_bound(bound_sq, padded)
    squares = ((2 * real - 1) * bound_sq + 6 * l1) / (4 * variance**2)
    curve: NDArray[np.float64] = np.minimum(squares, 3 * l1 / (2 * variance))
    curve += real * bound_sq / (2 * variance)
    return curve


def real_order_rdp(
    orders: NDArray[np.float64], *, bound_sq: float, padded: int, variance: float
) -> NDArray[np.float64]:
    """Return the Rényi divergence bound of one Skellam release at real ``orders``, same shape.

    Infinite where it is not proven: for a variance below ``LEAST_VARIANCE``, and at orders above
    1 + variance / B.

    Args:
        orders: Real numbers > 1.
        bound_sq: L2 sensitivity squared, of integers.
        padded: Coordinates.
        variance: Noise per coordinate in the sum, > 0.

    Source:
        docs/spec/privacy.md, 5.5, with the proof.
    """
    if variance < LEAST_VARIANCE:
        return np.full(orders.shape, math.inf)
    excess = orders - 1
    tilt = excess * math.sqrt(bound_sq) / variance
    slope = 1 + 2 / variance
    with np.errstate(over="ignore"):
        grown = 2 * variance * np.sinh(slope * tilt / 2) ** 2 / excess  # cosh(x) - 1, without cancellation
    curve = grown + slope * bound_sq / (2 * variance) + 7 * l1_bound(bound_sq, padded) / variance**1.5
    return np.where(tilt <= 1, curve, math.inf)


def release_rdp(
    *, bound_sq: float, padded: int, variance: float, sampling_rate: float = 1.0
) -> NDArray[np.float64]:
    """Return the curve of one noised sum, shape of ``SKELLAM_ORDERS``; infinite without noise.

    Args:
        bound_sq: B**2, integer L2 bound squared, > 0.
        padded: Coordinates.
        variance: Noise that may be counted, per coordinate in the sum, squared integer steps.
        sampling_rate: Probability with which a device is drawn into a round, in (0, 1]. Below 1
            only for an observer who learns nothing else of who was drawn.

    Raises:
        UsageError: An argument is out of its range.
    """
    if not (math.isfinite(bound_sq) and bound_sq > 0):
        raise UsageError(f"bound_sq is {bound_sq}: choose a finite number > 0.")
    if padded < 1:
        raise UsageError(f"padded is {padded}: a sum has at least one coordinate.")
    if not (math.isfinite(variance) and variance >= 0):
        raise UsageError(f"The noise variance is {variance}: choose a finite number >= 0.")
    if not 0 < sampling_rate <= 1:
        raise UsageError(f"sampling_rate is {sampling_rate}: choose one in (0, 1].")
    if variance == 0:
        return np.full(SKELLAM_ORDERS.shape, math.inf)
    whole = skellam_rdp(_EVERY_ORDER, bound_sq=bound_sq, padded=padded, variance=variance)
    real = real_order_rdp(_REAL_ORDERS, bound_sq=bound_sq, padded=padded, variance=variance)
    if sampling_rate < 1:
        whole = _sampled_rdp(whole, sampling_rate)
    # A divergence grows with its order: none exceeds that of the next integer.
    above = whole[np.maximum(np.ceil(_REAL_ORDERS).astype(np.int64) - 2, 0)]
    return np.concatenate([np.minimum(real, above), whole[ORDERS - 2]])


def _sampled_rdp(whole: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Return the curve at every order 2..512 after Poisson sampling at ``rate``, same shape.

    Noise that is symmetric is as likely one update above zero as below: a reflection exchanges the
    two outcomes to be told apart. The worse direction is then that of the binomial sum.

    Source:
        Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism",
        arXiv 1908.10530, theorem 5 and section 3.3. Sampling never makes things worse, hence the
        minimum.
    """
    moments = (_EVERY_ORDER - 1) * whole
    sampled = np.empty_like(whole)
    for index, order in enumerate(_EVERY_ORDER):
        drawn = _EVERY_ORDER[: index + 1]
        terms = (
            LOG_FACTORIAL[order]
            - LOG_FACTORIAL[drawn]
            - LOG_FACTORIAL[order - drawn]
            + (order - drawn) * math.log1p(-rate)
            + drawn * math.log(rate)
            + moments[: index + 1]
        )
        none = (order - 1) * math.log1p(-rate) + math.log1p((order - 1) * rate)
        sampled[index] = np.logaddexp(none, np.logaddexp.reduce(terms)) / (order - 1)
    return np.minimum(sampled, whole)


def rdp_to_epsilon(
    rdp: NDArray[np.float64], delta: float, orders: NDArray[np.float64] | NDArray[np.int64] = ORDERS
) -> float:
    """Return the least epsilon that a curve shows at ``delta``.

    Args:
        rdp: Curve, shape (orders,); infinite entries show nothing.
        delta: In (0, 1).
        orders: The curve's, > 1: ``SKELLAM_ORDERS`` for curves of ``release_rdp``.

    Raises:
        UsageError: ``delta`` is out of its range.

    Source:
        Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy",
        arXiv 2004.00010v4, proposition 12; and delta <= sqrt(1 - exp(-KL)) for tiny divergences
        (Bretagnolle-Huber), as in dp_accounting's compute_epsilon.
    """
    if not 0 < delta < 1:
        raise UsageError(f"delta is {delta}: choose one in (0, 1).")
    if np.any(delta**2 + np.expm1(-rdp) > 0):
        return 0.0
    candidates = rdp + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return max(0.0, float(candidates.min()))


def epsilon(
    bound_sq: float,
    padded: int,
    variance_total: float,
    delta: float,
    participations: int,
    sampling_rate: float = 1.0,
) -> float:
    """Return the epsilon of ``participations`` equal releases; infinite without noise.

    Args:
        bound_sq: B**2, integer L2 bound squared.
        padded: Coordinates.
        variance_total: Noise that may be counted, per coordinate in the sum.
        delta: In (0, 1).
        participations: Rounds composed, >= 0; with sampling, rounds held, not rounds drawn into.
        sampling_rate: See ``release_rdp``.

    Raises:
        UsageError: An argument is out of its range.
    """
    if participations < 0:
        raise UsageError(f"participations is {participations}: choose a number >= 0.")
    curve = release_rdp(
        bound_sq=bound_sq, padded=padded, variance=variance_total, sampling_rate=sampling_rate
    )
    total = participations * curve if participations else np.zeros_like(curve)
    return rdp_to_epsilon(total, delta, SKELLAM_ORDERS)


def noise_multiplier(target_epsilon: float, delta: float, participations: int) -> float:
    """Return the least z = sqrt(variance) / B that keeps to ``target_epsilon`` on a fine grid.

    A fine grid, B large, is where Skellam noise costs what normal noise costs. ``variance_for``
    tells what a real grid needs on top.

    Raises:
        UsageError: An argument is out of its range.
    """
    fine = 1e12
    return math.sqrt(variance_for(target_epsilon, fine, 1, delta, participations) / fine)


def variance_for(
    target_epsilon: float, bound_sq: float, padded: int, delta: float, participations: int
) -> float:
    """Return the least noise variance, to a relative 1e-9, whose ``epsilon`` is at most the target.

    Args:
        target_epsilon: > 0, finite.
        bound_sq: See ``epsilon``.
        padded: See ``epsilon``.
        delta: See ``epsilon``.
        participations: See ``epsilon``; at least 1.

    Raises:
        UsageError: An argument is out of its range.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise UsageError(f"The target epsilon is {target_epsilon}: choose a finite number > 0.")
    if participations < 1:
        raise UsageError(f"participations is {participations}: choose a number >= 1.")
    low, high = math.log(bound_sq) - 1.0, math.log(bound_sq) + 1.0
    while epsilon(bound_sq, padded, math.exp(low), delta, participations) <= target_epsilon:
        low -= 4.0
    while epsilon(bound_sq, padded, math.exp(high), delta, participations) > target_epsilon:
        high += 4.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if epsilon(bound_sq, padded, math.exp(middle), delta, participations) <= target_epsilon:
            high = middle
        else:
            low = middle
    return math.exp(high)
