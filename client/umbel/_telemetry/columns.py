"""The columns of a model's input, each counted by itself: in few cells, and some of them in each window.

Source: docs/spec/telemetry.md, "What is reported".
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel._telemetry.baseline import baseline_edges
from umbel_proto.contract import Column, Field
from umbel_proto.errors import PackageError
from umbel_proto.histogram import six_digits
from umbel_proto.package import Package

MAX_CELLS = 8
"""Cells of a column: 8 of equal weight tell a shift of a tenth of the data."""
ROOM, LABEL_ROOM = 300, 13
"""Bytes that columns may add to a window, and how many fewer for each label: sealed, with up to ten labels, it
stays under two kilobytes."""
PREFIX = "column."


@dataclass(frozen=True, slots=True)
class Watched:
    """A column, as it is counted.

    Args:
        place: Which one of the input's last axis.
        name: The histogram's name.
        edges: The histogram's edges.
    """

    place: int
    name: str
    edges: tuple[float, ...]

    @property
    def bytes(self) -> int:
        """How long its histogram is in a window, of up to 16,383 values in a cell."""
        return 17 + len(self.name) + 4 * len(self.edges) + 2 * (len(self.edges) + 1)


@dataclass(frozen=True, slots=True)
class Columns:
    """All columns of a model.

    Args:
        watched: Each of them, in order.
        room: Bytes that they may add to a window; one column always fits.
        groups: The same, in as few parts as fit into a window each.
    """

    watched: tuple[Watched, ...] = ()
    room: int = ROOM
    groups: tuple[tuple[Watched, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(_groups(self.watched, self.room)))

    @classmethod
    def of(cls, package: Package) -> Columns:
        """Return the columns that a package's data contract names; none where it names none."""
        only = package.manifest.contract.fields[0]
        told: Mapping[str, tuple[float, ...]] = {}
        if only.columns:
            # Cells of the contract's range will do: what a device cannot compare, it counts all the same.
            with contextlib.suppress(PackageError):
                told = baseline_edges(package)
        return cls(watch(only, told), ROOM - LABEL_ROOM * len(package.manifest.labels))

    def values(self, example: object) -> NDArray[np.float64]:
        """Return what is counted of an example, shape (columns,): a row itself, or of a series each column's mean.

        NaN stands for a value that is missing, and for a column of a series in which all are.

        Args:
            example: Of the contract's shape, with the columns along its last axis.
        """
        rows = np.asarray(example, np.float64).reshape(-1, len(self.watched))
        if len(rows) > 1:
            known = np.isfinite(rows)
            with np.errstate(invalid="ignore"):
                rows = np.where(known, rows, 0.0).sum(0, keepdims=True) / known.sum(0)
        values: NDArray[np.float64] = rows[0]
        return values


def watch(only: Field, told: Mapping[str, tuple[float, ...]]) -> tuple[Watched, ...]:
    """Return how each column of an input is counted.

    Args:
        only: The input.
        told: Edges of the baseline's histograms, by name; none where there is no baseline.
    """
    return tuple(
        Watched(place, f"{PREFIX}{column.name}", _edges(only, place, told))
        for place, column in enumerate(only.columns)
    )


def _groups(watched: Iterable[Watched], room: int) -> Iterator[tuple[Watched, ...]]:
    group: list[Watched] = []
    for each in watched:
        if group and sum(other.bytes for other in (*group, each)) > room:
            yield tuple(group)
            group = []
        group.append(each)
    if group:
        yield tuple(group)


def _edges(only: Field, place: int, told: Mapping[str, tuple[float, ...]]) -> tuple[float, ...]:
    column = only.columns[place]
    if 1 < len(column.values) <= MAX_CELLS:
        between = six_digits((low + high) / 2 for low, high in pairwise(column.values))
        if all(
            low < edge <= high for edge, (low, high) in zip(between, pairwise(column.values), strict=True)
        ):
            return between
    # The same cells as the baseline's, some of them joined: so that the two compare by adding.
    known = told.get(f"feature.{place}" if len(only.shape) == 1 else f"channel.{place}.mean", ())
    if known and all(map(math.isfinite, known)) and all(low < high for low, high in pairwise(known)):
        return _evenly(known)
    return _of_range(column)


def _evenly(edges: tuple[float, ...]) -> tuple[float, ...]:
    if len(edges) < MAX_CELLS:
        return edges
    step = (len(edges) + 1) / MAX_CELLS
    return tuple(edges[round(number * step) - 1] for number in range(1, MAX_CELLS))


def _of_range(column: Column) -> tuple[float, ...]:
    inner: Any = np.linspace(column.minimum, column.maximum, MAX_CELLS + 1)[1:-1]
    return tuple(sorted(set(six_digits(inner.tolist()))))
