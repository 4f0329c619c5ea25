"""What devices counted, as a sample: shares of cells, and of how many independent values they are worth.

Sums alone cannot tell. One device that counts a billion values would be the fleet, and a thousand values of one device
are alike, as those of a thousand devices are not. So a sample is made of devices: none counts for more than a few usual
ones, and what devices differ by says how many independent values all of them are worth.

Source:
    Kish, "Survey Sampling", 1965, sections 6.4 and 8.2 (the variance of a ratio over clusters, the design effect);
    Rao, Scott, "The Analysis of Categorical Data from Complex Sample Surveys", JASA 76 (1981), section 3 (a
    chi-square statistic is divided by the mean design effect of its cells).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.histogram import Histogram
from umbel_proto.privacy.response import Response

Shares = NDArray[np.float64]

INFLUENCE = 5.0
"""How many usual devices, those of the median, one device counts for at most."""
FEW_DEVICES = 10
"""Of fewer devices, what they differ by is not known well enough to say of how many values they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Shares of the cells of a histogram, as they were told.

    Args:
        told: Share of each cell, shape (cells,), summing to 1; all 0 where there are no values.
        values: How many independent values they are worth, >= 0.
        count: How many values were counted.
        devices: How many devices counted them; 0: not said, as of a package's baseline.
        limited: How many of them counted for less than they told.
        epsilon: With what counts are randomized; None: they are as counted.
        covariance: Of the told shares, shape (cells, cells), by what devices differ; None: that of independent values.
    """

    told: Shares
    values: float
    count: int
    devices: int = 0
    limited: int = 0
    epsilon: float | None = None
    covariance: Shares | None = None

    @classmethod
    def of(cls, histogram: Histogram) -> Sample:
        """Return a histogram's values, each taken as independent of the others."""
        counts = np.asarray(histogram.counts, np.float64)
        total = counts.sum()
        told = counts / total if total else counts
        return cls(told, float(total), histogram.count, epsilon=histogram.epsilon)

    @classmethod
    def of_devices(cls, histograms: Sequence[Histogram]) -> Sample:
        """Return what devices counted, one histogram of each.

        Args:
            histograms: At least one, of the same edges and epsilon.

        Raises:
            UsageError: They differ in edges or epsilon.
        """
        first = histograms[0]
        if any((each.edges, each.epsilon) != (first.edges, first.epsilon) for each in histograms):
            raise UsageError(f"Histograms {first.name} of devices have different edges or epsilons.")
        counts = np.array([each.counts for each in histograms], np.float64)
        return cls.of_counts(counts, count=sum(each.count for each in histograms), epsilon=first.epsilon)

    @classmethod
    def of_counts(cls, counts: Shares, *, count: int, epsilon: float | None = None) -> Sample:
        """Return what devices counted between the same edges.

        Args:
            counts: Of each device, shape (devices, cells), at least one.
            count: All of them, exactly.
            epsilon: With what they are randomized; None: they are not.
        """
        totals = counts.sum(1)
        counts, totals = counts[totals > 0], totals[totals > 0]
        if not len(totals):
            return cls(np.zeros(counts.shape[1]), 0.0, 0, epsilon=epsilon)
        cap = INFLUENCE * float(np.median(totals))
        weights = np.minimum(1.0, cap / totals)
        counts = counts * weights[:, None]
        told = counts.sum(0) / counts.sum()
        values, covariance = _spread(counts, told)
        return cls(
            told,
            values,
            count,
            devices=len(totals),
            limited=int((weights < 1).sum()),
            epsilon=epsilon,
            covariance=covariance,
        )

    def limited_to(self, values: float) -> Sample:
        """Return it as worth no more than so many independent values."""
        if values >= self.values:
            return self
        covariance = None if self.covariance is None else self.covariance * (self.values / max(values, 1e-9))
        return replace(self, values=values, covariance=covariance)

    def response(self) -> tuple[float, float]:
        """Return what a told share is of the true one: ``gain * share + noise``, per cell."""
        if self.epsilon is None:
            return 1.0, 0.0
        noise = Response(len(self.told), self.epsilon).other / 2**64
        return 1 - len(self.told) * noise, noise


def _spread(counts: Shares, told: Shares) -> tuple[float, Shares | None]:
    """Return how many independent values would tell the shares as well as these devices do, and their covariance.

    Args:
        counts: Of each device, shape (devices, cells).
        told: Their shares, shape (cells,).
    """
    total, there, n = float(counts.sum()), told > 0, len(counts)
    if n < FEW_DEVICES or there.sum() < 2:
        return total, None
    away = counts - counts.sum(1, keepdims=True) * told
    # Of few devices it is not well known: widened by the mean of the F distribution that a test with it has.
    covariance = away.T @ away / total**2 * (n / (n - 3))
    effect = float((np.diag(covariance)[there] / told[there]).sum()) * total / (int(there.sum()) - 1)
    # Devices that are more alike than chance allows are no better than independent values.
    return total / max(effect, 1.0), covariance / min(effect, 1.0) if effect else None
