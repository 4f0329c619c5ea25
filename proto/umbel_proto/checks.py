"""Rules for the values of an input, compiled to a few numpy operations.

The ordinary input, in which nothing is wrong, is recognized by two comparisons and a look into the sets of known
values; only one that is not is judged value by value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import ContractError

if TYPE_CHECKING:
    from umbel_proto.contract import Column

REJECT, CLIP, FLAG = "reject", "clip", "flag"
ACTIONS = frozenset({REJECT, CLIP, FLAG})
"""What becomes of an input with a value that no rule allows: it is refused; the nearest legal value takes the
place of the wrong one; or the input passes as it is, and a person should look at what the model says of it."""

KINDS = ("missing", "below", "above", "unknown")
"""What can be wrong with a value: it is NaN, under or over the range, or within it and none of those known."""

_SHOWN = 8


@dataclass(frozen=True, slots=True, eq=False)
class Breach:
    """What was wrong with an input that was let through.

    Args:
        counts: How many values broke a rule, by ``COLUMN.KIND``; never which values.
        flagged: Which examples a person should look at, shape (n,).
    """

    counts: Mapping[str, int]
    flagged: NDArray[np.bool_] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Verdict:
    """Every value judged: arrays of shape (n, values of a column, columns)."""

    missing: NDArray[np.bool_]
    below: NDArray[np.bool_]
    above: NDArray[np.bool_]
    unknown: NDArray[np.bool_]

    def counts(self, names: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for kind in KINDS:
            sums = getattr(self, kind).sum(axis=(0, 1))
            found |= {f"{names[place]}.{kind}": int(sums[place]) for place in np.flatnonzero(sums).tolist()}
        return found


class Checks:
    """The rules of an input's columns, ready to be applied.

    A value is compared in its own type, before it is converted, and known values in the type of the graph: what
    stands in a contract is rounded as the values are.

    Args:
        what: The input's name, for the error's sentence.
        dtype: What the graph computes with.
        rules: One for each place of the last axis, or a single one for all values.
    """

    def __init__(self, what: str, dtype: str, rules: Sequence[Column]) -> None:
        self._what = what
        self._dtype = np.dtype(dtype)
        self._rules = tuple(rules)
        self._names = tuple(rule.name for rule in rules)
        self._low = np.array([rule.minimum for rule in rules], np.float64)
        self._high = np.array([rule.maximum for rule in rules], np.float64)
        self._as = {kind: self._cast(kind) for kind in {self._dtype, np.dtype("f4"), np.dtype("f8")}}
        self._known = {
            place: np.array(rule.values, self._dtype) for place, rule in enumerate(rules) if rule.values
        }
        self._sets = tuple((place, frozenset(known.tolist())) for place, known in self._known.items())
        self._may_miss = np.array([rule.allow_missing for rule in rules])
        self._does = {each: np.array([rule.action == each for rule in rules]) for each in ACTIONS}

    def __call__(self, batch: NDArray[Any]) -> tuple[NDArray[Any], Breach | None]:
        """Return a batch as the graph takes it, and what was wrong with it, if it may pass all the same.

        Args:
            batch: Numbers of any type, shape (n, *example), n >= 1.

        Raises:
            ContractError: A value is wrong that is to be refused; or missing where none may be, or too large for
                the graph's type, which no action cures.
        """
        if batch.dtype.kind == "f":
            low, high = self._ends(batch.dtype)
            # Both replace NaN by a bound, so that it is seen as well. Equal bytes are sure and cheap; 0 and -0
            # differ in theirs and are told apart below.
            if np.fmin(np.fmax(batch, low), high).tobytes() == batch.tobytes():
                ready = np.ascontiguousarray(batch, self._dtype)
                if all(known.issuperset(ready[..., place].ravel().tolist()) for place, known in self._sets):
                    return ready, None
        return self._judged(batch)

    def _verdict(self, batch: NDArray[Any]) -> _Verdict:
        """Judge every value of a batch, shape (n, *example)."""
        view = batch.reshape(len(batch), -1, len(self._rules))
        floats = batch.dtype.kind == "f"
        low, high = self._ends(batch.dtype) if floats else (self._low, self._high)
        nan = np.isnan(view) if floats else np.zeros(view.shape, np.bool_)
        below, above = view < low, view > high
        unknown = np.zeros(view.shape, np.bool_)
        ready = self._converted(view)
        for place, known in self._known.items():
            fits = ~(nan | below | above)[..., place]
            unknown[..., place] = fits & ~np.isin(ready[..., place], known)
        return _Verdict(nan & ~self._may_miss, below, above, unknown)

    def totals(self, batch: NDArray[Any]) -> tuple[int, ...]:
        """Return how many values of a batch, shape (n, *example), are wrong in each of ``KINDS``."""
        found = self._verdict(batch)
        return tuple(int(getattr(found, kind).sum()) for kind in KINDS)

    def _judged(self, batch: NDArray[Any]) -> tuple[NDArray[Any], Breach | None]:
        found = self._verdict(batch)
        view = batch.reshape(found.below.shape)
        ready = self._converted(view)
        wrong = found.below | found.above | found.unknown
        unfit = wrong & self._does[FLAG] & ~self._fits(view, ready)
        refused = found.missing | (wrong & self._does[REJECT]) | unfit
        counts = found.counts(self._names)
        if refused.any():
            raise ContractError(self._sentence(refused, counts), counts)
        if not counts:
            return np.ascontiguousarray(ready.reshape(batch.shape)), None
        low, high = self._ends(self._dtype)
        clip = self._does[CLIP]
        ready = np.where(found.below & clip, low, np.where(found.above & clip, high, ready))
        for place, known in self._known.items():
            rows = found.unknown[..., place] & clip[place]
            if rows.any():
                # In float64, where no difference wraps; of two equally near the lower one.
                apart = np.abs(ready[..., place][rows][:, np.newaxis].astype(np.float64) - known)
                ready[..., place][rows] = known[apart.argmin(axis=1)]
        flagged = (wrong & self._does[FLAG]).any(axis=(1, 2))
        return np.ascontiguousarray(ready.reshape(batch.shape)), Breach(counts, flagged)

    def _converted(self, view: NDArray[Any]) -> NDArray[Any]:
        # What does not fit the type is not used: it is clipped, or refused by `_fits`.
        with np.errstate(over="ignore", invalid="ignore"):
            return view.astype(self._dtype)

    def _fits(self, view: NDArray[Any], ready: NDArray[Any]) -> NDArray[np.bool_]:
        if self._dtype.kind == "f":
            finite: NDArray[np.bool_] = np.isfinite(ready)
            return finite
        limits = np.iinfo(self._dtype)
        fits: NDArray[np.bool_] = (view >= limits.min) & (view <= limits.max)
        return fits

    def _ends(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._as.get(dtype) or self._cast(dtype)

    def _cast(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the bounds in a type."""
        if dtype.kind == "f":
            # Never infinite: infinity is beyond every bound.
            limits = np.finfo(dtype)
            ends = (np.clip(end, limits.min, limits.max).astype(dtype) for end in (self._low, self._high))
            return next(ends), next(ends)
        return self._low.astype(dtype), self._high.astype(dtype)

    def _sentence(self, refused: NDArray[np.bool_], counts: Mapping[str, int]) -> str:
        broken = np.flatnonzero(refused.any(axis=(0, 1)))
        rule = self._rules[broken[0]]
        found = {kind: counts.get(f"{rule.name}.{kind}") for kind in KINDS}
        told = " and ".join(f"{count} {kind}" for kind, count in found.items() if count)
        column = f", column {rule.name!r}," if len(self._rules) > 1 else ""
        others = f" ({len(broken) - 1} other columns are wrong as well)" if len(broken) > 1 else ""
        return f"Input {self._what!r}{column} has values that are wrong, {told}{others}: give {_legal(rule)}."


def _legal(rule: Column) -> str:
    unit = f" {rule.unit}" if rule.unit else ""
    if not rule.values:
        return f"values in {rule.minimum:g}..{rule.maximum:g}{unit}"
    shown = ", ".join(f"{value:g}" for value in rule.values[:_SHOWN])
    more = f", .. {rule.values[-1]:g}" if len(rule.values) > _SHOWN else ""
    return f"one of {shown}{more}{unit}"
