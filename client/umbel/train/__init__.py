"""Trainers improve a model's parameters on the device's own data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.manifest import FloatVector
from umbel_proto.privacy.examples import NoisySteps

MIN_CLIP, MAX_CLIP = 1e-6, 1e6
MIN_NOISE, MAX_NOISE = 1e-3, 1e4


class DivergedError(UsageError):
    """Training led to values that are not finite."""


@dataclass(frozen=True, slots=True)
class ExamplePrivacy:
    """How training keeps each example private, whoever sees what comes out: DP-SGD.

    Args:
        clip: Largest L2 norm of an example's gradient, loss per model unit, in [1e-6, 1e6].
        noise: Standard deviation of the noise in a sum of gradients, over ``clip``, in [1e-3, 1e4]; 0 only
            clips, which protects nothing.

    Source: docs/spec/privacy.md, "Example-level privacy".
    """

    clip: float
    noise: float

    def __post_init__(self) -> None:
        if not MIN_CLIP <= self.clip <= MAX_CLIP:
            raise UsageError(f"example_clip is {self.clip}: choose {MIN_CLIP:g} to {MAX_CLIP:g}.")
        if not (self.noise == 0 or MIN_NOISE <= self.noise <= MAX_NOISE):
            raise UsageError(f"example_noise is {self.noise}: choose {MIN_NOISE:g} to {MAX_NOISE:g}, or 0.")


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How to train.

    Args:
        epochs: Passes over the data, >= 1.
        batch_size: Examples in a step, >= 1.
        learning_rate: Length of a step, > 0.
        momentum: How much of the last step goes into the next, in [0, 1).
        seed: Order of the examples, in [0, 2**64). Privacy draws its own, from the operating system.
        privacy: How each example is kept private; None if it is not.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    seed: int
    privacy: ExamplePrivacy | None = None

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

    def steps(self, count: int) -> int:
        """Return how many steps training on ``count`` examples takes."""
        return self.epochs * math.ceil(count / self.batch_size)

    def release(self, count: int) -> NoisySteps | None:
        """Return what training on ``count`` >= 1 examples gives away about one; None if that is everything."""
        if self.privacy is None:
            return None
        return NoisySteps(min(1.0, self.batch_size / count), self.steps(count), self.privacy.noise)


@dataclass(frozen=True, slots=True, eq=False)
class TrainResult:
    """What training gave.

    Args:
        parameters: The new parameters, shape (dim,).
        loss: Mean loss of the examples over the last epoch, each measured before its step. Nothing hides an
            example in it, whatever the plan: it is for the device alone, or for a sum with noise. 0 if a
            private epoch happened to draw nobody.
        examples: How many examples there were.
        steps: How many steps were taken.
    """

    parameters: FloatVector = field(repr=False)
    loss: float
    examples: int
    steps: int


class Trainer(Protocol):
    """Trains one model. Without ``privacy`` the same arguments give the same bits on the same machine."""

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
        privacy: ExamplePrivacy | None = None,
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
            privacy: How each example is kept private. Whoever lets the result leave the device charges
                ``TrainPlan.release`` first.

        Raises:
            UsageError: The data breaks the contract, the settings make no sense, or training diverged.
        """

    def close(self) -> None:
        """Give back the memory that training needed. The trainer can be used again."""
