"""What one device does in a round, and rounds without a fleet: what a run would reach if nothing were private.

With one file of data such rounds are central training, with several federated averaging.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017 (arXiv 1602.05629), algorithm 1, with every device counting the same, as in a
secure sum. SCAFFOLD: Karimireddy et al., ICML 2020 (arXiv 1910.06378), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel._data.examples import Examples
from umbel.engines.onnx import open_session
from umbel.train import Controls, Trainer, TrainPlan, TrainResult
from umbel_proto.answers import checked_answers, figure, measured, score
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
    held_back: Examples | None = None,
    controls: Controls | None = None,
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
        held_back: Others of the device's to judge by, for a plan with ``patience``.
        controls: SCAFFOLD's terms, if it is to be SCAFFOLD.
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
    own = replace(plan, seed=training_seed(plan.seed, round_, device))
    return trainer.train(start, examples.x, examples.y, own, held_back=held_back, controls=controls)


def federated_averaging(
    trainer: Trainer,
    start: FloatVector,
    shards: Mapping[DeviceId, Examples],
    *,
    rounds: int,
    plan: TrainPlan,
    scaffold: bool = False,
) -> Iterator[FloatVector]:
    """Yield the global parameters, shape (dim,), after each round.

    Args:
        trainer: Trains the model.
        start: Parameters to begin with, shape (dim,).
        shards: Each device's examples, with labels.
        rounds: How many rounds.
        plan: What each device does in a round; its seed is mixed with the round and the device.
        scaffold: Whether devices correct their steps by SCAFFOLD's control variates, option II, with all
            devices in every round.
    """
    current, shared = start, np.zeros_like(start)
    own = dict.fromkeys(shards, shared)
    for number in range(1, rounds + 1):
        total, turn = np.zeros_like(current), np.zeros_like(current)
        for device, examples in shards.items():
            given = Controls(shared, own[device]) if scaffold else None
            trained = train_locally(
                trainer, current, examples, plan, round_=number, device=device, controls=given
            )
            total += trained.parameters - current
            if trained.control is not None:
                turn += trained.control - own[device]
                own[device] = trained.control
        current = current + total / np.float32(len(shards))
        shared = shared + turn / np.float32(len(shards))
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


def score_on(package: Package, examples: Examples) -> Callable[[FloatVector], float]:
    """Return a function that says how good given parameters are on these examples: ``umbel_proto.answers.score``.

    Raises:
        UsageError: The examples break the data contract or have no labels or targets.
    """
    answer, y = _answers_on(package, examples)
    return lambda parameters: score(package.manifest, answer(parameters), y)


def figure_on(package: Package, examples: Examples) -> tuple[str, Callable[[FloatVector], float]]:
    """Return the name of a figure that tells something on these examples, and what measures it.

    Both as ``umbel_proto.answers.figure`` chooses it: ``score_on`` where that says something.

    Raises:
        UsageError: The examples break the data contract or have no labels or targets.
    """
    answer, y = _answers_on(package, examples)
    return figure(package.manifest, y), lambda vector: measured(package.manifest, answer(vector), y)


def _answers_on(
    package: Package, examples: Examples
) -> tuple[Callable[[FloatVector], NDArray[np.float32]], NDArray[Any]]:
    """Return what answers the examples with given parameters, and what is right."""
    if examples.y is None:
        raise UsageError("The held-out data holds no labels: give an array y.")
    manifest = package.manifest
    x, _ = manifest.contract.check(examples.x)
    y = checked_answers(manifest, examples.y, len(x))
    form = manifest.variants["fp32"]

    def answer(parameters: FloatVector) -> NDArray[np.float32]:
        session = open_session(package.file(form.file), form.file, package.split(parameters))
        (said,) = session.run([manifest.answer], {manifest.inputs[0].name: x})
        return np.asarray(said)

    return answer, y
