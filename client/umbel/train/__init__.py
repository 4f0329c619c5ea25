"""Trainers improve a model's parameters on the device's own data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.manifest import FloatVector


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How to train.

    Args:
        epochs: Passes over the data, >= 1.
        batch_size: Examples in a step, >= 1.
        learning_rate: Length of a step, > 0.
        momentum: How much of the last step goes into the next, in [0, 1).
        seed: Order of the examples, in [0, 2**64).
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= 1000:
            raise UsageError(f"epochs is {self.epochs}: choose 1 to 1000.")
        if not 1 <= self.batch_size <= 65536:
            raise UsageError(f"batch_size is {self.batch_size}: choose 1 to 65536.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning_rate is {self.learning_rate}: choose a number > 0.")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum is {self.momentum}: choose a number in [0, 1).")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError("seed does not fit 64 bits: choose 0 to 2**64 - 1.")


@dataclass(frozen=True, slots=True, eq=False)
class TrainResult:
    """What training gave.

    Args:
        parameters: The new parameters, shape (dim,).
        loss: Mean loss of the examples over the last epoch, each measured before its step.
        examples: How many examples there were.
        steps: How many steps were taken.
    """

    parameters: FloatVector = field(repr=False)
    loss: float
    examples: int
    steps: int


class Trainer(Protocol):
    """Trains one model. The same arguments give the same bits on the same machine."""

    def train(
        self,
        parameters: FloatVector,
        x: NDArray[Any],
        y: NDArray[Any],
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        momentum: float,
        seed: int,
    ) -> TrainResult:
        """Return ``parameters``, shape (dim,), improved on local examples.

        Args:
            parameters: Where to start, shape (dim,).
            x: Examples, shape (n, *example).
            y: Labels, whole numbers, shape (n,).
            epochs: See ``TrainPlan``, as for all that follow.
            batch_size: Examples in a step.
            learning_rate: Length of a step.
            momentum: How much of the last step goes into the next.
            seed: Order of the examples.

        Raises:
            UsageError: The data breaks the contract, the settings make no sense, or training diverged.
        """

    def close(self) -> None:
        """Give back the memory that training needed. The trainer can be used again."""
