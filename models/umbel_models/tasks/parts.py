"""An order of examples in which any stretch holds the classes in proportion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def in_proportion(y: NDArray[np.int64], source: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of ``y`` in a random order of which any stretch holds the classes in proportion.

    Args:
        y: Labels, shape (n,).
        source: Draws the order.
    """
    # Examples in random order, then sorted by how far through its own class each one stands.
    order = source.permutation(len(y))
    place = np.empty(len(y))
    for label in np.unique(y):
        rows = order[y[order] == label]
        place[rows] = (np.arange(len(rows)) + source.random()) / len(rows)
    return np.argsort(place, kind="stable")
