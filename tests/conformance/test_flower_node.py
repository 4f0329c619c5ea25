"""The device's client app under both hosts: umbel's node, and Flower's own ``flower-supernode``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from live_fleet import LiveFleet, live_fleet, umbel
from simulation.federation import TRAINING, Federation
from umbel._data.consent import Consent
from umbel._data.dataset import DataSet
from umbel._data.examples import read_examples
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


def test_a_device_that_may_not_train_is_offline_until_it_may_and_leaves_when_it_may_not(
    tmp_path: Path,
) -> None:
    federation = Federation(tmp_path, DEVICES + 1)
    consents = [Consent(home) for home in federation.homes]
    consents[1].grant()  # What an application keeps is learned from only once its user said yes.
    consents[DEVICES].revoke()
    with live_fleet(federation) as fleet:
        with DataSet(federation.homes[1], federation.package.manifest) as data:
            examples = read_examples(federation.data[1])
            data.add(examples.x, examples.y, source="user")
        for number in (0, 2, DEVICES):
            fleet.start_device(number)
        # As a device is run where an application keeps its examples: without a file.
        fleet.supervisor.start("dev-1", umbel("run", "--home", federation.homes[1].path))
        fleet.wait_for_words(DEVICES, "the user took back consent", timeout_s=30)
        run_one_round(fleet, Timing(train_timeout_s=60, phase_timeout_s=30), timeout_s=90)
        _, (only,) = federation.record()
        assert {(part.device, part.outcome) for part in only.participations} == {
            (f"dev-{number}", "summed") for number in range(DEVICES)
        }
        assert fleet.charges(DEVICES) == []
        consents[0].revoke()
        consents[DEVICES].grant()
        fleet.wait_for_words(0, "This device does not train now", timeout_s=30)
        fleet.wait_for_words(DEVICES, "is online at", timeout_s=60)
