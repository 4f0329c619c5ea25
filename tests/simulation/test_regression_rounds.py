"""Law: a secure run of a model that answers with numbers learns what its devices know, measures loss and R^2, and
claims no accuracy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regression_tasks import DIABETES, patients
from simulation.federation import Federation, MemoryLink
from umbel._data.examples import read_examples
from umbel.train.evaluate import evaluate
from umbel_models.federated import by_chance
from umbel_models.pack import build
from umbel_proto.errors import UsageError
from umbel_proto.package import Package, read_package
from umbel_server.fleet.publish import publish
from umbel_server.learning.evaluate import HeldOut
from umbel_server.learning.plan import Metrics, RunPlan, Training

DEVICES = 4


class Patients(Federation):
    """A fleet whose devices hold patients."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, DEVICES)
        np.savez(self.heldout, x=patients().held_out.x, y=patients().held_out.y)
        for path, shard in zip(self.data, by_chance(patients().train, DEVICES, seed=1), strict=True):
            np.savez(path, x=shard.x, y=shard.y)

    def plan(self, *, rounds: int, clip: float = 100.0, noise_multiplier: float = 0.0) -> RunPlan:
        return replace(
            super().plan(rounds=rounds, clip=clip, noise_multiplier=noise_multiplier),
            model=DIABETES.model,
            training=Training(epochs=5, batch_size=16, learning_rate=0.1, momentum=0.9, seed=5),
            metrics=Metrics(names=("loss",), loss_high=4.0),
        )

    def _publish(self) -> Package:
        key = self.fleet.release_signer()
        data = build(DIABETES, key=key)
        with self.fleet.open_store() as store:
            publish(self.fleet, store, data)
        return read_package(data, release_key=key.public)


def test_rounds_teach_a_model_of_numbers_and_tell_its_errors(tmp_path: Path) -> None:
    fleet = Patients(tmp_path)
    record, rounds = fleet.run(MemoryLink(fleet.participants()), fleet.plan(rounds=4))
    assert (record.state, record.reason) == ("finished", "")
    assert all("accuracy" not in each.figures for each in rounds)
    assert rounds[-1].figures["r2"] > 0.4
    held_out = HeldOut(fleet.package, fleet.heldout)
    assert held_out.score(fleet.trained()) == rounds[-1].figures["r2"]
    # What devices report of the model as received is its squared error on their own examples.
    start = fleet.package.parameters()
    losses = [evaluate(fleet.package, start, read_examples(path)).loss for path in fleet.data]
    measured = rounds[0].figures["metrics"]["loss"]["mean"]
    assert measured == pytest.approx(np.mean(losses), abs=0.01)

    np.savez(fleet.heldout, x=patients().held_out.x, y=np.zeros_like(patients().held_out.y))
    with pytest.raises(UsageError, match="one target for all"):
        HeldOut(fleet.package, fleet.heldout)
