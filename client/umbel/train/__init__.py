"""Trainers improve a model's parameters on the device's own data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from umbel.train.plan import ADAM, OPTIMIZERS, SGD, ExamplePrivacy, TrainPlan
from umbel_proto.errors import UsageError

if TYPE_CHECKING:
    from umbel._data.examples import Examples
    from umbel_proto.manifest import FloatVector

__all__ = [
    "ADAM",
    "METER",
    "OPTIMIZERS",
    "SGD",
    "Controls",
    "DivergedError",
    "Ended",
    "ExamplePrivacy",
    "Meter",
    "TrainPlan",
    "TrainResult",
    "Trainer",
]


class DivergedError(UsageError):
    """Training led to values that are not finite."""


class Ended(StrEnum):
    """Why a training ended."""

    EPOCHS = "epochs"  # All of them were done.
    PATIENCE = "patience"  # The loss on what was held back had stopped falling.
    TIME = "time"
    ENERGY = "energy"


@dataclass(frozen=True, slots=True)
class Meter:
    """What a training's limits are measured with.

    Args:
        clock: Tells the time, seconds; only differences count.
        joules: Tells how much energy has been used so far, joules; only differences count. None where nobody
            knows: such a device refuses a plan with an energy limit.
    """

    clock: Callable[[], float] = time.monotonic
    joules: Callable[[], float] | None = None


METER = Meter()


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """SCAFFOLD's control variates: which way the gradient of all devices points, and which way one device's.

    Args:
        server: The mean of all devices' (c), shape (dim,).
        own: This device's (c_i), shape (dim,); zeros before its first training. It stays on the device: it
            tells as much about the examples as an update does.

    Source: Karimireddy et al., ICML 2020 (arXiv 1910.06378), algorithm 1.
    """

    server: FloatVector = field(repr=False)
    own: FloatVector = field(repr=False)


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
        ended: Why there were no more.
        seconds: How long they took.
        joules: How much energy they took; None where nobody knows.
        control: This device's next control variate, shape (dim,), if ``Controls`` were given.
    """

    parameters: FloatVector = field(repr=False)
    loss: float
    examples: int
    steps: int
    ended: Ended = Ended.EPOCHS
    seconds: float = 0.0
    joules: float | None = None
    control: FloatVector | None = field(default=None, repr=False)


class Trainer(Protocol):
    """Trains one model. Without privacy and limits the same arguments give the same bits on the same machine."""

    def train(
        self,
        parameters: FloatVector,
        x: NDArray[Any],
        y: NDArray[Any],
        plan: TrainPlan,
        *,
        held_back: Examples | None = None,
        controls: Controls | None = None,
    ) -> TrainResult:
        """Return ``parameters``, shape (dim,), improved on local examples.

        Args:
            parameters: Where to start, shape (dim,); they are not changed.
            x: Examples, shape (n, *example), that keep the data contract.
            y: Labels, whole numbers, shape (n,); or the targets of a regression, shape (n, *answer).
            plan: What to do. Whoever lets the result leave the device charges ``plan.release`` first.
            held_back: Labelled examples that are not among them, for a plan with ``patience``.
            controls: SCAFFOLD's terms; left out, it is not SCAFFOLD.

        Raises:
            UsageError: The data breaks the contract, the settings do not fit together, training diverged, or
                the model cannot be trained as the plan says.
        """

    def close(self) -> None:
        """Give back the memory that training needed. The trainer can be used again."""
