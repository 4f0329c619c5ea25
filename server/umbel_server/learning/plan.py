"""A run plan: what is trained, by whom, under which privacy, within which limits."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName, check_name
from umbel_proto.privacy.auxiliary import ACCURACY, LOSS, TRAINING_LOSS
from umbel_proto.privacy.plan import AUXILIARY_SHARE

METRICS = (LOSS, ACCURACY, TRAINING_LOSS)
SGD = "sgd"
ADAM = "adam"
OPTIMIZERS = ("fedavg", "fedavgm", "fedadam", "fedyogi")


@dataclass(frozen=True, slots=True)
class Training:
    """What each device does with its own data in a round.

    Args:
        epochs: Passes over the data.
        batch_size: Examples a step.
        learning_rate: Length of a step.
        momentum: Of SGD, or Adam's beta_1, in [0, 1).
        seed: Where the order of examples comes from; each device and round mixes it with its own name.
        holdback: Share of a device's examples that it never trains on and evaluates on, in [0, 1/2]; with 0 it
            evaluates on those it trains on.
        example_clip: Largest L2 norm of an example's gradient; 0 trains without example-level privacy.
        example_noise: Standard deviation of the noise in a step's sum of gradients, over ``example_clip``.
        optimizer: ``sgd`` or ``adam``.
        nesterov: Whether SGD's momentum looks a step ahead.
        second_momentum: Adam's beta_2, in [0, 1).
        adaptivity: Adam's epsilon, > 0.
        weight_decay: How much of the parameters is added to their gradient, >= 0.
        gradient_clip: Largest L2 norm of a step's gradient; 0 for any.
        fedprox_mu: Pull of a device's steps towards the parameters it received, >= 0.
        patience: Epochs without a lower loss on what is held back after which a device ends; 0 for none.
        time_limit_s: Seconds after which a device begins no step; 0 for no limit.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.0
    seed: int = 0
    holdback: float = 0.0
    example_clip: float = 0.0
    example_noise: float = 0.0
    optimizer: str = SGD
    nesterov: bool = False
    second_momentum: float = 0.999
    adaptivity: float = 1e-8
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    fedprox_mu: float = 0.0
    patience: int = 0
    time_limit_s: float = 0.0

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        _positive("learning_rate", self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum is {self.momentum}: choose a number in [0, 1).")
        if not 0 <= self.holdback <= 0.5:
            raise UsageError(f"holdback is {self.holdback}: choose a number in [0, 0.5].")
        # As every device insists on; see its ``ExamplePrivacy``.
        if not (self.example_clip == 0 or 1e-6 <= self.example_clip <= 1e6):
            raise UsageError(f"example_clip is {self.example_clip}: choose a number in [1e-6, 1e6], or 0.")
        if not (self.example_noise == 0 or 1e-3 <= self.example_noise <= 1e4):
            raise UsageError(f"example_noise is {self.example_noise}: choose a number in [1e-3, 1e4], or 0.")
        if (self.example_clip > 0) != (self.example_noise > 0):
            raise UsageError(
                f"example_clip is {self.example_clip:g} and example_noise {self.example_noise:g}, and one without the "
                "other protects no example: choose both > 0, or both 0."
            )
        self._check_descent()

    def _check_descent(self) -> None:
        # As every device insists on; see its ``TrainPlan``.
        if self.optimizer == "scaffold":
            raise UsageError(
                "SCAFFOLD works in local rounds only, with umbel train --scaffold: in a run the noise that protects "
                "devices would return in every step. Choose sgd, and fedprox_mu against drift."
            )
        if self.optimizer not in (SGD, ADAM):
            raise UsageError(f"There is no optimizer {self.optimizer!r}: choose {SGD} or {ADAM}.")
        if self.nesterov and (self.optimizer != SGD or self.momentum == 0):
            raise UsageError("nesterov needs optimizer sgd and a momentum > 0: set them, or leave it out.")
        if not 0 <= self.second_momentum < 1:
            raise UsageError(f"second_momentum is {self.second_momentum}: choose a number in [0, 1).")
        _positive("adaptivity", self.adaptivity)
        for name in ("weight_decay", "gradient_clip", "fedprox_mu", "time_limit_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"{name} is {getattr(self, name)}: choose a number > 0, or 0 for none.")
        if not 0 <= self.patience <= 1000:
            raise UsageError(f"patience is {self.patience}: choose 1 to 1000 epochs, or 0 for none.")
        if self.patience and not self.holdback:
            raise UsageError("patience needs examples to judge by: set a holdback, such as 0.2.")
        if self.patience and self.example_clip:
            raise UsageError(
                "patience ends training by a loss that no noise hides, so examples would not stay private: leave it "
                "out, or example_clip and example_noise."
            )


@dataclass(frozen=True, slots=True)
class Privacy:
    """How much a round's sum may say about one device.

    Args:
        clip: Greatest L2 norm of a device's update, in model units.
        noise_multiplier: Standard deviation of the noise in the sum over the sensitivity, counting only the
            honest devices of the smallest cohort; 0 adds none, and epsilon is infinite.
        delta: The delta of the (epsilon, delta) that is reported.
        participations: How often one device may take part in the run; it is not invited again after. 0 for no cap:
            the budget is then planned for every round.
        sampling_rate: Probability with which a device that could take part is drawn into a round, in (0, 1]. Whom
            it draws the server keeps to itself: epsilon_release counts on it.
    """

    clip: float
    noise_multiplier: float
    delta: float = 1e-5
    participations: int = 0
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        _positive("clip", self.clip)
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise UsageError(f"noise_multiplier is {self.noise_multiplier}: choose a number >= 0.")
        if not 0 < self.delta < 1:
            raise UsageError(f"delta is {self.delta}: choose a number in (0, 1).")
        _at_least("participations", self.participations, 0)
        if not 0 < self.sampling_rate <= 1:
            raise UsageError(f"sampling_rate is {self.sampling_rate}: choose a number in (0, 1].")


@dataclass(frozen=True, slots=True)
class Clipping:
    """Whether the clip follows the updates' norms from round to round.

    Args:
        rate: How fast, >= 0; 0 keeps the clip as it is.
        quantile: The share of updates that it should leave uncut, in (0, 1).
        low: Least clip, model units, > 0.
        high: Largest clip.

    Source:
        Andrew et al., NeurIPS 2021 (arXiv 1905.03871).
    """

    rate: float = 0.0
    quantile: float = 0.5
    low: float = 1e-3
    high: float = 1e3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise UsageError(f"rate is {self.rate}: choose a number >= 0, such as 0.2.")
        if not 0 < self.quantile < 1:
            raise UsageError(f"quantile is {self.quantile}: choose a number in (0, 1).")
        _positive("low", self.low)
        _positive("high", self.high)
        if self.low > self.high:
            raise UsageError(f"low is {self.low} and high {self.high}: choose low <= high.")


@dataclass(frozen=True, slots=True)
class Metrics:
    """What devices report through the secure sum: the server sees the noised mean and no device's own.

    Args:
        names: Of ``loss`` and ``accuracy``, of the model as received, and ``training_loss``.
        loss_high: A larger loss counts as this; 0 for twice that of guessing.
        share: Square of a quantity's amplitude over that of the update's bound, in (0, 1].
        norms: Whether they say of their update's length, too, whether it was within a quarter, a half, one, two and
            four clips: five quantities, of which the lengths' histogram is made.
    """

    names: tuple[str, ...] = ("loss", "accuracy")
    loss_high: float = 0.0
    share: float = AUXILIARY_SHARE
    norms: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))  # JSON has lists only.
        for name in self.names:
            if name not in METRICS:
                raise UsageError(f"There is no metric {name!r}: choose from {', '.join(METRICS)}.")
        if len(set(self.names)) != len(self.names):
            raise UsageError("A metric is named twice: name each once.")
        if not (math.isfinite(self.loss_high) and self.loss_high >= 0):
            raise UsageError(f"loss_high is {self.loss_high}: choose a number >= 0.")
        if not 0 < self.share <= 1:
            raise UsageError(f"share is {self.share}: choose a number in (0, 1].")


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What the server makes of a mean update.

    Args:
        kind: ``fedavg``, ``fedavgm``, ``fedadam`` or ``fedyogi``.
        learning_rate: What the step is multiplied with.
        momentum: beta_1, in [0, 1); not for fedavg.
        second_momentum: beta_2, in [0, 1); for fedadam and fedyogi.
        adaptivity: tau, > 0; for fedadam and fedyogi.
    """

    kind: str = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    second_momentum: float = 0.99
    adaptivity: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in OPTIMIZERS:
            raise UsageError(f"There is no optimizer {self.kind!r}: choose from {', '.join(OPTIMIZERS)}.")
        _positive("learning_rate", self.learning_rate)
        for name in ("momentum", "second_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: choose a number in [0, 1).")
        _positive("adaptivity", self.adaptivity)


@dataclass(frozen=True, slots=True)
class Guard:
    """When a sum is not used: docs/explanation/poisoning.md.

    Args:
        gate: Whether sums that honest devices cannot have sent are refused.
        factor: How many times the median of the recent rounds' norms a sum's may be, > 1.
        max_drop: Largest loss of held-out accuracy against the best of the recent rounds, in [0, 1]; 0 for any. It
            takes held-out data.
        groups: Random groups of a diagnostic round, held when two attempts in a row were refused: 3 to 20, or 0
            for none.
    """

    gate: bool = True
    factor: float = 3.0
    max_drop: float = 0.25
    groups: int = 10

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 1):
            raise UsageError(f"factor is {self.factor}: choose a number > 1, such as 3.")
        if not 0 <= self.max_drop <= 1:
            raise UsageError(f"max_drop is {self.max_drop}: choose a number in [0, 1].")
        if self.groups and not 3 <= self.groups <= 20:
            raise UsageError(f"groups is {self.groups}: choose 3 to 20, or 0 for none.")


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
class Result:
    """What becomes of the model when all rounds are done.

    Args:
        calibration: An ``.npz`` file with ``x`` that the server owns, to quantize the model with; it is then packed
            and signed by itself. "" to leave that to ``umbel rounds pack``.
    """

    calibration: str = ""


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
        privacy: What a round may reveal.
        training: What a device does.
        timing: How long to wait.
        heldout: An ``.npz`` file with ``x`` and ``y`` that the server owns and evaluates on, or "".
        min_cohort: Fewest devices in a sum; 0 for the fleet policy's. The more, the less noise each adds.
        weight_cap: A device counts as many times as it has examples, up to this; 0 for all alike.
        clipping: Whether the clip follows the updates.
        metrics: What devices report through the secure sum.
        optimizer: What the server makes of a mean update.
        guard: When a sum is not used.
        result: What becomes of the model.
    """

    model: ModelName
    version: int
    package_sha256: str
    rounds: int
    devices: int
    privacy: Privacy
    training: Training = field(default_factory=Training)
    timing: Timing = field(default_factory=Timing)
    attempts: int = 3
    heldout: str = ""
    min_cohort: int = 0
    weight_cap: int = 0
    clipping: Clipping = field(default_factory=Clipping)
    metrics: Metrics = field(default_factory=Metrics)
    optimizer: Optimizer = field(default_factory=Optimizer)
    guard: Guard = field(default_factory=Guard)
    result: Result = field(default_factory=Result)

    def __post_init__(self) -> None:
        check_name(self.model, "model")
        _at_least("version", self.version, 1)
        _at_least("rounds", self.rounds, 1)
        _at_least("devices", self.devices, 3)
        _at_least("attempts", self.attempts, 1)
        _at_least("min_cohort", self.min_cohort, 0)
        if self.min_cohort > self.devices:
            raise UsageError(
                f"min_cohort is {self.min_cohort}, and a round has {self.devices} devices: lower it, or raise devices."
            )
        _at_least("weight_cap", self.weight_cap, 0)
        if self.training.time_limit_s > self.timing.train_timeout_s:
            raise UsageError(
                f"training.time_limit_s is {self.training.time_limit_s:g}, and the server waits for "
                f"{self.timing.train_timeout_s:g} s: lower it, or raise timing.train_timeout_s."
            )
        if len(self.package_sha256) != 64:
            raise UsageError("package_sha256 is not a SHA-256 in hex (64 digits).")

    @property
    def most_participations(self) -> int:
        """How often one device may take part, as the budget is planned."""
        return min(self.privacy.participations or self.rounds, self.rounds)

    @property
    def most_devices(self) -> int:
        """The largest cohort: with sampling, six standard deviations above the number expected."""
        rate = self.privacy.sampling_rate
        return self.devices + math.ceil(6 * math.sqrt(self.devices * (1 - rate)))

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
        return cls.from_mapping(raw)

    @classmethod
    def from_mapping(cls, raw: object) -> RunPlan:
        """Read a plan from plain values, as JSON or TOML gives them.

        Raises:
            UsageError: It lacks a field, has an unknown one, or a value is out of range.
        """
        if not isinstance(raw, dict):
            raise UsageError("The run plan is not an object with fields.")
        nested: dict[str, type[Any]] = {
            "training": Training,
            "privacy": Privacy,
            "timing": Timing,
            "clipping": Clipping,
            "metrics": Metrics,
            "optimizer": Optimizer,
            "guard": Guard,
            "result": Result,
        }
        plan: RunPlan = _build(
            cls,
            {key: _build(nested[key], value, key) if key in nested else value for key, value in raw.items()},
        )
        return plan


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text in quotes"),
    "ModelName": ((str,), "a text in quotes"),
    "tuple[str, ...]": ((list, tuple), 'a list, such as ["loss"]'),
}
"""By a field's annotation: the types of a plan's value, and what to write."""


def _build(kind: type[Any], raw: object, where: str = "the run plan") -> Any:
    if not isinstance(raw, dict):
        raise UsageError(f"{where} is not an object with fields.")
    unknown = raw.keys() - {each.name for each in fields(kind)}
    if unknown:
        raise UsageError(f"{where} has an unknown field {sorted(unknown)[0]!r}.")
    needed = [
        each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING
    ]
    if lacking := [name for name in needed if name not in raw]:
        raise UsageError(f"{where} lacks {' and '.join(map(repr, lacking))}: add it.")
    for each in fields(kind):
        if each.name in raw:
            _check_type(each.name, raw[each.name], str(each.type))
    return kind(**raw)


def _check_type(name: str, value: object, annotation: str) -> None:
    """Refuse a value of another type than its field's. Tables are objects by now, and pass."""
    types, wanted = _TYPES.get(annotation, ((object,), ""))
    # Python counts true and false among the whole numbers, and a plan does not.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UsageError(f"{name} is {value!r}: write {wanted}.")
    # A longer one becomes no float, and no record keeps it.
    if isinstance(value, int) and value.bit_length() > 64:
        raise UsageError(f"{name} is a whole number of more than 64 bits: no plan has one.")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name} is {value}: choose a number >= {least}.")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} is {value}: choose a number > 0.")
