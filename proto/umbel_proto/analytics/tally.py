"""What a device answers a query with: its examples as a short vector of counts, and nothing else of them.

Source: docs/spec/queries.md, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from umbel_proto.analytics.query import COUNTS, FAIRNESS, MEAN, Query

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Of each example, what a query asks about; NaN where it is not known. It stays on the device.

    Args:
        value: The field: a number, or the number of a label, shape (n,).
        label: Of fairness: the right label's number, shape (n,).
        cohort: Of fairness: the cohort's column, shape (n,).
    """

    value: Numbers = field(repr=False)
    label: Numbers | None = field(default=None, repr=False)
    cohort: Numbers | None = field(default=None, repr=False)


def tally(query: Query, rows: Rows) -> NDArray[np.float32]:
    """Return a device's answer, shape (query.dim,), of norm at most ``query.bound``.

    A device with more examples than ``per_device`` counts as so many: each of them for less than one.

    Args:
        query: The question.
        rows: The device's examples.
    """
    match query.kind:
        case "mean":
            counted = _moments(query, rows.value)
        case "fairness":
            assert rows.label is not None
            assert rows.cohort is not None
            counted = _outcomes(query, rows.value, rows.label, rows.cohort)
        case _:
            counted = _cells(query, rows.value)
    weighed = counted[0] if query.kind == MEAN else counted.sum()
    share = min(1.0, query.per_device / weighed) if weighed else 0.0
    answer: NDArray[np.float32] = (share * counted).astype(np.float32)
    return answer


def cell_of(values: Numbers, edges: tuple[float, ...]) -> NDArray[np.intp]:
    """Return the cell of each value: 0 below the first edge, a value on an edge in the cell above it."""
    return np.searchsorted(np.array(edges), values, side="right")


def _cells(query: Query, value: Numbers) -> Numbers:
    """Return the examples in each cell, and those without a value."""
    known = value[~np.isnan(value)]
    places = cell_of(known, query.edges) if query.edges else known.astype(np.intp)
    counts = np.bincount(places, minlength=query.cells).astype(np.float64)
    return np.append(counts, value.size - known.size)


def _moments(query: Query, value: Numbers) -> Numbers:
    """Return how many values there are, their sum and that of their squares, on the scale from -1 (low) to 1."""
    known = np.clip(value[~np.isnan(value)], query.low, query.high)
    unit = np.clip(2 * (known - query.low) / (query.high - query.low) - 1, -1.0, 1.0)
    return np.array([unit.size, unit.sum(), (unit * unit).sum()])


def _outcomes(query: Query, given: Numbers, right: Numbers, cohort: Numbers) -> Numbers:
    """Return of each cohort the examples by whether the label is right, and whether it was given."""
    assert query.kind == FAIRNESS
    known = ~(np.isnan(given) | np.isnan(right) | np.isnan(cohort))
    of = cell_of(cohort[known], query.cohort_edges)
    outcome = 2 * (right[known] == query.positive) + (given[known] == query.positive)
    return np.bincount(COUNTS * of + outcome, minlength=query.dim).astype(np.float64)
