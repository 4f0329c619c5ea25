"""How a device is to train: one value, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from umbel_proto.errors import UsageError
from umbel_proto.privacy.examples import NoisySteps

MIN_CLIP, MAX_CLIP = 1e-6, 1e6
MIN_NOISE, MAX_NOISE = 1e-3, 1e4

SGD = "sgd"
ADAM = "adam"
OPTIMIZERS = (SGD, ADAM)


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

    A step takes the gradient of a batch, adds the FedProx term, clips, adds SCAFFOLD's terms and hands the sum
    to the optimizer. Under ``privacy`` the batch's gradient has its noise already: what follows costs none.

    Args:
        epochs: Passes over the data, >= 1.
        batch_size: Examples in a step, >= 1.
        learning_rate: Length of a step, > 0.
        momentum: How much of the last step goes into the next, in [0, 1); Adam's beta_1.
        seed: Order of the examples, in [0, 2**64). Privacy draws its own, from the operating system.
        privacy: How each example is kept private; None if it is not.
        optimizer: ``sgd`` or ``adam``.
        nesterov: Whether momentum looks a step ahead; for ``sgd``.
        second_momentum: Adam's beta_2, in [0, 1).
        adaptivity: Adam's epsilon, > 0: what keeps its steps short where gradients are small.
        weight_decay: How much of the parameters is added to their gradient, >= 0.
        gradient_clip: Largest L2 norm of a step's gradient, loss per model unit; 0 for any.
        fedprox_mu: Pull towards the parameters that training began with, >= 0.
        patience: Epochs without a lower loss on the examples held back after which training ends; 0 for none.
        time_limit_s: Seconds after which no step begins; 0 for no limit.
        energy_limit_j: Joules after which no step begins; 0 for no limit.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    seed: int
    privacy: ExamplePrivacy | None = None
    _: KW_ONLY
    optimizer: str = SGD
    nesterov: bool = False
    second_momentum: float = 0.999
    adaptivity: float = 1e-8
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    fedprox_mu: float = 0.0
    patience: int = 0
    time_limit_s: float = 0.0
    energy_limit_j: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= 1000:
            raise UsageError(f"epochs is {self.epochs}: choose 1 to 1000.")
        if not 1 <= self.batch_size <= 65536:
            raise UsageError(f"batch_size is {self.batch_size}: choose 1 to 65536.")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError("seed does not fit 64 bits: choose 0 to 2**64 - 1.")
        for name in ("learning_rate", "adaptivity"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}: choose a number > 0.")
        for name in ("momentum", "second_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: choose a number in [0, 1).")
        for name in ("weight_decay", "gradient_clip", "fedprox_mu", "time_limit_s", "energy_limit_j"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}: choose a number > 0, or 0 for none.")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"There is no optimizer {self.optimizer!r}: choose from {', '.join(OPTIMIZERS)}."
            )
        if self.nesterov and (self.optimizer != SGD or self.momentum == 0):
            raise UsageError("nesterov needs optimizer sgd and a momentum > 0: set them, or leave it out.")
        if not 0 <= self.patience <= 1000:
            raise UsageError(f"patience is {self.patience}: choose 1 to 1000 epochs, or 0 for none.")
        if self.patience and self.privacy is not None:
            raise UsageError(
                "patience ends training by a loss that no noise hides, so examples would not stay private: choose "
                "fewer epochs instead, or train without example_clip and example_noise."
            )

    def steps(self, count: int) -> int:
        """Return how many steps training on ``count`` examples takes, if nothing ends it sooner."""
        return self.epochs * math.ceil(count / self.batch_size)

    def release(self, count: int) -> NoisySteps | None:
        """Return what training on ``count`` >= 1 examples gives away about one; None if that is everything.

        It is what was planned, also where a limit ends training sooner.
        """
        if self.privacy is None:
            return None
        return NoisySteps(min(1.0, self.batch_size / count), self.steps(count), self.privacy.noise)
