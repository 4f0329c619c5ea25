"""How far two distributions over the same cells are apart, in the three figures that the field uses.

Source:
    Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory 37 (1991);
    Endres, Schindelin, "A New Metric for Probability Distributions", same journal 49 (2003): its root is a distance;
    Siddiqi, "Credit Risk Scorecards", Wiley 2006, chapter 8 (the population stability index);
    Vallender, "Calculation of the Wasserstein Distance Between Probability Distributions on the Line", 1974.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from umbel_server.monitor.sample import Shares


def stability_index(left: Shares, right: Shares) -> float:
    """Return the population stability index; every share is > 0."""
    return float(((left - right) * np.log(left / right)).sum())


def jensen_shannon(left: Shares, right: Shares) -> float:
    """Return the Jensen-Shannon distance: the root of the divergence in bits, from 0 to 1. Shares may be 0."""
    middle = (left + right) / 2
    bits = 0.0
    for side in (left, right):
        there = side > 0
        bits += float((side[there] * np.log2(side[there] / middle[there])).sum()) / 2
    return math.sqrt(max(bits, 0.0))


def wasserstein(left: Shares, right: Shares, steps: NDArray[np.float64]) -> float:
    """Return how far values have to move on average to turn one distribution into the other, in their unit.

    Args:
        left: Shares, shape (cells,).
        right: The same of the other.
        steps: From each cell to the next, shape (cells - 1,).
    """
    return float(np.abs(np.cumsum(left - right)[:-1]) @ steps)


def moved(left: Shares, right: Shares) -> float:
    """Return the share of values that would have to be in another cell: the total variation distance."""
    return float(np.abs(left - right).sum()) / 2


def centers(edges: Sequence[float]) -> NDArray[np.float64]:
    """Return where the values of each cell are taken to be: in its middle; of an outer cell, as far from its edge.

    Args:
        edges: Inner edges, ascending, at least one.
    """
    inner = np.asarray(edges, np.float64)
    if len(inner) == 1:
        return np.array([inner[0] - 0.5, inner[0] + 0.5])
    widths = np.diff(inner)
    middles = inner[:-1] + widths / 2
    return np.concatenate(([inner[0] - widths[0] / 2], middles, [inner[-1] + widths[-1] / 2]))
