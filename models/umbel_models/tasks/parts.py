"""What umbel's own tasks have alike: a split in which every part holds the classes in proportion, a data sheet."""

from __future__ import annotations

from importlib import resources

import numpy as np
from numpy.typing import NDArray

from umbel_models.task import Examples, Split


def datasheet(package: str) -> str:
    """Return the Markdown of ``datasheet.md`` in a task's package."""
    return resources.files(package).joinpath("datasheet.md").read_text(encoding="utf-8")


def split_in_proportion(whole: Examples, *, held_out: float, calibration: int, seed: int) -> Split:
    """Return examples in three disjoint parts, each of which holds the classes in proportion.

    Args:
        whole: All of them.
        held_out: Share to hold out, in 0..1.
        calibration: How many to calibrate with; the rest is to train on.
        seed: Which examples go where.
    """
    order = in_proportion(whole.y, np.random.default_rng(seed))
    held, rest = np.split(order, [round(held_out * len(order))])
    few, train = np.split(rest, [calibration])
    return Split(*(whole.take(rows) for rows in (train, held, few)))


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
