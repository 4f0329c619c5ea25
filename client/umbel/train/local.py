"""What one device does in a round, and rounds without a fleet: what a run would reach if nothing were private.

With one file of data such rounds are central training, with several federated averaging.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017 (arXiv 1602.05629), algorithm 1, with every device counting the same, as in a
secure sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from umbel._data import Examples
from umbel.engines.onnx import open_session
from umbel.train import Trainer, TrainPlan, TrainResult
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.manifest import FloatVector
from umbel_proto.package import Package
from umbel_proto.privacy.accounting import ORDERS, rdp_to_epsilon
from umbel_proto.privacy.examples import NoisySteps


def training_seed(seed: int, round_: int, device: DeviceId) -> int:
    """Return the seed for one device's training in one round, in [0, 2**64)."""
    return int.from_bytes(digest("umbel/1/training", seed, round_, device)[:8], "big")


def train_locally(
    trainer: Trainer,
    start: FloatVector,
    examples: Examples,
    plan: TrainPlan,
    *,
    round_: int,
    device: DeviceId,
    charge: Callable[[NoisySteps | None], object] | None = None,
) -> TrainResult:
    """Return what one device makes of the parameters in one round; the only training that a fleet does.

    Args:
        trainer: Trains the model.
        start: The global parameters, shape (dim,); they are not changed.
        examples: The device's examples, with labels.
        plan: What to do; its seed is mixed with the round and the device.
        round_: The round.
        device: Whose examples they are.
        charge: Told what training will give away about an example, before it begins; None stands for
            everything. Charges it, or refuses. Left out where nothing leaves this machine.

    Raises:
        BudgetError: ``charge`` says that the examples' budget does not cover it.
        UsageError: The examples have no labels or break the contract, the settings make no sense, or
            training diverged.
    """
    if examples.y is None:
        raise UsageError(f"The data of {device} holds no labels: training needs an array y.")
    if charge is not None:
        charge(plan.release(len(examples)))
    return trainer.train(
        start,
        examples.x,
        examples.y,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        momentum=plan.momentum,
        seed=training_seed(plan.seed, round_, device),
        privacy=plan.privacy,
    )


def federated_averaging(
    trainer: Trainer,
    start: FloatVector,
    shards: Mapping[DeviceId, Examples],
    *,
    rounds: int,
    plan: TrainPlan,
) -> Iterator[FloatVector]:
    """Yield the global parameters, shape (dim,), after each round.

    Args:
        trainer: Trains the model.
        start: Parameters to begin with, shape (dim,).
        shards: Each device's examples, with labels.
        rounds: How many rounds.
        plan: What each device does in a round; its seed is mixed with the round and the device.
    """
    current = start
    for number in range(1, rounds + 1):
        total = np.zeros_like(current)
        for device, examples in shards.items():
            trained = train_locally(trainer, current, examples, plan, round_=number, device=device)
            total += trained.parameters - current
        current = current + total / np.float32(len(shards))
        yield current


def example_epsilon(
    shards: Mapping[DeviceId, Examples], plan: TrainPlan, *, rounds: int, delta: float
) -> float:
    """Return what rounds give away about one example, on the device where that is most; infinite if all.

    Raises:
        UsageError: ``delta`` is not in (0, 1).
    """
    releases = [plan.release(len(examples)) for examples in shards.values()]
    return max(
        rdp_to_epsilon(np.full(ORDERS.shape, np.inf) if release is None else rounds * release.rdp(), delta)
        for release in releases
    )


def accuracy_on(package: Package, examples: Examples) -> Callable[[FloatVector], float]:
    """Return a function that says how many of these examples given parameters get right, in [0, 1].

    Raises:
        UsageError: The examples break the data contract or have no labels.
    """
    if examples.y is None:
        raise UsageError("The held-out data holds no labels: give an array y.")
    x, _ = package.manifest.contract.check(examples.x)
    y = examples.y
    form = package.manifest.variants["fp32"]

    def accuracy(parameters: FloatVector) -> float:
        session = open_session(package.file(form.file), form.file, package.split(parameters))
        (probabilities,) = session.run(["probabilities"], {package.manifest.inputs[0].name: x})
        return float((probabilities.argmax(1) == y).mean())

    return accuracy
