"""Skellam noise: the difference of two Poisson draws, sampled from a table of exact integers.

Sums of independent Skellam draws are Skellam again, their variances added, so the noise in a sum
is known exactly whichever devices survive.

A draw inverts the distribution function F at a uniform U of 160 bits, of which only the bits that
decide are read: 16 settle nearly all draws, 48 more nearly all others, the last 96 hardly any.
The law of a draw is within total variation 2**-115 of Skellam's: F is cut where a side's tail
weighs below 2**-120, and is exact to 2**-140 elsewhere.

Source: docs/spec/privacy.md, step 5; Olver & Sookne, "Note on backward recurrence algorithms",
Math. Comp. 26, 1972, for the recurrence.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.prg import Keystream

MAX_VARIANCE = 1 << 28
"""Standard deviation 16,384. Its table takes 22 MB; a wider one would outgrow a device."""

PRECISION = 160
"""Bits of a probability."""

_TAIL = 120
_HEAD = 64
_CELL = 48
_FIRST = np.int32(-(2**31))
_OPEN = np.int32(-(2**30))  # No draw is below -2**18, and no table has 2**30 entries.


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The distribution function of one variance.

    Args:
        lowest: The least value a draw can take.
        cells: The draw for each value of U's first 16 bits; if they leave it open, the index of the
            first of ``ends`` that U may fall short of, minus 2**31; shape (65536,).
        heads: First 64 bits of each entry of ``ends``, shape (values,).
        ends: ``F(lowest + i) * 2**160``; the last is ``2**160``.
    """

    lowest: int
    cells: NDArray[np.int32]
    heads: NDArray[np.uint64]
    ends: tuple[int, ...]


class SkellamSampler:
    """Draws Skellam noise of mean 0.

    The table is made once for a variance and kept: 2 ms at variance 100, 0.3 s at the largest.

    Args:
        variance: In (0, 2**28], as a fraction.

    Raises:
        UsageError: ``variance`` is outside its range.
    """

    def __init__(self, variance: Fraction) -> None:
        if not 0 < variance <= MAX_VARIANCE:
            raise UsageError(f"The noise variance is {variance}: choose one in (0, {MAX_VARIANCE}].")
        self._table = _table(Fraction(variance))

    def sample(self, count: int, stream: Keystream) -> NDArray[np.int32]:
        """Return ``count`` independent draws, shape (count,).

        Reads 2 bytes a draw, then 8 for each draw still open, then 12 for each open yet.
        """
        table = self._table
        cells = stream.read(2 * count).view(np.dtype("<u2"))
        draws = table.cells[cells]
        open_ = np.flatnonzero(draws < _OPEN)
        if open_.size:
            heads = cells[open_].astype(np.uint64) << np.uint64(_CELL)
            heads |= stream.uint64(open_.size) >> np.uint64(_HEAD - _CELL)
            places = draws[open_] - _FIRST
            # Most open cells hold one entry, so one comparison tells; those that hold more are searched.
            ahead = table.heads[places]
            ties = ahead == heads
            places += ahead <= heads
            ahead = table.heads[np.minimum(places, table.heads.size - 1)]
            more = np.flatnonzero(ahead <= heads)
            places[more] = np.searchsorted(table.heads, heads[more], side="right")
            ties[more] = table.heads[places[more] - 1] == heads[more]
            # A head equal to an entry's leaves open on which side of the entry U falls.
            for tie in np.flatnonzero(ties):
                tail = int.from_bytes(stream.read((PRECISION - _HEAD) // 8).tobytes(), "little")
                uniform = int(heads[tie]) << (PRECISION - _HEAD) | tail
                places[tie] = bisect.bisect_right(table.ends, uniform)
            draws[open_] = places + table.lowest
        return draws


def skellam_pmf(variance: Fraction) -> list[int]:
    """Return P[X = 0], P[X = 1], .. times 2**160, rounded down, until the tail is negligible.

    P[X = k] = exp(-v) I_k(v). The Bessel functions come from their recurrence, run downward from
    an order where they vanish, in integers; their sum over all k is exp(v), so dividing by it
    normalizes. Rounding costs 2**-200 a step; starting at a finite order costs less than the tail.
    """
    up, down = variance.numerator, variance.denominator
    deviation = math.sqrt(variance)
    last = int(14 * deviation) + 60
    above, here = 0, 1 << 200
    values = []
    for order in range(last + int(6 * deviation) + 60, 0, -1):
        above, here = here, above + 2 * order * here * down // up
        if order <= last + 1:
            values.append(here)
    values.reverse()
    total = 2 * sum(values) - values[0]
    pmf = [(value << PRECISION) // total for value in values]
    tail = 0
    while tail + pmf[-1] < 1 << (PRECISION - _TAIL):
        tail += pmf.pop()
    return pmf


@functools.lru_cache(maxsize=4)
def _table(variance: Fraction) -> _Table:
    half = skellam_pmf(variance)
    # What the cut and the rounding leave over, under 2**-118, goes to the largest value.
    ends = (*list(itertools.accumulate(half[:0:-1] + half))[:-1], 1 << PRECISION)
    lowest = 1 - len(half)
    heads = np.array([min(end >> (PRECISION - _HEAD), 2**_HEAD - 1) for end in ends], np.uint64)
    begins = np.arange(1 << (_HEAD - _CELL), dtype=np.uint64) << np.uint64(_CELL)
    below = np.searchsorted(heads, begins, side="left")
    within = np.searchsorted(heads, begins | np.uint64((1 << _CELL) - 1), side="right")
    cells = np.where(below == within, below + lowest, below + int(_FIRST)).astype(np.int32)
    for array in (cells, heads):
        array.setflags(write=False)
    return _Table(lowest, cells, heads, ends)
