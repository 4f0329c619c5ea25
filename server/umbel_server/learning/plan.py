"""A run plan: what is trained, by whom, under which privacy, within which limits."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName, check_name


@dataclass(frozen=True, slots=True)
class Training:
    """What each device does with its own data in a round.

    Args:
        epochs: Passes over the data.
        batch_size: Examples a step.
        learning_rate: Of SGD.
        momentum: Of SGD, in [0, 1).
        seed: Where the order of examples comes from; each device and round mixes it with its own name.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        _positive("learning_rate", self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum is {self.momentum}: choose a number in [0, 1).")


@dataclass(frozen=True, slots=True)
class Privacy:
    """How much a round's sum may say about one device.

    Args:
        clip: Greatest L2 norm of a device's update, in model units.
        noise_multiplier: Standard deviation of the noise in the sum over the sensitivity, counting only the
            honest devices of the smallest cohort; 0 adds none, and epsilon is infinite.
        delta: The delta of the (epsilon, delta) that is reported.
    """

    clip: float
    noise_multiplier: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        _positive("clip", self.clip)
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise UsageError(f"noise_multiplier is {self.noise_multiplier}: choose a number >= 0.")
        if not 0 < self.delta < 1:
            raise UsageError(f"delta is {self.delta}: choose a number in (0, 1).")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the server waits.

    Args:
        join_timeout_s: For devices to come online before a round.
        settle_s: Once enough are online, for more to come; a round begins when none came for so long.
        train_timeout_s: For a device to train and join a round.
        phase_timeout_s: For a device to answer in each later phase.
        grace_s: Once enough devices have answered, the rest get this long, or half as long again as those took
            if that is more.
    """

    join_timeout_s: float = 60.0
    settle_s: float = 0.5
    train_timeout_s: float = 600.0
    phase_timeout_s: float = 60.0
    grace_s: float = 2.0

    def __post_init__(self) -> None:
        for each in fields(self):
            _positive(each.name, getattr(self, each.name))


@dataclass(frozen=True, slots=True)
class RunPlan:
    """All that a run needs to know.

    Args:
        model: What is trained.
        version: The released package version it starts from.
        package_sha256: That package's hash, hex.
        rounds: How many rounds to complete.
        devices: How many devices are expected to take part; noise and layout are planned for them.
        attempts: How often a round may be tried before the run gives up.
        training: What a device does.
        privacy: What a round may reveal.
        timing: How long to wait.
        heldout: An ``.npz`` file with ``x`` and ``y`` that the server owns and evaluates on, or "".
        server_learning_rate: What the mean update is multiplied with (FedAvg: 1).
    """

    model: ModelName
    version: int
    package_sha256: str
    rounds: int
    devices: int
    training: Training
    privacy: Privacy
    timing: Timing = field(default_factory=Timing)
    attempts: int = 3
    heldout: str = ""
    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        check_name(self.model, "model")
        _at_least("version", self.version, 1)
        _at_least("rounds", self.rounds, 1)
        _at_least("devices", self.devices, 3)
        _at_least("attempts", self.attempts, 1)
        _positive("server_learning_rate", self.server_learning_rate)
        if len(self.package_sha256) != 64:
            raise UsageError("package_sha256 is not a SHA-256 in hex (64 digits).")

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunPlan:
        """Read a plan.

        Raises:
            UsageError: It is not JSON, lacks a field, has an unknown one, or a value is out of range.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as exc:
            raise UsageError(f"The run plan is not JSON: {exc}.") from exc
        if not isinstance(raw, dict):
            raise UsageError("The run plan is not a JSON object.")
        nested: dict[str, type[Any]] = {"training": Training, "privacy": Privacy, "timing": Timing}
        plan: RunPlan = _build(
            cls,
            {key: _build(nested[key], value, key) if key in nested else value for key, value in raw.items()},
        )
        return plan


def _build(kind: type[Any], raw: object, where: str = "the run plan") -> Any:
    if not isinstance(raw, dict):
        raise UsageError(f"{where} is not a JSON object.")
    unknown = raw.keys() - {each.name for each in fields(kind)}
    if unknown:
        raise UsageError(f"{where} has an unknown field {sorted(unknown)[0]!r}.")
    try:
        return kind(**raw)
    except TypeError as exc:
        raise UsageError(f"{where} is incomplete or has a value of the wrong type: {exc}.") from exc


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name} is {value}: choose a number >= {least}.")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} is {value}: choose a number > 0.")
