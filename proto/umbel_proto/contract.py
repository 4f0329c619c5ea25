"""Data contract: what a model's input must look like, checked on the array before it is used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError

DTYPES = frozenset({"float32", "float64", "int32", "int64", "uint8"})


@dataclass(frozen=True, slots=True)
class Violations:
    """How many values of an input break its contract.

    Args:
        missing: Values that are NaN where none may be.
        below: Values under the range's lower end, -inf included.
        above: Values over the range's upper end, inf included.
    """

    missing: int = 0
    below: int = 0
    above: int = 0

    @property
    def total(self) -> int:
        """All of them together."""
        return self.missing + self.below + self.above


@dataclass(frozen=True, slots=True)
class Field:
    """One input array of a model.

    Args:
        name: The graph's input.
        dtype: What the graph computes with: one of ``DTYPES``.
        shape: Shape of one example, without the batch dimension.
        minimum: Least legal value, in the sensor's unit.
        maximum: Greatest legal value, in the sensor's unit.
        allow_missing: Whether NaN may stand for a value that was not measured.
        unit: The unit, in words, for whoever reads the contract.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float
    maximum: float
    allow_missing: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(
                f"Field {self.name!r} has dtype {self.dtype!r}: use one of {', '.join(sorted(DTYPES))}."
            )
        if any(size < 1 for size in self.shape):
            raise UsageError(f"Field {self.name!r} has shape {self.shape}: every dimension is >= 1.")
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum <= self.maximum):
            raise UsageError(
                f"Field {self.name!r} has the range {self.minimum}..{self.maximum}: give two finite numbers, "
                "the lower one first."
            )
        if self.allow_missing and not self.dtype.startswith("float"):
            raise UsageError(f"Field {self.name!r} allows missing values, which {self.dtype} cannot express.")

    def check(self, values: object) -> tuple[NDArray[Any], bool]:
        """Return the values as the graph takes them, if they keep the contract.

        The range is checked in the values' own type, before they are converted.

        Args:
            values: One example, shape ``self.shape``, or a batch, shape (n, *self.shape) with n >= 1.

        Returns:
            The batch, C-contiguous, of ``self.dtype``; and whether a single example was given.

        Raises:
            UsageError: The type, the shape or a value is not what the contract says.
        """
        batch, single = self._batch(values)
        # The two reductions see NaN as well: no comparison with NaN holds. Counting waits for a failure.
        if not (batch.min() >= self.minimum and batch.max() <= self.maximum):
            broken = self._count(batch)
            if broken.total:
                raise UsageError(
                    f"Input {self.name!r} has {broken.missing} missing values, {broken.below} under "
                    f"{self.minimum:g} and {broken.above} over {self.maximum:g}: give values in "
                    f"{self.minimum:g}..{self.maximum:g}{' ' + self.unit if self.unit else ''}."
                )
        return np.ascontiguousarray(batch, dtype=self.dtype), single

    def violations(self, values: object) -> Violations:
        """Count the values that break the contract, in one example or a batch.

        Raises:
            UsageError: The type or the shape is wrong, so that values cannot be judged one by one.
        """
        return self._count(self._batch(values)[0])

    def _batch(self, values: object) -> tuple[NDArray[Any], bool]:
        try:
            array = np.asarray(values)
        except ValueError as exc:
            raise UsageError(
                f"Input {self.name!r} is not an array: its rows have different lengths."
            ) from exc
        if array.dtype.kind not in "fiub":
            raise UsageError(f"Input {self.name!r} holds {array.dtype}: give numbers ({self.dtype}).")
        if array.dtype.kind == "f" and not self.dtype.startswith("float"):
            raise UsageError(f"Input {self.name!r} holds {array.dtype}: give whole numbers ({self.dtype}).")
        if array.shape == self.shape:
            return array[np.newaxis], True
        if array.ndim == len(self.shape) + 1 and array.shape[1:] == self.shape and len(array):
            return array, False
        raise UsageError(
            f"Input {self.name!r} has shape {array.shape}: give one example of shape {self.shape}, "
            "or a batch of them."
        )

    def _count(self, batch: NDArray[Any]) -> Violations:
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
