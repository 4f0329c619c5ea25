"""Data contract: what a model's input must look like, checked on the array before it is used."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.checks import ACTIONS, FLAG, REJECT, Breach, Checks
from umbel_proto.errors import ContractError, UsageError

DTYPES = frozenset({"float32", "float64", "int32", "int64", "uint8"})
MAX_COLUMNS = 256
MAX_VALUES = 1024

# With what stands before and after it, it is the name of a counter.
_COLUMN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True)
class Violations:
    """How many values of an input break its contract.

    Args:
        missing: Values that are NaN where none may be.
        below: Values under the range's lower end, -inf included.
        above: Values over the range's upper end, inf included.
        unknown: Values within the range that are none of the column's values.
    """

    missing: int = 0
    below: int = 0
    above: int = 0
    unknown: int = 0

    @property
    def total(self) -> int:
        """All of them together."""
        return self.missing + self.below + self.above + self.unknown


@dataclass(frozen=True, slots=True)
class Column:
    """What stands at one place of an input's last axis: a column of a table, a channel of a series.

    Args:
        name: Its name, under which violations are counted: 1 to 40 of ``a-z 0-9 . _ -``.
        minimum: Least legal value, in its unit.
        maximum: Greatest legal value, in its unit.
        values: The only legal values, ascending, from ``minimum`` to ``maximum``; empty where all between are legal.
        allow_missing: Whether NaN may stand for a value that was not measured.
        unit: The unit, in words.
        action: What becomes of an input with another value: ``reject``, ``clip`` or ``flag``.
    """

    name: str
    minimum: float
    maximum: float
    values: tuple[float, ...] = ()
    allow_missing: bool = False
    unit: str = ""
    action: str = REJECT

    def __post_init__(self) -> None:
        what = f"Column {self.name[:80]!r}"
        if not _COLUMN_NAME.fullmatch(self.name):
            raise UsageError(f"{what} has no legal name: use 1 to 40 of a-z, 0-9, '.', '_' and '-'.")
        _check_range(what, self.minimum, self.maximum)
        _check_action(what, self.action)
        if not self.values:
            return
        if len(self.values) > MAX_VALUES or not all(low < high for low, high in pairwise(self.values)):
            raise UsageError(f"{what} names {len(self.values)} values: name up to {MAX_VALUES}, ascending.")
        if (self.values[0], self.values[-1]) != (self.minimum, self.maximum):
            raise UsageError(f"{what} has the range {self.minimum}..{self.maximum}: give that of its values.")


@dataclass(frozen=True, slots=True)
class Field:
    """One input array of a model.

    Args:
        name: The graph's input.
        dtype: What the graph computes with: one of ``DTYPES``.
        shape: Shape of one example, without the batch dimension.
        minimum: Least legal value, in the sensor's unit; the least of any column's.
        maximum: Greatest legal value, in the sensor's unit; the greatest of any column's.
        allow_missing: Whether NaN may stand for a value that was not measured, in any column.
        unit: The unit, in words, for whoever reads the contract.
        action: What becomes of an input with a value out of range: ``reject``, ``clip`` or ``flag``. Where there are
            columns, each has its own, and this is ``reject``.
        max_age_s: How long ago an example may have been measured, seconds; 0 for any time.
        stale: What becomes of an older one: ``reject`` or ``flag``.
        columns: What stands at each place of the last axis; none where one range holds for all values.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float
    maximum: float
    allow_missing: bool = False
    unit: str = ""
    action: str = REJECT
    max_age_s: float = 0.0
    stale: str = REJECT
    columns: tuple[Column, ...] = ()
    _checks: Checks | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        what = f"Field {self.name!r}"
        if self.dtype not in DTYPES:
            raise UsageError(f"{what} has dtype {self.dtype!r}: use one of {', '.join(sorted(DTYPES))}.")
        if any(size < 1 for size in self.shape):
            raise UsageError(f"{what} has shape {self.shape}: every dimension is >= 1.")
        _check_range(what, self.minimum, self.maximum)
        _check_action(what, self.action)
        if self.allow_missing and not self.dtype.startswith("float"):
            raise UsageError(f"{what} allows missing values, which {self.dtype} cannot express.")
        if not (math.isfinite(self.max_age_s) and self.max_age_s >= 0) or self.stale not in (REJECT, FLAG):
            raise UsageError(
                f"{what} bounds age by {self.max_age_s} s, else {self.stale!r}: use reject or flag."
            )
        self._check_columns(what)
        checks = None
        if self.columns:
            checks = Checks(self.name, self.dtype, self.columns)
        elif self.action != REJECT:
            column = Column(
                self.slug, self.minimum, self.maximum, (), self.allow_missing, self.unit, self.action
            )
            checks = Checks(self.name, self.dtype, (column,))
        object.__setattr__(self, "_checks", checks)

    def _check_columns(self, what: str) -> None:
        if self.columns or self.action != REJECT:
            for end in (self.minimum, self.maximum, *(v for column in self.columns for v in column.values)):
                if not _holds(self.dtype, end):
                    raise UsageError(
                        f"{what} has the bound or value {end}, which {self.dtype} cannot express."
                    )
        if not self.columns:
            return
        if not self.shape or self.shape[-1] != len(self.columns) or len(self.columns) > MAX_COLUMNS:
            raise UsageError(
                f"{what} has {len(self.columns)} columns and shape {self.shape}: name one for each place of the "
                f"last axis, up to {MAX_COLUMNS}."
            )
        if len({column.name for column in self.columns}) != len(self.columns):
            raise UsageError(f"{what} has two columns of one name.")
        own = (self.minimum, self.maximum, self.allow_missing, self.action)
        if own != (*_span(self.columns), any(column.allow_missing for column in self.columns), REJECT):
            raise UsageError(
                f"{what} says of its values what its columns do not: make it with Field.of_columns."
            )

    @classmethod
    def of_columns(
        cls,
        name: str,
        dtype: str,
        columns: Sequence[Column],
        *,
        rows: Sequence[int] = (),
        unit: str = "",
        max_age_s: float = 0.0,
        stale: str = REJECT,
    ) -> Field:
        """Return the field of some columns, which says of all of them what they have in common.

        Args:
            name: The graph's input.
            dtype: What the graph computes with.
            columns: What stands at each place of the last axis.
            rows: Shape of an example without its last axis: (samples,) of a series; nothing of a table's row.
            unit: The unit, in words.
            max_age_s: How long ago an example may have been measured, seconds; 0 for any time.
            stale: What becomes of an older one: ``reject`` or ``flag``.

        Raises:
            UsageError: There is no column, or one that makes no sense.
        """
        if not columns:
            raise UsageError(f"Field {name!r} has no columns: name some, or give one range to Field.")
        low, high = _span(columns)
        missing = any(column.allow_missing for column in columns)
        shape = (*rows, len(columns))
        return cls(
            name, dtype, shape, low, high, missing, unit,
            max_age_s=max_age_s, stale=stale, columns=tuple(columns),
        )  # fmt: skip

    @property
    def plain(self) -> bool:
        """Whether one range holds for all values, refuses what is outside, and no age is too great."""
        return self._checks is None and not self.max_age_s and self.stale == REJECT

    @property
    def slug(self) -> str:
        """The field's name as counters have it: what is in no name becomes a dash."""
        return re.sub(r"[^a-z0-9._-]", "-", self.name.lower()).lstrip("._-")[:40] or "x"

    def check(self, values: object) -> tuple[NDArray[Any], bool]:
        """Return the values as the graph takes them, if they keep the contract or can be made to.

        The range is checked in the values' own type, before they are converted. What is flagged passes: see
        ``examine``.

        Args:
            values: One example, shape ``self.shape``, or a batch, shape (n, *self.shape) with n >= 1; or a dictionary
                with it under the field's name. A table that names its columns as the contract does is taken by these
                names, in whatever order; one of other names by place.

        Returns:
            The batch, C-contiguous, of ``self.dtype``; and whether a single example was given.

        Raises:
            ContractError: The type, the shape or a value is not what the contract says.
        """
        if self._checks is not None:
            batch, single, _ = self.examine(values)
            return batch, single
        batch, single = self._batch(values)
        # The two reductions see NaN as well: no comparison with NaN holds. Counting waits for a failure.
        if not (batch.min() >= self.minimum and batch.max() <= self.maximum):
            broken = self._count(batch)
            if broken.total:
                raise ContractError(
                    f"Input {self.name!r} has {broken.missing} missing values, {broken.below} under "
                    f"{self.minimum:g} and {broken.above} over {self.maximum:g}: give values in "
                    f"{self.minimum:g}..{self.maximum:g}{' ' + self.unit if self.unit else ''}.",
                    {
                        f"{self.slug}.{kind}": count
                        for kind in ("missing", "below", "above")
                        if (count := getattr(broken, kind))
                    },
                )
        return np.ascontiguousarray(batch, dtype=self.dtype), single

    def examine(self, values: object) -> tuple[NDArray[Any], bool, Breach | None]:
        """Return what ``check`` does, and what was wrong with values that were clipped or flagged.

        Args:
            values: As for ``check``.

        Raises:
            ContractError: The type, the shape or a value is not what the contract says, and nothing cures it.
        """
        if self._checks is None:
            return *self.check(values), None
        given, single = self._batch(values)
        batch, breach = self._checks(given)
        return batch, single, breach

    def examine_age(self, at_s: float | None, now_s: float, count: int) -> Breach | None:
        """Return what is wrong with when examples were measured; None where nothing is.

        A time to come, further away than the age allowed, says that one of two clocks is wrong: it is as bad.

        Args:
            at_s: When they were measured, Unix seconds; None where nobody said.
            now_s: The time, Unix seconds.
            count: How many examples there are.

        Raises:
            ContractError: They are too old and to be refused, or nobody said how old and the contract asks.
        """
        if not self.max_age_s:
            return None
        given: object = at_s
        if at_s is not None and not isinstance(given, int | float | np.number):
            raise ContractError(
                f"Input {self.name!r} was measured at {given!r:.40}, which is no time: give Unix seconds, as time.time() does.",
                {f"{self.slug}.stale": count},
            )
        if at_s is None or not math.isfinite(at_s):
            raise ContractError(
                f"Input {self.name!r} may be {self.max_age_s:g} s old at most: say when it was measured, at=... in "
                "Unix seconds, or --at.",
                {f"{self.slug}.stale": count},
            )
        if abs(now_s - at_s) <= self.max_age_s:
            return None
        counts = {f"{self.slug}.stale": count}
        if self.stale == REJECT:
            away = "old" if now_s > at_s else "ahead of this device's clock"
            raise ContractError(
                f"Input {self.name!r} is {abs(now_s - at_s):.0f} s {away}: give one of the last "
                f"{self.max_age_s:g} s.",
                counts,
            )
        return Breach(counts, np.ones(count, np.bool_))

    def violations(self, values: object) -> Violations:
        """Count the values that break the contract, in one example or a batch.

        Raises:
            ContractError: The type or the shape is wrong, so that values cannot be judged one by one.
        """
        return self._count(self._batch(values)[0])

    def _batch(self, values: object) -> tuple[NDArray[Any], bool]:
        if isinstance(values, Mapping):
            if set(values) != {self.name}:
                raise self._misshapen(
                    "is all that is taken: give it by that name, or by none, and nothing else."
                )
            values = values[self.name]
        if self.columns:
            values = self._by_name(values)
        try:
            array = np.asarray(unmasked(values))
        except ValueError as exc:
            raise self._misshapen("is not an array: its rows have different lengths.") from exc
        except (
            TypeError,
            RuntimeError,
        ) as exc:  # A tensor that wants a gradient, or of a type that numpy lacks.
            raise self._misshapen(f"is no array for numpy: give it a numpy array ({exc}).") from exc
        if array.dtype.kind not in "fiub":
            raise self._misshapen(f"holds {array.dtype}: give numbers ({self.dtype}).")
        if array.dtype.kind == "f" and not self.dtype.startswith("float"):
            raise self._misshapen(f"holds {array.dtype}: give whole numbers ({self.dtype}).")
        if array.shape == self.shape:
            return array[np.newaxis], True
        if array.ndim == len(self.shape) + 1 and array.shape[1:] == self.shape and len(array):
            return array, False
        if array.shape == (0, *self.shape):
            raise self._misshapen("is a batch of no example: give one or more.")
        raise self._misshapen(
            f"has shape {array.shape}: give one example of shape {self.shape}, or a batch of them."
        )

    def _by_name(self, values: Any) -> object:
        """Return a table, or a row of one, with its columns in this order where they have these names; else as it is."""
        given = getattr(values, "columns", getattr(values, "index", None))
        if not isinstance(given, Iterable):
            return values
        found, names = list(given), [column.name for column in self.columns]
        # What is no text is not compared: a column itself, as some tables have them here, gives no truth.
        named = len(found) == len(names) and {each for each in found if isinstance(each, str)} == set(names)
        return values[names] if named and found != names else values

    def _misshapen(self, sentence: str) -> ContractError:
        return ContractError(f"Input {self.name!r} {sentence}", {f"{self.slug}.form": 1})

    def _count(self, batch: NDArray[Any]) -> Violations:
        if self._checks is not None:
            return Violations(*self._checks.totals(batch))
        missing = 0 if self.allow_missing else int(np.count_nonzero(np.isnan(batch)))
        return Violations(
            missing,
            int(np.count_nonzero(batch < self.minimum)),
            int(np.count_nonzero(batch > self.maximum)),
        )


@dataclass(frozen=True, slots=True)
class DataContract:
    """What a model may be fed: one field per input of its graphs, in their order."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if not names or len(set(names)) != len(names):
            raise UsageError("A data contract names at least one field, and each of them once.")

    def check(self, values: object) -> tuple[NDArray[Any], bool]:
        """Check the input of a model that has one: see ``Field.check``.

        Raises:
            UsageError: The input breaks the contract, or the model has several inputs.
        """
        return self._only().check(values)

    def violations(self, values: object) -> Violations:
        """Count what breaks the contract, for a model with one input: see ``Field.violations``.

        Raises:
            UsageError: The input cannot be judged, or the model has several.
        """
        return self._only().violations(values)

    def _only(self) -> Field:
        if len(self.fields) != 1:
            names = ", ".join(field.name for field in self.fields)
            raise UsageError(
                f"This model takes {len(self.fields)} inputs ({names}): check each with its field."
            )
        return self.fields[0]


def unmasked(values: object) -> object:
    """Return a masked array with NaN where its mask says that nothing is; anything else as it is.

    Numpy would give what lies behind the mask.
    """
    mask = getattr(values, "mask", None) if isinstance(values, np.ndarray) else None
    if mask is None or not np.any(mask):
        return values
    kept = np.array(values, np.float64 if values.dtype.kind in "iub" else values.dtype)  # type: ignore[attr-defined]
    kept[np.broadcast_to(mask, kept.shape)] = np.nan
    return kept


def _span(columns: Sequence[Column]) -> tuple[float, float]:
    return min(column.minimum for column in columns), max(column.maximum for column in columns)


def _holds(dtype: str, value: float) -> bool:
    if dtype.startswith("float"):
        return abs(value) <= float(np.finfo(dtype).max)
    limits = np.iinfo(dtype)
    return value == math.floor(value) and limits.min <= int(value) <= limits.max


def _check_range(what: str, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"{what} has the range {low}..{high}: give two finite numbers, the lower one first.")


def _check_action(what: str, action: str) -> None:
    if action not in ACTIONS:
        raise UsageError(f"{what} has the action {action!r}: use reject, clip or flag.")
