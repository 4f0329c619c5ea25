"""Law (docs/spec/privacy.md, 2.14): whether a device refuses says nothing of its data, whatever model a server makes up.

The server picks weights at which a score overflows if, and only if, a feature of some example is above a
threshold. Did the device refuse then, each invitation would tell one bit: exact, without noise and free.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from simulation.federation import MemoryLink
from simulation.tiny import CLASSES, EXAMPLES, FEATURES, TinyFederation
from umbel._rounds.contribution import Contribution
from umbel.train import DivergedError, TrainPlan
from umbel.train.onnx import OnnxTrainer
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.learning.budget import plan_privacy
from umbel_server.learning.invitation import invite
from umbel_server.learning.measure import quantities
from umbel_server.learning.plan import Metrics, RunPlan

NODE, THRESHOLD = 0, 2.0
LARGEST = float(np.finfo(np.float32).max)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
    return TinyFederation(tmp_path_factory.mktemp("overflow"), 3)


def write(path: Path, largest: float) -> None:
    """Examples of which one has a first feature of ``largest``, the others none."""
    x = np.zeros((EXAMPLES, FEATURES), np.float32)
    x[5, 0] = largest
    np.savez(path, x=x, y=np.arange(EXAMPLES) % CLASSES)


def probe(tiny: TinyFederation) -> NDArray[np.float32]:
    """Parameters at which a score is infinite where the first feature is above the threshold, and finite else."""
    arrays = {
        name: np.zeros_like(value) for name, value in tiny.package.split(tiny.package.parameters()).items()
    }
    weights = next(value for value in arrays.values() if value.shape == (FEATURES, CLASSES))
    weights[0] = LARGEST / THRESHOLD
    return tiny.package.manifest.join(arrays)


def asking(tiny: TinyFederation) -> RunPlan:
    return replace(tiny.plan(rounds=1), metrics=Metrics(names=("training_loss",), loss_high=8.0))


def contribution(tiny: TinyFederation, largest: float) -> Contribution:
    write(tiny.data[NODE], largest)
    plan, policy, dim = asking(tiny), tiny.fleet.policy(), tiny.package.manifest.dim
    asked = quantities(plan, CLASSES)
    invitation = invite(
        tiny.create(plan, f"probe-{largest:g}"),
        1,
        1,
        plan=plan,
        policy=policy,
        encoding=plan_privacy(plan, policy, dim, len(asked)).encoding,
        quantities=asked,
        parameters=probe(tiny),
        now_s=time.time(),
    )
    request = pb.TrainRequest(descriptor=invitation.descriptor.to_bytes(), plan=invitation.plan)
    device = tiny.started(NODE, time.time)
    _, _, saved = device.answer(TRAIN, request.SerializeToString(deterministic=True), invitation.model, None)
    assert saved is not None
    return Contribution.from_bytes(saved.contribution)


def test_a_model_that_overflows_on_some_data_is_answered_like_any_other(
    tiny: TinyFederation, caplog: pytest.LogCaptureFixture
) -> None:
    below, above = contribution(tiny, THRESHOLD * 0.9), contribution(tiny, THRESHOLD * 1.1)
    assert "Training diverged" in caplog.text
    assert np.isfinite(below.update).all()
    assert not above.update.any()
    assert above.auxiliary == (0.0,)  # The loss is no number.
    assert below.auxiliary != (0.0,)
    assert above.weight == below.weight == 1.0


def test_the_probe_tells_the_data_apart_where_nothing_hides_it(tiny: TinyFederation) -> None:
    """Else the test above would hold for a model that overflows nowhere."""
    plan = TrainPlan(1, EXAMPLES, 0.5, 0.0, 3)
    assert plan.steps(EXAMPLES) == 1
    trainer = OnnxTrainer(tiny.package)
    y = np.arange(EXAMPLES) % CLASSES
    for largest, diverges in ((THRESHOLD * 0.9, False), (THRESHOLD * 1.1, True)):
        x = np.zeros((EXAMPLES, FEATURES), np.float32)
        x[5, 0] = largest
        if diverges:
            with pytest.raises(DivergedError):
                trainer.train(probe(tiny), x, y, plan)
        else:
            trainer.train(probe(tiny), x, y, plan)


def test_a_run_whose_steps_overflow_on_every_device_learns_nothing_and_ends(tiny: TinyFederation) -> None:
    for number, path in enumerate(tiny.data):
        write(path, 1.0 + number)
    plan = asking(tiny)
    run, (only,) = tiny.run(
        MemoryLink(tiny.participants()),
        replace(plan, training=replace(plan.training, learning_rate=1e300)),
        "overflow",
    )
    assert (run.state, only.state) == ("finished", "opened")
    assert np.allclose(tiny.trained("overflow"), tiny.package.parameters(), atol=1e-2)
