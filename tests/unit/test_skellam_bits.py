"""Law: a draw is the inverse of the distribution function at 160 uniform bits, whichever of them are read.

The bits are chosen around the entries of the table, where it matters on which side they fall.
"""

from __future__ import annotations

import bisect
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from umbel_proto.prg import Keystream
from umbel_proto.privacy.skellam import PRECISION, SkellamSampler


class Chosen(Keystream):
    """A stream of bytes known beforehand."""

    def __init__(self, content: bytes) -> None:
        super().__init__(bytes(32))
        self._content = content

    def read(self, size: int) -> NDArray[np.uint8]:
        head, self._content = self._content[:size], self._content[size:]
        return np.frombuffer(head.ljust(size, b"\0"), np.uint8).copy()


def draw(sampler: SkellamSampler, uniform: int) -> int:
    """Draw once with these bits: the high 16, the next 48, the last 96, each little-endian."""
    high, middle, low = uniform >> 144, uniform >> 96 & (1 << 48) - 1, uniform & (1 << 96) - 1
    content = high.to_bytes(2, "little") + (middle << 16).to_bytes(8, "little") + low.to_bytes(12, "little")
    return int(sampler.sample(1, Chosen(content))[0])


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(100), Fraction(40_000)])
def test_a_draw_is_the_inverse_of_the_distribution_function_at_every_entry(variance: Fraction) -> None:
    sampler = SkellamSampler(variance)
    table = sampler._table
    step = max(1, len(table.ends) // 200)
    ends = [*table.ends[::step], *table.ends[:40], *table.ends[-40:]]
    uniforms = {end + shift for end in ends for shift in (-(1 << 97), -1, 0, 1, 1 << 97)}
    for uniform in sorted(u for u in uniforms | {0, 1} if 0 <= u < 1 << PRECISION):
        assert draw(sampler, uniform) == table.lowest + bisect.bisect_right(table.ends, uniform)


def test_many_draws_at_once_are_each_their_own() -> None:
    sampler = SkellamSampler(Fraction(250_000))
    table, stream = sampler._table, Keystream(bytes(32))
    draws = sampler.sample(5000, stream)
    again = Keystream(bytes(32))
    cells = again.read(10_000).view("<u2")
    low = np.searchsorted(table.heads, cells.astype(np.uint64) << np.uint64(48), side="left")
    high = np.searchsorted(table.heads, cells.astype(np.uint64) + np.uint64(1) << np.uint64(48), side="left")
    settled = low == high
    assert 0.5 < settled.mean() < 1
    assert (draws[settled] == low[settled] + table.lowest).all()
    assert ((draws >= low + table.lowest) & (draws <= high + table.lowest)).all()
