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

_PAIRS = 1 << 13  # drawn at once: what they need stays in the cache
_UNIT = 2.0**-64
_EIGHTH = math.ldexp(math.pi, -63)
"""An eighth of a turn over 2**61."""

_SINE = (
    1.58969099521155010221e-10,
    -2.50507602534068634195e-08,
    2.75573137070700676789e-06,
    -1.98412698298579493134e-04,
    8.33333333332248946124e-03,
    -1.66666666666666324348e-01,
)
"""(sin x - x) / x**3 in powers of x**2, highest first: within 2**-58 up to an eighth of a turn. Source: fdlibm, k_sin.c."""

_Floats = NDArray[np.floating]


def gaussian(count: int, stream: Keystream) -> NDArray[np.float64]:
    """Return independent standard normal values, shape (count,).

    None is beyond 9.42: a word has 64 bits. Normal values are beyond that with probability 2**-64.

    Source:
        Box, Muller, "A Note on the Generation of Random Normal Deviates", Ann. Math. Statist. 29(2), 1958.
    """
    out = np.empty(count + count % 2)
    for low in range(0, len(out), 2 * _PAIRS):
        _fill(out[low : low + 2 * _PAIRS], stream)
    return out[:count]


def _fill(out: NDArray[np.float64], stream: Keystream) -> None:
    """Fill an even number of places: partners of a pair lie half of them apart.

    numpy's float64 sine and cosine are those of the C library, one number at a time: four fifths of the time. So
    the angle is drawn from an eighth of a turn to either side of the diagonal, as 62 bits of a word, and thrown into
    one of four quadrants by the other two. There the pair is radius / sqrt(2) times cosine minus and plus sine.
    """
    pairs = len(out) // 2
    words = stream.uint64(2 * pairs)
    angle = words[pairs:]
    radius = words[:pairs].astype(np.float64)
    radius += 1.0
    radius *= _UNIT
    np.log(radius, out=radius)
    np.negative(radius, out=radius)
    np.sqrt(radius, out=radius)  # over sqrt(2)
    x = (angle.view(np.int64) >> 2).astype(np.float64)
    x *= _EIGHTH
    square = x * x
    sine = square * _SINE[0]
    for coefficient in _SINE[1:]:
        sine += coefficient
        sine *= square
    sine *= x
    sine += x
    cosine = np.multiply(sine, sine, out=square)
    np.subtract(1.0, cosine, out=cosine)
    np.sqrt(cosine, out=cosine)
    one, two = out[:pairs], out[pairs:]
    np.subtract(cosine, sine, out=one)
    np.add(cosine, sine, out=two)
    for half, sign in ((one, angle << np.uint64(63)), (two, (angle >> np.uint64(1)) << np.uint64(63))):
        half *= radius
        bits = half.view(np.uint64)
        bits ^= sign


def noised(total: _Floats, *, deviation: float, stream: Keystream, out: _Floats | None = None) -> _Floats:
    """Return ``total`` with normal noise in every coordinate, rounded to the grid; same shape.

    Args:
        total: What to hide, shape (dim,).
        deviation: Standard deviation, > 0.
        stream: A keystream under a key fresh from the operating system, used for nothing else.
        out: Where to put it, shape (dim,); ``total`` itself will do. A new float64 array where it is left out.
    """
    grid = math.ldexp(1.0, math.frexp(deviation)[1] - 1 - GRID_BITS)
    released = np.empty(total.shape) if out is None else out
    for low in range(0, len(total), 2 * _PAIRS):
        part = total[low : low + 2 * _PAIRS]
        noise = gaussian(len(part), stream)
        noise *= deviation
        noise += part
        noise *= 1 / grid  # a power of two: exact
        np.rint(noise, out=noise)
        noise *= grid
        released[low : low + 2 * _PAIRS] = noise
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
