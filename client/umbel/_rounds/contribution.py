"""What a device adds to a round's sum: trained and measured in phase 1, encoded in phase 3.

Source: docs/spec/privacy.md, "Auxiliary quantities".
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from umbel._data.examples import Examples
from umbel.train import SGD, DivergedError, ExamplePrivacy, Trainer, TrainPlan
from umbel.train.evaluate import MAX_HOLDBACK, evaluate, hold_back
from umbel.train.local import train_locally
from umbel.train.onnx import OnnxTrainer
from umbel_proto.errors import RemoteProtocolError, UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.manifest import CLASSIFICATION
from umbel_proto.package import Package
from umbel_proto.privacy.auxiliary import ACCURACY, LOSS, TRAINING_LOSS, WEIGHT, Quantity, within
from umbel_proto.privacy.encode import norm_of
from umbel_proto.privacy.examples import NoisySteps
from umbel_proto.secagg.session import SERVER, Descriptor
from umbel_proto.wire import rounds_pb2, saved_pb2

log = logging.getLogger(__name__)

Vector = NDArray[np.float32]

TrainerFactory = Callable[[Package], Trainer]
"""Makes the trainer of a package: ``OnnxTrainer``, or what the device's owner brings."""


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """A device's part of a sum, before it is clipped, noised and masked. It never leaves the device as it is.

    Args:
        update: Local minus global parameters, shape (dim,).
        auxiliary: What the plan asks for beside it, each in [-1, 1].
        weight: How much of the update goes into the sum, in [0, 1].
        query: Whether this is the answer to a query.
    """

    update: Vector = field(repr=False)
    auxiliary: tuple[float, ...] = field(repr=False)
    weight: float = field(repr=False)
    query: bool = False

    def to_bytes(self) -> bytes:
        """Return it as bytes, for the device's memory only."""
        return saved_pb2.Contribution(
            update=self.update.astype("<f4", copy=False).tobytes(),
            auxiliary=self.auxiliary,
            weight=self.weight,
            query=self.query,
        ).SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes) -> Contribution:
        """Read what ``to_bytes`` gave."""
        m = saved_pb2.Contribution.FromString(data)
        return cls(np.frombuffer(m.update, "<f4").astype(np.float32), tuple(m.auxiliary), m.weight, m.query)


def asked_for(plan: rounds_pb2.TrainPlan, descriptor: Descriptor) -> tuple[Quantity, ...]:
    """Return what a plan asks for beside the update.

    Raises:
        RemoteProtocolError: It asks for something unknown, twice, or for more or less than the descriptor.
    """
    try:
        asked = tuple(Quantity(each.name, each.low, each.high) for each in plan.auxiliary)
    except UsageError as exc:
        raise RemoteProtocolError(SERVER, f"the plan asks for what no device answers: {exc}") from exc
    if len({quantity.name for quantity in asked}) != len(asked):
        raise RemoteProtocolError(SERVER, "the plan asks for a quantity twice")
    amplitudes = descriptor.encoding.auxiliary
    if len(asked) != len(amplitudes):
        raise RemoteProtocolError(
            SERVER, f"the plan asks for {len(asked)} quantities, and the session sums {len(amplitudes)}"
        )
    return asked


def settings_of(plan: rounds_pb2.TrainPlan) -> TrainPlan:
    """Return how the server wants training to be done, within what a device does at all.

    Raises:
        RemoteProtocolError: It wants something else.
    """
    if not 0 <= plan.holdback <= MAX_HOLDBACK:
        raise RemoteProtocolError(
            SERVER,
            f"the plan wants to hold back {plan.holdback:g} of the examples, more than {MAX_HOLDBACK:g}",
        )
    try:
        # Noise without a clip is no protection and no mistake to pass over: ExamplePrivacy refuses it.
        wanted = plan.example_clip != 0 or plan.example_noise != 0
        privacy = ExamplePrivacy(plan.example_clip, plan.example_noise) if wanted else None
        if plan.optimizer == SGD:
            raise UsageError("optimizer is 'sgd': leave it out.")
        if plan.patience and not plan.holdback:
            raise UsageError("patience needs a holdback to judge by.")
        # Zero stands for what only Adam has.
        adam = {"second_momentum": plan.second_momentum, "adaptivity": plan.adaptivity}
        return TrainPlan(
            plan.epochs,
            plan.batch_size,
            plan.learning_rate,
            plan.momentum,
            plan.seed,
            privacy,
            optimizer=plan.optimizer or SGD,
            nesterov=plan.nesterov,
            weight_decay=plan.weight_decay,
            gradient_clip=plan.gradient_clip,
            fedprox_mu=plan.fedprox_mu,
            patience=plan.patience,
            time_limit_s=plan.time_limit_s,
            **(adam if plan.optimizer else {}),
        )
    except UsageError as exc:
        raise RemoteProtocolError(SERVER, f"the plan is out of range: {exc}") from exc


def contribute(
    package: Package,
    start: Vector,
    examples: Examples,
    plan: rounds_pb2.TrainPlan,
    descriptor: Descriptor,
    *,
    device: DeviceId,
    charge: Callable[[NoisySteps | None], object],
    trainer_of: TrainerFactory = OnnxTrainer,
) -> Contribution:
    """Train on a device's examples, and measure what the plan asks for.

    What has no finite value is replaced by nothing: a zero update, the middle of a quantity's range. The server
    chooses the model and the steps, so a refusal would tell it, with no noise and at no charge, what it asks.

    Args:
        package: The model.
        start: The global parameters, shape (dim,).
        examples: The device's, with labels.
        plan: The training plan.
        descriptor: The session.
        device: The device.
        charge: See ``train_locally``.
        trainer_of: Makes the trainer.

    Raises:
        BudgetError: ``charge`` says that the examples' budget does not cover it.
        RemoteProtocolError: The plan asks for what no device answers.
        UsageError: The examples break the contract, or the settings make no sense.

    Source: docs/spec/privacy.md, 2.14.
    """
    asked, settings = asked_for(plan, descriptor), settings_of(plan)
    training, evaluation = hold_back(examples, plan.holdback)
    with contextlib.closing(trainer_of(package)) as trainer:
        try:
            trained = train_locally(
                trainer,
                start,
                training,
                settings,
                round_=descriptor.round,
                device=device,
                held_back=evaluation,
                charge=charge,
            )
            log.info("took %d steps in %.3g s: ended by %s", trained.steps, trained.seconds, trained.ended)
            update, training_loss = _update(trained.parameters, start), trained.loss
        except DivergedError as exc:
            log.warning("%s This device adds a zero update to the sum.", exc)
            update, training_loss = np.zeros_like(start), math.nan
    names = {quantity.name for quantity in asked}
    values: Mapping[str, float] = {
        **within(norm_of(update, descriptor.encoding), descriptor.encoding.clip),
        WEIGHT: float(len(training)),
        TRAINING_LOSS: training_loss,
    }
    if names & {LOSS, ACCURACY}:
        # Of the model as received: the same for all devices, so their mean judges one model.
        result = evaluate(package, start, evaluation)
        # A model that answers with numbers has no accuracy, whoever asks for it.
        accuracy = result.score if package.manifest.kind == CLASSIFICATION else math.nan
        values = {**values, LOSS: result.loss, ACCURACY: accuracy}
    weight = 1.0
    for quantity in asked:
        if quantity.name == WEIGHT:
            weight = min(values[WEIGHT], quantity.high) / quantity.high
    return Contribution(update, tuple(_unit(q, values[q.name]) for q in asked), weight)


def _update(trained: Vector, start: Vector) -> Vector:
    with np.errstate(over="ignore"):
        update = trained - start
    if not np.isfinite(update).all():
        raise DivergedError("Training went further than a float32 tells: choose a lower learning rate.")
    return update


def _unit(quantity: Quantity, value: float) -> float:
    if math.isnan(value):
        log.warning("%s has no value on this data: this device adds the middle of its range.", quantity.name)
        return 0.0
    return quantity.to_unit(value)
