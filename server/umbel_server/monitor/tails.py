"""Tails of the gamma and chi-square distributions: how often chance alone gives as much.

Source: Press et al., "Numerical Recipes", 3rd edition 2007, section 6.2: the incomplete gamma function by its series
below its mean and by Lentz's continued fraction above it.
"""

from __future__ import annotations

import math

_STEPS = 100_000  # Near the mean of a large shape it takes about 6 sqrt(shape) of them.
_TINY = 1e-300


def gamma_above(x: float, shape: float) -> float:
    """Return the chance that a gamma variable of scale 1 exceeds x.

    Args:
        x: Any number.
        shape: Its shape, > 0.
    """
    if x <= 0:
        return 1.0
    if math.isinf(x):
        return 0.0
    front = math.exp(max(shape * math.log(x) - x - math.lgamma(shape), -745.0))
    if x < shape + 1:
        return min(max(1.0 - front * _series(x, shape), 0.0), 1.0)
    return min(front * _fraction(x, shape), 1.0)


def chi_square_above(x: float, freedom: float) -> float:
    """Return the chance that a chi-square variable exceeds x; ``freedom`` > 0 need not be whole."""
    return gamma_above(x / 2, freedom / 2)


def chi_square_quantile(tail: float, freedom: float) -> float:
    """Return what a chi-square variable exceeds with a chance, by bisection to 1e-9 of it.

    Args:
        tail: The chance, in (0, 1).
        freedom: Degrees of freedom, > 0.
    """
    return 2 * gamma_quantile(tail, freedom / 2)


def gamma_quantile(tail: float, shape: float) -> float:
    """Return what a gamma variable of scale 1 exceeds with a chance, by bisection to 1e-9 of it."""
    low, high = 0.0, max(1.0, shape)
    while gamma_above(high, shape) > tail:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gamma_above(middle, shape) > tail else (low, middle)
    return high


def _series(x: float, shape: float) -> float:
    term = total = 1 / shape
    for step in range(1, _STEPS):
        term *= x / (shape + step)
        total += term
        if term < total * 1e-16:
            break
    return total


def _fraction(x: float, shape: float) -> float:
    b = x + 1 - shape
    c, d = 1 / _TINY, 1 / b
    h = d
    for step in range(1, _STEPS):
        a = step * (shape - step)
        b += 2
        d = a * d + b
        c = b + a / c
        d = 1 / (d if abs(d) > _TINY else _TINY)
        c = c if abs(c) > _TINY else _TINY
        h *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return h
