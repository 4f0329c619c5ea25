"""Randomized response over the cells of a histogram: what one counted event tells is bounded where it happens.

An event stays in its cell or moves to any other one. The chances are whole multiples of 2**-64, so that the
bound holds of what is computed, not only of what was meant.

Source: docs/spec/telemetry.md, "Randomized reports"; Kairouz, Bonawitz, Ramage, "Discrete Distribution Estimation
under Local Privacy", ICML 2016 (arXiv:1602.07387v3), section 4.1 (k-RR) and equation 5 (the estimator).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from umbel_proto.errors import UsageError
from umbel_proto.privacy.stated import check_epsilon

if TYPE_CHECKING:
    from umbel_proto.prg import Keystream

_WORDS = 1 << 64
_BLOCK = 1 << 16  # Events drawn at once: 2 MB of memory.
_Z = 1.959963984540054  # Of an interval of 95 %.


@dataclass(frozen=True, slots=True)
class Estimate:
    """How many events were truly in some cells.

    Args:
        value: Without bias; of few events it may lie below 0 or above all of them.
        low: Where the interval of 95 % begins, >= 0.
        high: Where it ends, no more than the events there are.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Response:
    """Randomized response of an epsilon over some cells.

    Args:
        cells: How many there are, two or more.
        epsilon: Whatever the event was, the chance of any answer differs by a factor of at most ``e**epsilon``.

    Raises:
        UsageError: There are fewer cells, or the epsilon is none.
    """

    cells: int
    epsilon: float
    other: int = field(init=False)
    """The chance of each cell but its own for an event, times 2**64."""

    def __post_init__(self) -> None:
        if self.cells < 2:
            raise UsageError(f"A histogram of {self.cells} cells cannot be randomized: it takes two or more.")
        check_epsilon(self.epsilon, "A randomized histogram")
        from fractions import Fraction  # Most windows randomize nothing.

        # Two steps down: below the true power however the platform rounds it. A chance is rounded up, which
        # moves events more often: both err on the side of who is to be hidden.
        factor = Fraction(math.nextafter(math.nextafter(math.exp(self.epsilon), 0.0), 0.0))
        object.__setattr__(self, "other", math.ceil(_WORDS / (factor + self.cells - 1)))

    @property
    def keep(self) -> int:
        """The chance of its own cell for an event, times 2**64."""
        return _WORDS - (self.cells - 1) * self.other

    def randomize(self, counts: Sequence[int], stream: Keystream) -> tuple[int, ...]:
        """Return counts with every event moved by chance; together they are as many.

        Args:
            counts: Events by cell, whole and >= 0.
            stream: A keystream under a key fresh from the operating system, used for nothing else. It gives a
                word for each event.

        Raises:
            UsageError: There are not as many counts as cells.
        """
        if len(counts) != self.cells:
            raise UsageError(f"There are {len(counts)} counts for {self.cells} cells.")
        ends = np.cumsum(np.asarray(counts, np.int64))
        told = np.zeros(self.cells, np.int64)
        step, last = np.uint64(self.other), np.uint64(self.cells - 1)
        for low in range(0, int(ends[-1]), _BLOCK):
            events = np.arange(low, min(low + _BLOCK, int(ends[-1])))
            own = np.searchsorted(ends, events, side="right")
            # Words below (cells - 1) * other name one of the other cells, each equally often; the rest stay.
            place = np.minimum(stream.uint64(events.size) // step, last).astype(np.int64)
            goal = np.where(place == self.cells - 1, own, place + (place >= own))
            told += np.bincount(goal, minlength=self.cells)
        return tuple(told.tolist())

    def estimate(self, told: int, total: int, cells: int = 1) -> Estimate:
        """Return how many events truly were in some cells.

        The interval is Wilson's, of the hypotheses that the randomization does not make unlikely; with a
        correction for continuity, so that it is not too short of few events, and never shorter than the noise lets
        anybody know (Cowan et al., "Power-Constrained Limits", arXiv:1105.3166).

        Args:
            told: Events that were told to be there.
            total: Events in all cells.
            cells: How many cells they are, less than all.
        """
        inside, outside = self._chances(cells)
        gain = inside - outside
        spread, slope = outside * (1 - outside), inside * (1 - inside) - outside * (1 - outside)
        away = told - total * outside

        def root(shifted: float, side: int) -> float:
            # Where (shifted - gain x)**2 is z**2 times the variance of what x events inside let one tell.
            half = gain * shifted + _Z**2 * slope / 2
            square = half**2 - gain**2 * (shifted**2 - _Z**2 * total * spread)
            return min(max((half + side * math.sqrt(max(square, 0.0))) / gain**2, 0.0), float(total))

        # Fewer told than noise alone explains say no more than that: no end is nearer than of what is expected there.
        least, most = min(away, total * gain) - 0.5, max(away, 0.0) + 0.5
        # Neither end is looked for where no event, or all of them, would be no surprise.
        low, high = 0.0, float(total)
        if least > _Z * math.sqrt(total * spread):
            low = root(least, -1)
        if total * gain - most > _Z * math.sqrt(total * (spread + slope)):
            high = root(most, 1)
        return Estimate(away / gain, low, high)

    def _chances(self, cells: int) -> tuple[float, float]:
        """Return how likely an event is told in some cells if it is in one of them, and if it is not."""
        return (self.keep + (cells - 1) * self.other) / _WORDS, cells * self.other / _WORDS
