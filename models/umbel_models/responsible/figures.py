"""Figures of a model card, and the intervals that say how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbel_models import evaluation
from umbel_proto.errors import UsageError

Labels = NDArray[np.int64]
Figures = dict[str, float | int | str]
"""One section of a card: what was measured, by name."""

_Z95 = 1.959963984540054  # The normal distribution's 97.5 % point.
RESAMPLES = 1000


class Interval(NamedTuple):
    """A measured value, and the range that holds the true one in 95 of 100 repetitions."""

    value: float
    low: float
    high: float

    def figures(self, name: str) -> Figures:
        """Return the three numbers under names that begin with ``name``, rounded to 4 places."""
        return {
            name: round(self.value, 4),
            f"{name} low": round(self.low, 4),
            f"{name} high": round(self.high, 4),
        }


def wilson(hits: int, count: int) -> Interval:
    """Return a share, ``hits`` of ``count`` >= 1, with an interval that is honest near 0 and 1 and for few."""
    if not 0 <= hits <= count or count < 1:
        raise UsageError(f"{hits} of {count} is no share: give 0 <= hits <= count, and count >= 1.")
    return Interval(hits / count, *evaluation.wilson(hits, count))


def mean(values: NDArray[np.floating]) -> Interval:
    """Return the mean of independent values, shape (n,), with n >= 2, and its normal interval."""
    value = float(np.mean(values))
    half = _Z95 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(value, value - half, value + half)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return a statistic of examples with its percentile bootstrap interval.

    A resample on which the statistic is not defined (NaN) is left out.

    Args:
        statistic: Maps rows, which may repeat, to a number.
        count: How many examples there are, >= 1.
        seed: Which resamples are drawn.
        resamples: How many of them.

    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    if count < 1:
        raise UsageError("There is nothing to measure: give at least one example.")
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(rng.integers(count, size=count)) for _ in range(resamples)])
    value = statistic(np.arange(count))
    if np.isnan(draws).all():
        return Interval(value, value, value)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))
