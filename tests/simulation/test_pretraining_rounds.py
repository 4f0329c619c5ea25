"""Law: devices can pretrain in rounds, on windows that nobody labelled, and few labels are enough afterwards.

The package is built and signed as any other; rounds are the device's own descent and federated averaging.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from model_packages import RELEASE, first, opened
from regression_tasks import ABOUT
from umbel._data.examples import Examples as DeviceExamples
from umbel.train import TrainPlan
from umbel.train.local import federated_averaging
from umbel.train.onnx import OnnxTrainer
from umbel_models.fit import accuracy, fit, predict
from umbel_models.pack import build, repack
from umbel_models.pretrain import few_labels, hide, tune
from umbel_models.pretraining import pretrained, pretraining
from umbel_models.restore import restored
from umbel_models.task import Examples, Split, Task, cross_entropy
from umbel_proto.contract import DataContract, Field
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId, ModelName
from umbel_proto.manifest import REGRESSION
from umbel_proto.package import Package

CLASSES, LENGTH, DEVICES, ROUNDS = 4, 32, 6, 15


def windows(count: int, seed: int, only: int | None = None) -> Examples:
    """Oscillations of two channels: the class is the pair of frequencies; phase, strength and noise are chance.

    Args:
        count: How many.
        seed: Which ones.
        only: A class that makes up three quarters of them.
    """
    chance = np.random.default_rng(seed)
    y = chance.integers(0, CLASSES, count)
    if only is not None:
        y = np.where(chance.random(count) < 0.75, only, y)
    turns = np.array([[2, 5], [3, 4], [4, 3], [5, 2]])[y]
    phase, strength = chance.uniform(0, 2 * np.pi, (count, 2)), chance.uniform(0.5, 1.5, (count, 2))
    x = strength[..., None] * np.sin(
        2 * np.pi * turns[..., None] * np.arange(LENGTH) / LENGTH + phase[..., None]
    )
    return Examples((x + chance.normal(0, 0.6, x.shape)).astype(np.float32), y)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 16, 7, padding=3),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


TASK = Task(
    model=ModelName("waves"),
    module=network,
    loss=cross_entropy,
    labels=tuple("abcd"),
    # What is hidden comes beside the window as 0 and 1, beyond this range.
    contract=DataContract((Field("x", "float32", (2, LENGTH), -8.0, 8.0),)),
    data=lambda: Split(windows(250, seed=99), windows(100, seed=98), windows(200, seed=97)),
    about=ABOUT,
)


@pytest.fixture(scope="module")
def trained() -> Package:
    """What rounds over devices, each with mostly one kind of windows, made of the package of pretraining."""
    package = opened(build(pretraining(TASK), key=RELEASE))
    shards = {}
    for number in range(DEVICES):
        own = hide(windows(250, seed=number, only=number % CLASSES).x, axis=1, copies=2, seed=number)
        shards[DeviceId(f"dev-{number}")] = DeviceExamples(own.x, np.zeros((len(own.x), 1), np.float32))
    plan = TrainPlan(epochs=2, batch_size=32, learning_rate=0.003, momentum=0.9, seed=1, optimizer="adam")
    rounds = federated_averaging(OnnxTrainer(package), package.parameters(), shards, rounds=ROUNDS, plan=plan)
    *_, last = rounds
    calibration = pretraining(TASK).data().calibration.x
    return opened(repack(package, last, calibration=calibration, version=2, key=RELEASE))


def test_the_package_of_pretraining_answers_with_errors_and_names_no_label(trained: Package) -> None:
    manifest = trained.manifest
    assert (manifest.model, manifest.kind, manifest.labels) == ("waves-pretraining", REGRESSION, ())
    assert (manifest.inputs[0].shape[1:], manifest.answer_shape) == ((2, 2, LENGTH), (1,))


def test_rounds_teach_devices_to_tell_the_spectra_of_windows_of_nobodys(trained: Package) -> None:
    held = hide(windows(300, seed=50).x, axis=1, copies=1, seed=3)
    errors = predict(restored(pretraining(TASK), trained), held.x)
    assert errors.mean() < 0.9  # 1 is what the usual spectrum is off


def test_an_encoder_pretrained_in_rounds_needs_fewer_labels(trained: Package) -> None:
    labelled, held = windows(400, seed=60), windows(600, seed=61)
    how = {"epochs": 60, "batch_size": 10, "learning_rate": 1e-3, "seed": 0}
    ready = pretrained(TASK, trained)
    gains = []
    for seed in range(5):
        few = few_labels(labelled, 5, seed=seed)
        scratch, tuned = fit(network(), cross_entropy, few, **how), tune(ready, cross_entropy, few)
        gains.append(accuracy(tuned, held) - accuracy(scratch, held))
    assert np.mean(gains) > 0.15  # an encoder that learned nothing loses some


def test_a_package_of_another_network_is_no_encoder(trained: Package) -> None:
    with pytest.raises(UsageError, match="digits holds no layers of waves"):
        pretrained(TASK, opened(first()))
    wider = replace(TASK, module=lambda: nn.Sequential(nn.Conv1d(2, 17, 7, padding=3), *network()[1:]))
    with pytest.raises(UsageError, match="waves-pretraining holds no layers of waves"):
        pretrained(wider, trained)
