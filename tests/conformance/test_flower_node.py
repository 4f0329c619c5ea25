"""The device's client app under both hosts: umbel's node, and Flower's own ``flower-supernode``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from live_fleet import LiveFleet, live_fleet
from simulation.federation import TRAINING, Federation
from umbel._data import read_examples
from umbel.train import TrainPlan
from umbel.train.local import federated_averaging
from umbel.train.onnx import OnnxTrainer
from umbel_proto.ids import DeviceId
from umbel_server.learning.plan import Timing

pytestmark = pytest.mark.e2e

DEVICES = 3


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(Federation(tmp_path, DEVICES)) as running:
        yield running


def run_one_round(fleet: LiveFleet, timing: Timing, *, timeout_s: float) -> None:
    plan = replace(fleet.federation.plan(rounds=1, clip=10.0), timing=timing, attempts=1)
    fleet.start_run(plan)
    fleet.wait_for_run(timeout_s=timeout_s)


def plain_average(federation: Federation) -> NDArray[np.float32]:
    """One round of federated averaging in the open: what the opened sum must give, but for its rounding."""
    shards = {DeviceId(f"dev-{n}"): read_examples(path) for n, path in enumerate(federation.data)}
    settings = TrainPlan(
        TRAINING.epochs, TRAINING.batch_size, TRAINING.learning_rate, TRAINING.momentum, TRAINING.seed
    )
    trainer = OnnxTrainer(federation.package)
    start = federation.package.parameters()
    return list(federated_averaging(trainer, start, shards, rounds=1, plan=settings))[-1]


def assert_everyone_took_part_once(fleet: LiveFleet) -> None:
    run, rounds = fleet.federation.record()
    assert (run.state, run.reason) == ("finished", "")
    (only,) = rounds
    assert [(part.device, part.outcome) for part in only.participations] == [
        (f"dev-{number}", "summed") for number in range(DEVICES)
    ]
    np.testing.assert_allclose(fleet.federation.trained(), plain_average(fleet.federation), atol=2e-4)
    for number in range(DEVICES):
        assert [(c.run, c.round, c.attempt) for c in fleet.charges(number)] == [("r1", 1, 1)]


def test_umbels_own_nodes_finish_a_round(fleet: LiveFleet) -> None:
    for number in range(DEVICES):
        fleet.start_device(number)
    run_one_round(fleet, Timing(train_timeout_s=60, phase_timeout_s=30), timeout_s=90)
    assert_everyone_took_part_once(fleet)


def test_flowers_own_supernodes_finish_a_round_with_the_same_app(fleet: LiveFleet) -> None:
    """They start a process for every message and ask every 3 s: what takes us a second takes them half a minute."""
    for number in range(DEVICES):
        fleet.start_supernode(number)
    slow = Timing(settle_s=5, train_timeout_s=120, phase_timeout_s=60, grace_s=20)
    run_one_round(fleet, slow, timeout_s=200)
    assert_everyone_took_part_once(fleet)
