"""Additive histograms: the one shape in which measurements leave a device.

A histogram's edges are fixed before the first value is seen, so two of them add cell by cell:
over time, over devices, and under secure aggregation. A sketch that keeps samples (KLL,
t-digest) would carry the values themselves.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name
from umbel_proto.privacy.stated import check_epsilon

if TYPE_CHECKING:
    from umbel_proto.wire import telemetry_pb2 as pb

MAX_EDGES = 1024
MAX_COUNT = 2**63 - 1  # What the store's signed 64-bit column holds.


def six_digits(values: Iterable[float]) -> tuple[float, ...]:
    """Return values with six significant digits, as edges have them.

    ``libm`` may differ in the last bit between platforms, and edges must be equal to add.
    """
    return tuple(float(f"{value:.6g}") for value in values)


def log_edges(low: float, high: float, *, per_decade: int) -> tuple[float, ...]:
    """Return edges that grow by the same factor, from ``low`` to ``high``, both > 0.

    Source: Masson et al., "DDSketch", VLDB 2019, arXiv:1908.10693, section 2.2: a value is known to
    within the factor ``10 ** (1 / per_decade)`` whatever its size.
    """
    steps = round(per_decade * math.log10(high / low))
    return six_digits(low * 10 ** (step / per_decade) for step in range(steps + 1))


def logit_edges(limit: float, cells: int) -> tuple[float, ...]:
    """Return ``cells - 1`` edges in (0, 1), evenly spaced in log-odds from ``-limit`` to ``limit``."""
    step = 2 * limit / (cells - 2)
    return six_digits(1 / (1 + math.exp(limit - index * step)) for index in range(cells - 1))


_POSITIVE = log_edges(1e-3, 1e4, per_decade=4)

LATENCY_US = log_edges(1, 1e7, per_decade=8)
"""Edges for latencies in microseconds: 1 us to 10 s, each 33 % above the last."""

CONFIDENCE = logit_edges(5.5, 24)
"""Edges for a confidence in [0, 1]: 24 cells, finest near 0 and 1, where calibration matters."""

_SHIFTS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

SHIFT = (*(-edge for edge in reversed(_SHIFTS)), *_SHIFTS)
"""Edges for the difference of two confidences, in [-1, 1]: one cell around none, and wider ones away from it."""

INPUT = (*(-edge for edge in reversed(_POSITIVE)), *_POSITIVE)
"""Edges for inputs of unknown scale: both signs, 0.001 to 10,000, each 78 % above the last."""

_QUANTITY = log_edges(1e-3, 1e9, per_decade=4)

AMOUNT = (*(-edge for edge in reversed(_QUANTITY)), *_QUANTITY)
"""Edges for amounts of anything: both signs, 0.001 to a billion, each 78 % above the last."""

SCALES: Mapping[int, tuple[float, ...]] = {1: LATENCY_US, 2: CONFIDENCE, 3: INPUT, 4: AMOUNT}
"""Edges that both sides know, by the number that stands for them on the wire: half a kilobyte less each time."""

_SCALE_OF = {edges: number for number, edges in SCALES.items()}

WHOLE = 5
"""The scale of whole numbers from 0: as many cells as there are counts, the last one without an end."""


def whole_edges(cells: int) -> tuple[float, ...]:
    """Return the edges between whole numbers from 0: 0.5, 1.5, .. of so many cells."""
    return tuple(number + 0.5 for number in range(cells - 1))


def _check_edges(name: str, edges: tuple[float, ...]) -> None:
    if not all(map(math.isfinite, edges)):
        raise UsageError(f"Histogram {name} has an edge that is not a finite number.")
    if any(low >= high for low, high in itertools.pairwise(edges)):
        raise UsageError(f"The edges of histogram {name} do not ascend.")


def _are_short(edges: tuple[float, ...]) -> bool:
    """Return whether float32 holds edges: all of six digits that are not too large or too near to zero."""
    with np.errstate(over="ignore", under="ignore"):
        return six_digits(np.asarray(edges, np.float32).tolist()) == edges


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values fell between which edges. Adding two gives the histogram of both.

    Args:
        name: What was measured, with its unit: ``latency_us``.
        edges: Inner edges, strictly ascending, finite, 1 to ``MAX_EDGES`` of them.
        counts: One more than edges: below the first edge, then from each edge on.
        sum: Sum of the finite values, for the mean.
        epsilon: With what the counts are randomized (``umbel_proto.privacy.response``): they say how often which
            cell was told, not what was in it, and there is no sum. None: they are as counted.

    Raises:
        UsageError: Any of this does not hold.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float = 0.0
    epsilon: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "histogram")
        if not 1 <= len(self.edges) <= MAX_EDGES:
            raise UsageError(f"Histogram {self.name} has {len(self.edges)} edges: use 1 to {MAX_EDGES}.")
        if self.edges not in _SCALE_OF:  # What everybody knows need not be looked at each time.
            _check_edges(self.name, self.edges)
        if len(self.counts) != len(self.edges) + 1:
            raise UsageError(
                f"Histogram {self.name} has {len(self.counts)} counts, not {len(self.edges) + 1}."
            )
        if min(self.counts) < 0 or max(self.counts) > MAX_COUNT:
            raise UsageError(f"Histogram {self.name} has a count outside 0 to 2**63 - 1.")
        if not math.isfinite(self.sum):
            raise UsageError(f"The sum of histogram {self.name} is not a finite number.")
        if self.epsilon is not None:
            check_epsilon(self.epsilon, f"Histogram {self.name}")
            if self.sum:
                raise UsageError(f"Histogram {self.name} is randomized and tells the sum of what it hides.")

    @classmethod
    def empty(cls, name: str, edges: tuple[float, ...]) -> Histogram:
        """Return the histogram of no values: what others are added to."""
        return cls(name, edges, (0,) * (len(edges) + 1))

    @classmethod
    def from_wire(cls, message: pb.Histogram) -> Histogram:
        """Read a message.

        Raises:
            UsageError: It is not a histogram; whoever received it knows whom to blame.
        """
        edges, counts = tuple(message.edges), tuple(message.counts)
        if message.short_edges:
            if edges:
                raise UsageError(f"Histogram {message.name[:80]!r} has edges twice: it has one kind of them.")
            edges = six_digits(message.short_edges)
        if message.scale:
            if edges or message.scale not in (*SCALES, WHOLE):
                raise UsageError(
                    f"Histogram {message.name[:80]!r} has scale {message.scale} and {len(edges)} edges: it has "
                    f"either edges or one of the scales {min(SCALES)} to {WHOLE}."
                )
            edges = whole_edges(len(counts)) if message.scale == WHOLE else SCALES[message.scale]
        epsilon = message.epsilon or None
        return cls(message.name, edges, counts, message.sum, epsilon)

    def to_wire(self) -> pb.Histogram:
        """Return the message that carries it."""
        # What only counts does not wait for it.
        from umbel_proto.wire import telemetry_pb2 as pb

        scale = WHOLE if self.edges == whole_edges(len(self.counts)) else _SCALE_OF.get(self.edges, 0)
        short = not scale and _are_short(self.edges)
        return pb.Histogram(
            name=self.name,
            edges=() if scale or short else self.edges,
            short_edges=self.edges if short else (),
            counts=self.counts,
            sum=self.sum,
            scale=scale,
            epsilon=self.epsilon or 0.0,
        )

    def observe(self, values: ArrayLike) -> Histogram:
        """Return the histogram with these values added.

        Args:
            values: Any shape. NaN is in no cell and is left out; infinities count in the outer
                cells and are left out of the sum.

        Raises:
            UsageError: The sum leaves the range of a float, or the counts are randomized already.
        """
        if self.epsilon is not None:
            raise UsageError(f"Histogram {self.name} is randomized already: nothing can be added to it.")
        array = np.asarray(values, np.float64).ravel()
        array = array[~np.isnan(array)]
        cells = np.searchsorted(np.asarray(self.edges), array, side="right")
        added = np.bincount(cells, minlength=len(self.counts))
        with np.errstate(over="ignore"):  # The new histogram's own check says so in a sentence.
            total = self.sum + float(array[np.isfinite(array)].sum())
        counts = tuple(old + int(new) for old, new in zip(self.counts, added, strict=True))
        return replace(self, counts=counts, sum=total)

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both.

        Raises:
            UsageError: They measure different things, between different edges or with another epsilon: they do
                not add.
        """
        if (self.name, self.edges) != (other.name, other.edges):
            raise UsageError(f"Histograms {self.name} and {other.name} have different names or edges.")
        if self.epsilon != other.epsilon:
            raise UsageError(f"Histogram {self.name} is randomized otherwise than what it is added to.")
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return replace(self, counts=counts, sum=self.sum + other.sum)

    @property
    def count(self) -> int:
        """How many values it holds."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Mean of the values; None if there are none, or if the counts are randomized: there is no sum then."""
        return self.sum / self.count if self.count and self.epsilon is None else None

    def quantile(self, q: float) -> float | None:
        """Return the value below which a share ``q`` of the values lies; None if there are none.

        Within a cell values are taken as evenly spread; in the two outer cells the answer is
        the nearest edge.

        Args:
            q: In [0, 1].

        Raises:
            UsageError: ``q`` is outside, or the counts are randomized: their quantiles are of the noise as well.
        """
        if self.epsilon is not None:
            raise UsageError(f"Histogram {self.name} is randomized: estimate its cells, then their quantile.")
        if not 0 <= q <= 1:
            raise UsageError(f"A quantile is asked for in [0, 1], not {q}.")
        if not self.count:
            return None
        rank = q * self.count
        below = [0, *itertools.accumulate(self.counts)]
        cell = bisect.bisect_left(below, rank or 1) - 1
        if cell == 0:
            return self.edges[0]
        if cell == len(self.edges):
            return self.edges[-1]
        low, high = self.edges[cell - 1], self.edges[cell]
        return low + (high - low) * (rank - below[cell]) / self.counts[cell]
