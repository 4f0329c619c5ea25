"""Additive histograms: the one shape in which measurements leave a device.

A histogram's edges are fixed before the first value is seen, so two of them add cell by cell:
over time, over devices, and under secure aggregation. A sketch that keeps samples (KLL,
t-digest) would carry the values themselves.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from umbel_proto.errors import UsageError
from umbel_proto.ids import check_name
from umbel_proto.wire import telemetry_pb2 as pb

MAX_EDGES = 1024
MAX_COUNT = 2**63 - 1  # What the store's signed 64-bit column holds.


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    # Six digits: libm may differ in the last bit between platforms, and edges must be equal to add.
    return tuple(float(f"{value:.6g}") for value in values)


def log_edges(low: float, high: float, *, per_decade: int) -> tuple[float, ...]:
    """Return edges that grow by the same factor, from ``low`` to ``high``, both > 0.

    Source: Masson et al., "DDSketch", VLDB 2019, arXiv:1908.10693, section 2.2: a value is known to
    within the factor ``10 ** (1 / per_decade)`` whatever its size.
    """
    steps = round(per_decade * math.log10(high / low))
    return _rounded(low * 10 ** (step / per_decade) for step in range(steps + 1))


def logit_edges(limit: float, cells: int) -> tuple[float, ...]:
    """Return ``cells - 1`` edges in (0, 1), evenly spaced in log-odds from ``-limit`` to ``limit``."""
    step = 2 * limit / (cells - 2)
    return _rounded(1 / (1 + math.exp(limit - index * step)) for index in range(cells - 1))


_POSITIVE = log_edges(1e-3, 1e4, per_decade=4)

LATENCY_US = log_edges(1, 1e7, per_decade=8)
"""Edges for latencies in microseconds: 1 us to 10 s, each 33 % above the last."""

CONFIDENCE = logit_edges(5.5, 24)
"""Edges for a confidence in [0, 1]: 24 cells, finest near 0 and 1, where calibration matters."""

INPUT = (*(-edge for edge in reversed(_POSITIVE)), *_POSITIVE)
"""Edges for inputs of unknown scale: both signs, 0.001 to 10,000, each 78 % above the last."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values fell between which edges. Adding two gives the histogram of both.

    Args:
        name: What was measured, with its unit: ``latency_us``.
        edges: Inner edges, strictly ascending, finite, 1 to ``MAX_EDGES`` of them.
        counts: One more than edges: below the first edge, then from each edge on.
        sum: Sum of the finite values, for the mean.

    Raises:
        UsageError: Any of this does not hold.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float = 0.0

    def __post_init__(self) -> None:
        check_name(self.name, "histogram")
        if not 1 <= len(self.edges) <= MAX_EDGES:
            raise UsageError(f"Histogram {self.name} has {len(self.edges)} edges: use 1 to {MAX_EDGES}.")
        if not all(map(math.isfinite, self.edges)):
            raise UsageError(f"Histogram {self.name} has an edge that is not a finite number.")
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise UsageError(f"The edges of histogram {self.name} do not ascend.")
        if len(self.counts) != len(self.edges) + 1:
            raise UsageError(
                f"Histogram {self.name} has {len(self.counts)} counts, not {len(self.edges) + 1}."
            )
        if not all(0 <= count <= MAX_COUNT for count in self.counts):
            raise UsageError(f"Histogram {self.name} has a count outside 0 to 2**63 - 1.")
        if not math.isfinite(self.sum):
            raise UsageError(f"The sum of histogram {self.name} is not a finite number.")

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
        return cls(message.name, tuple(message.edges), tuple(message.counts), message.sum)

    def to_wire(self) -> pb.Histogram:
        """Return the message that carries it."""
        return pb.Histogram(name=self.name, edges=self.edges, counts=self.counts, sum=self.sum)

    def observe(self, values: ArrayLike) -> Histogram:
        """Return the histogram with these values added.

        Args:
            values: Any shape. NaN is in no cell and is left out; infinities count in the outer
                cells and are left out of the sum.

        Raises:
            UsageError: The sum leaves the range of a float.
        """
        array = np.asarray(values, np.float64).ravel()
        array = array[~np.isnan(array)]
        cells = np.searchsorted(np.asarray(self.edges), array, side="right")
        added = np.bincount(cells, minlength=len(self.counts))
        with np.errstate(over="ignore"):  # The new histogram's own check says so in a sentence.
            total = self.sum + float(array[np.isfinite(array)].sum())
        counts = tuple(old + int(new) for old, new in zip(self.counts, added, strict=True))
        return Histogram(self.name, self.edges, counts, total)

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both.

        Raises:
            UsageError: They measure different things or between different edges: they do not add.
        """
        if (self.name, self.edges) != (other.name, other.edges):
            raise UsageError(f"Histograms {self.name} and {other.name} have different names or edges.")
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(self.name, self.edges, counts, self.sum + other.sum)

    @property
    def count(self) -> int:
        """How many values it holds."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Mean of the values; None if there are none."""
        return self.sum / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """Return the value below which a share ``q`` of the values lies; None if there are none.

        Within a cell values are taken as evenly spread; in the two outer cells the answer is
        the nearest edge.

        Args:
            q: In [0, 1].

        Raises:
            UsageError: ``q`` is outside.
        """
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
