"""Rates with intervals: how many of the values were so, and how sure that is.

Source:
    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927);
    Newcombe, "Interval Estimation for the Difference Between Independent Proportions", Statistics in Medicine 17
    (1998), method 10: the difference of two rates from the intervals of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel_proto.histogram import MAX_COUNT
from umbel_server.monitor.sample import Sample

Z = 1.959963984540054
"""Of an interval of 95 %."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate, with its interval of 95 %.

    Args:
        value: In 0..1.
        low: Where its interval begins.
        high: Where it ends.
        counted: Of how many values it is.
        worth: Of how many independent ones.
        devices: Of how many devices.
    """

    value: float
    low: float
    high: float
    counted: int
    worth: float
    devices: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A difference, with its interval of 95 %, or a wider one where many are looked at.

    Args:
        value: In -1..1.
        low: Where its interval begins.
        high: Where it ends.
    """

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.low <= 0 <= self.high


def wilson(value: float, n: float, z: float = Z) -> tuple[float, float]:
    """Return Wilson's interval of a rate.

    Args:
        value: The rate, in 0..1.
        n: Of how many independent values, > 0.
        z: The normal quantile of half its tail: by default of 95 %.
    """
    middle = value + z**2 / (2 * n)
    half = z * math.sqrt(max(value * (1 - value), 0.0) / n + z**2 / (4 * n * n))
    scale = 1 + z**2 / n
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def rate(told: Iterable[tuple[int, int]]) -> Rate | None:
    """Return a rate over devices; None if nothing was counted.

    No device counts for more than five usual ones, and what they differ by widens the interval. Who tells of more
    hits than there were values is left out: it lies or is broken.

    Args:
        told: Of each device, how many hits, of how many values.
    """
    pairs = [pair for pair in told if counts(*pair)]
    return rate_of(np.array(pairs, np.int64)) if pairs else None


def counts(hits: int, n: int) -> bool:
    """Whether a device told of something, and of no more hits than there were values."""
    return 0 <= hits <= n <= MAX_COUNT and n > 0


def rate_of(pairs: NDArray[np.int64]) -> Rate | None:
    """Return what ``rate`` does; None if there is no device.

    Args:
        pairs: Of each device, how many hits, of how many values, shape (devices, 2): each one that ``counts``.
    """
    if not len(pairs):
        return None
    hits, n = pairs.T
    sample = Sample.of_counts(np.stack((n - hits, hits), axis=1).astype(np.float64), count=sum(n.tolist()))
    value = float(sample.told[1])
    return Rate(value, *wilson(value, sample.values), sample.count, sample.values, sample.devices)


def gap(left: Rate, right: Rate, z: float = Z) -> Gap:
    """Return how much higher one rate is than another of other devices.

    Args:
        left: The one.
        right: The other.
        z: The normal quantile of half the interval's tail: a larger one where many are looked at.
    """
    return difference(
        (left.value, *wilson(left.value, left.worth, z)), (right.value, *wilson(right.value, right.worth, z))
    )


def difference(left: tuple[float, float, float], right: tuple[float, float, float]) -> Gap:
    """Return the difference of two independent figures.

    Args:
        left: A value and its interval.
        right: The same of the other.
    """
    value = left[0] - right[0]
    below = math.hypot(left[0] - left[1], right[2] - right[0])
    above = math.hypot(left[2] - left[0], right[0] - right[1])
    return Gap(value, max(value - below, -1.0), min(value + above, 1.0))
