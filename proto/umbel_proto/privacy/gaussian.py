"""Gaussian noise for sums of clipped gradients, and the draw of the examples that go into them.

Floating point carries this guarantee, unlike that of ``umbel_proto.privacy.skellam``. What is released is
rounded to a grid far coarser than the errors of float64, which leaves those errors almost nothing to show.

Source: docs/spec/privacy.md, "Example-level privacy".
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from umbel_proto.prg import Keystream

GRID_BITS = 12
"""A released value is a multiple of a power of two between 2**-13 and 2**-12 standard deviations."""

_PAIRS = 1 << 14  # drawn at once: what they need stays in the cache
_UNIT = 2.0**-64


def gaussian(count: int, stream: Keystream) -> NDArray[np.float64]:
    """Return independent standard normal values, shape (count,).

    None is beyond 9.42: a word has 64 bits. Normal values are beyond that with probability 2**-64.

    Source:
        Box, Muller, "A Note on the Generation of Random Normal Deviates", Ann. Math. Statist. 29(2), 1958.
    """
    out = np.empty(count + count % 2)
    for low in range(0, len(out) // 2, _PAIRS):
        pairs = min(_PAIRS, len(out) // 2 - low)
        words = stream.uint64(2 * pairs).astype(np.float64)
        radius = np.sqrt(-2.0 * np.log((words[:pairs] + 1.0) * _UNIT))
        angle = words[pairs:] * (2.0 * math.pi * _UNIT)
        out[2 * low : 2 * (low + pairs) : 2] = radius * np.cos(angle)
        out[2 * low + 1 : 2 * (low + pairs) : 2] = radius * np.sin(angle)
    return out[:count]


def noised(total: NDArray[np.float64], *, deviation: float, stream: Keystream) -> NDArray[np.float64]:
    """Return ``total`` with normal noise in every coordinate, rounded to the grid; same shape.

    Args:
        total: What to hide, shape (dim,).
        deviation: Standard deviation, > 0.
        stream: A keystream under a key fresh from the operating system, used for nothing else.
    """
    grid = math.ldexp(1.0, math.frexp(deviation)[1] - 1 - GRID_BITS)
    released: NDArray[np.float64] = gaussian(len(total), stream)
    released *= deviation
    released += total
    released /= grid
    np.rint(released, out=released)
    released *= grid
    return released


def poisson_sample(count: int, rate: float, stream: Keystream) -> NDArray[np.int64]:
    """Return which of ``count`` examples are drawn, each by itself with probability ``rate``, in order.

    Args:
        count: How many examples there are.
        rate: In (0, 1]; rounded down to a multiple of 2**-64.
        stream: See ``noised``: who is drawn must stay secret.
    """
    if rate >= 1:
        return np.arange(count)
    return np.flatnonzero(stream.uint64(count) < np.uint64(int(rate * 2.0**64)))
