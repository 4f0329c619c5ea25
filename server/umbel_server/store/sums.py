"""Sums of what devices report, as rows of counters and histograms: they grow within bounds, whatever devices say."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic_core import from_json
from sqlalchemy import Connection, Row, Table, select, tuple_

from umbel_proto.histogram import MAX_COUNT, Histogram
from umbel_server.store.database import insert
from umbel_server.store.histograms import body_of, edges_of

if TYPE_CHECKING:
    from umbel_server.store.rollups import Rollup

MAX_COUNTERS = 4096
MAX_HISTOGRAMS = 512
MAX_KINDS = 4
"""Histograms of one name whose edges or epsilon differ, as from two versions of umbel; no more are summed."""
_KEYS_PER_QUERY = 100
_LARGEST_SUM = 1e300


class Kind(NamedTuple):
    """What two histograms must share to add."""

    name: str
    edges: tuple[float, ...]
    epsilon: float | None


@dataclass(slots=True)
class _Cells:
    counts: list[int]
    sum: float


@dataclass(slots=True)
class Sums:
    """Sums that grow.

    Args:
        windows: How many windows are summed.
        until_s: Latest end of a window.
        left_out: Counters and histograms that are in no sum: there were too many names or kinds.
        counters: Name to count.
        histograms: By name, edges and epsilon.
    """

    windows: int = 0
    until_s: int = 0
    left_out: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    histograms: dict[Kind, _Cells] = field(default_factory=dict)

    @classmethod
    def of_row(cls, row: Row[Any], wanted: Collection[str] | None = None) -> Sums:
        """Return the sums of a row; of its histograms those that are wanted, by name."""
        histograms = {}
        bodies = [] if wanted is not None and not wanted else from_json(row.histograms)
        for body in bodies:
            if wanted is not None and body["name"] not in wanted:
                continue
            kind = Kind(body["name"], edges_of(body), body.get("epsilon"))
            histograms[kind] = _Cells(body["counts"], body["sum"])
        return cls(row.windows, row.until_s, row.left_out, from_json(row.counters), histograms)

    def take(self, rollup: Rollup) -> None:
        """Add what a device told."""
        self._add(rollup.windows, rollup.until_s, rollup.counters)
        for histogram in rollup.histograms.values():
            kind = Kind(histogram.name, histogram.edges, histogram.epsilon)
            self._add_cells(kind, histogram.counts, histogram.sum)

    def add(self, other: Sums) -> None:
        """Add other sums. What is there goes first: what comes is left out where both are too much."""
        self._add(other.windows, other.until_s, other.counters)
        self.left_out = min(self.left_out + other.left_out, MAX_COUNT)
        for kind, cells in other.histograms.items():
            self._add_cells(kind, cells.counts, cells.sum)

    def shapes(self) -> tuple[Histogram, ...]:
        """Return the histograms."""
        return tuple(
            Histogram(kind.name, kind.edges, tuple(cells.counts), cells.sum, kind.epsilon)
            for kind, cells in self.histograms.items()
        )

    def values(self) -> dict[str, object]:
        """Return what a row of them has, but its key."""
        histograms = [
            {"name": kind.name, **body_of(kind.edges, cells.counts, cells.sum, kind.epsilon)}
            for kind, cells in sorted(self.histograms.items(), key=_by_kind)
        ]
        return {
            "windows": self.windows,
            "until_s": self.until_s,
            "counters": json.dumps(self.counters, separators=(",", ":")),
            "histograms": json.dumps(histograms, separators=(",", ":")),
            "left_out": self.left_out,
        }

    def _add(self, windows: int, until_s: int, counters: Mapping[str, int]) -> None:
        self.windows += windows
        self.until_s = max(self.until_s, until_s)
        for name, count in counters.items():
            if name in self.counters or len(self.counters) < MAX_COUNTERS:
                self.counters[name] = min(self.counters.get(name, 0) + count, MAX_COUNT)
            else:
                self.left_out += 1

    def _add_cells(self, kind: Kind, counts: Sequence[int], total: float) -> None:
        cells = self.histograms.get(kind)
        if cells is not None:
            # One device may say numbers so large that no float has their sum; the others' must go on.
            both = cells.sum + total
            cells.sum = both if abs(both) < _LARGEST_SUM else cells.sum
            cells.counts = [min(old + new, MAX_COUNT) for old, new in zip(cells.counts, counts, strict=True)]
        elif (
            len(self.histograms) < MAX_HISTOGRAMS
            and sum(other.name == kind.name for other in self.histograms) < MAX_KINDS
        ):
            self.histograms[kind] = _Cells(list(counts), total if abs(total) < _LARGEST_SUM else 0.0)
        else:
            self.left_out += 1


_Key = TypeVar("_Key", bound=tuple[Any, ...])


def add_up(connection: Connection, table: Table, added: Mapping[_Key, Sums]) -> None:
    """Add sums to those that a table has.

    Args:
        connection: Of ``Database.write``: nobody else adds meanwhile.
        table: Its columns are those of ``Sums``, and its primary key.
        added: By primary key, in its order.
    """
    if not added:
        return
    names = [column.name for column in table.primary_key]
    sums = dict(added)
    keys = sorted(added)
    for begin in range(0, len(keys), _KEYS_PER_QUERY):
        some = keys[begin : begin + _KEYS_PER_QUERY]
        for row in connection.execute(select(table).where(tuple_(*table.primary_key).in_(some))):
            key: Any = tuple(row._mapping[name] for name in names)
            present = Sums.of_row(row)
            present.add(sums[key])
            sums[key] = present
    statement = insert(connection, table)
    own = [column.name for column in table.columns if not column.primary_key]
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=list(table.primary_key), set_={name: statement.excluded[name] for name in own}
        ),
        [{**dict(zip(names, key, strict=True)), **sums[key].values()} for key in keys],
    )


def _by_kind(item: tuple[Kind, object]) -> Any:
    return [(value is not None, value) for value in item[0]]
