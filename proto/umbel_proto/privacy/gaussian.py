"""Gaussian noise for sums of clipped gradients, and the draw of the examples that go into them.

Sum and noise are each rounded to whole grains before they are added: their total is exact, and what float64 gets
wrong depends on no example. What is released is rounded once more, to a grid far coarser than grains, which leaves
those errors almost nothing to show.

Source: docs/spec/privacy.md, "Example-level privacy".
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.prg import Keystream
from umbel_proto.privacy.normal import Normal

GRAINS = 1 << 27
"""Grains in a standard deviation: 14 of those, which no draw exceeds, are fewer than 2**31 grains."""

GRID_BITS = 12
"""A released value is a multiple of a power of two between 2**-13 and 2**-12 standard deviations."""

BLOCK = 1 << 17
"""Values that were drawn before and are put on at once, at most."""

_Floats = NDArray[np.floating]
Grains = NDArray[np.int32]


def deviation_of(noise: float, clip: float, dim: int) -> float:
    """Return the standard deviation for sums of ``dim`` coordinates that are rounded to grains.

    Rounding may set two sums apart by one grain more in each coordinate: sqrt(dim) grains. The deviation is
    ``noise`` times ``clip`` and that.

    Raises:
        UsageError: So much noise in so many coordinates leaves no room for grains.
    """
    share = noise * math.sqrt(dim) / GRAINS
    if share > 0.5:
        raise UsageError(
            f"An example_noise of {noise:g} is too large for {dim:,} parameters: choose a lower one."
        )
    return noise * clip / (1 - share)


def draw(out: Grains, normal: Normal, stream: Keystream) -> None:
    """Fill an array, shape (n,), with grains of independent standard normal values."""
    for low, high in _blocks(normal.size, 0, len(out)):
        values = normal.draw(high - low, stream)
        values *= GRAINS  # a power of two: exact
        np.rint(values, out=out[low:high], casting="unsafe")


def noised(
    total: _Floats,
    *,
    deviation: float,
    stream: Keystream,
    out: _Floats | None = None,
    drawn: Grains | None = None,
    normal: Normal | None = None,
    room: NDArray[np.float64] | None = None,
    divisor: float = 1.0,
) -> _Floats:
    """Return ``total`` with normal noise in every coordinate, rounded to the grid; same shape.

    Args:
        total: What to hide, shape (dim,).
        deviation: Standard deviation, > 0: see ``deviation_of``.
        stream: A keystream under a key fresh from the operating system, used for nothing else.
        out: Where to put it, shape (dim,); ``total`` itself will do. A new float64 array where it is left out.
        drawn: Noise for the first coordinates, in grains, shape (n,), n <= dim, drawn from another such keystream
            and used for nothing else. What is left out is drawn now.
        normal: Draws it, as many values at once as it can; a new one where there is None.
        room: Memory to work in, shape (n,): as many values are put on at once, and drawn. Its own where there is None.
        divisor: What the values on the grid are divided by afterwards.
    """
    grid = math.ldexp(1.0, math.frexp(deviation)[1] - 1 - GRID_BITS)
    released = np.empty(total.shape) if out is None else out
    ready = np.empty(0, np.int32) if drawn is None else drawn
    normal = normal or Normal(len(total) - len(ready))
    work = np.empty(max(1, min(BLOCK, len(total)))) if room is None else room
    most = min(len(work), normal.size)
    blocks = (*_blocks(len(work), 0, len(ready)), *_blocks(most, len(ready), len(total)))
    for low, high in blocks:
        value = work[: high - low]
        np.multiply(total[low:high], GRAINS / deviation, out=value, dtype=np.float64)
        np.rint(value, out=value)
        if low < len(ready):
            value += ready[low:high]
        else:
            noise = normal.draw(high - low, stream)
            noise *= GRAINS
            value += np.rint(noise, out=noise)
        value *= deviation / GRAINS / grid
        np.rint(value, out=value)
        np.multiply(value, grid / divisor, out=released[low:high], casting="same_kind")
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
