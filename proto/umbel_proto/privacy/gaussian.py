"""Gaussian noise for sums of clipped gradients, and the draw of the examples that go into them.

Floating point carries this guarantee, unlike that of ``umbel_proto.privacy.skellam``. What is released is
rounded to a grid far coarser than the errors of float64, which leaves those errors almost nothing to show.

Source: docs/spec/privacy.md, "Example-level privacy".
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from umbel_proto.prg import Keystream
from umbel_proto.privacy.normal import Normal

GRID_BITS = 12
"""A released value is a multiple of a power of two between 2**-13 and 2**-12 standard deviations."""

BLOCK = 1 << 15
"""Values that were drawn before and are put on at once, which a core's cache holds."""

_Floats = NDArray[np.floating]


def noised(
    total: _Floats,
    *,
    deviation: float,
    stream: Keystream,
    out: _Floats | None = None,
    drawn: NDArray[np.float64] | None = None,
    normal: Normal | None = None,
    divisor: float = 1.0,
) -> _Floats:
    """Return ``total`` with normal noise in every coordinate, rounded to the grid; same shape.

    Args:
        total: What to hide, shape (dim,).
        deviation: Standard deviation, > 0.
        stream: A keystream under a key fresh from the operating system, used for nothing else.
        out: Where to put it, shape (dim,); ``total`` itself will do. A new float64 array where it is left out.
        drawn: Standard normal values for the first coordinates, shape (n,), n <= dim, drawn from another such keystream
            and used for nothing else; they are used up. What is left out is drawn now.
        normal: Draws them, as many at once as it can; a new one where there is None.
        divisor: What the values on the grid are divided by afterwards.
    """
    grid = math.ldexp(1.0, math.frexp(deviation)[1] - 1 - GRID_BITS)
    released = np.empty(total.shape) if out is None else out
    ready = np.empty(0) if drawn is None else drawn
    normal = normal or Normal(len(total))
    blocks = (*_blocks(BLOCK, 0, len(ready)), *_blocks(normal.size, len(ready), len(total)))
    for low, high in blocks:
        noise = ready[low:high] if low < len(ready) else normal.draw(high - low, stream)
        noise *= deviation
        noise += total[low:high]
        noise *= 1 / grid  # a power of two: exact
        np.rint(noise, out=noise)
        noise *= grid / divisor
        released[low:high] = noise
    return released


def _blocks(size: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where blocks of at most so many values begin and end."""
    for low in range(begin, end, size):
        yield low, min(low + size, end)


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
