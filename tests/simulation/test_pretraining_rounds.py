"""Law: devices can pretrain in rounds, on windows that nobody labelled, and few labels are enough afterwards.

A package is a classifier's, with labels. What fills in windows has none, so rounds run here on the exported
gradient graph itself, with the device's own descent and federated averaging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from umbel._data import Examples as DeviceExamples
from umbel.train import Controls, TrainPlan, TrainResult
from umbel.train.descent import Weights, Work, descend
from umbel.train.local import federated_averaging
from umbel_models.fit import accuracy, fit, predict
from umbel_models.graphs.export import export
from umbel_models.pretrain import (
    Reconstruction,
    few_labels,
    hide,
    reconstruction,
    reconstruction_error,
    with_encoder,
)
from umbel_models.task import Examples, cross_entropy
from umbel_proto.ids import DeviceId
from umbel_proto.manifest import FloatVector

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


@dataclass
class GraphTrainer:
    """Trains the parameters of an exported gradient graph."""

    session: ort.InferenceSession
    shapes: dict[str, tuple[int, ...]]

    def train(
        self,
        parameters: FloatVector,
        x: NDArray[Any],
        y: NDArray[Any],
        plan: TrainPlan,
        *,
        held_back: DeviceExamples | None = None,
        controls: Controls | None = None,
    ) -> TrainResult:
        current = np.array(parameters, np.float32)
        return descend(current, Gradients(self.session, self.split(current)), Work(plan, x, y))

    def close(self) -> None:
        pass

    def split(self, vector: FloatVector) -> dict[str, FloatVector]:
        """Return views of the vector, by name."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes.values()])
        parts = np.split(vector, ends[:-1])
        return {name: part.reshape(self.shapes[name]) for name, part in zip(self.shapes, parts, strict=True)}


@dataclass
class Gradients:
    """The gradients of one training."""

    session: ort.InferenceSession
    parameters: dict[str, FloatVector]

    def mean(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights) -> tuple[FloatVector, float]:
        names = [*(f"grad.{name}" for name in self.parameters), "loss"]
        *pieces, loss = self.session.run(names, {**self.parameters, "x": x, "y": y, "w": w})
        return np.concatenate([piece.ravel() for piece in pieces]), float(loss)

    def clipped(
        self, x: NDArray[Any], y: NDArray[np.int64], w: Weights, clip: float
    ) -> tuple[FloatVector, float]:
        raise NotImplementedError

    def loss(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights) -> float:
        raise NotImplementedError


@pytest.fixture(scope="module")
def begun() -> Reconstruction:
    # The mean and spread of channels come from a few windows of the workbench, not from the devices.
    return reconstruction(network(), windows(200, seed=99).x, axis=1)


@pytest.fixture(scope="module")
def pretrained(begun: Reconstruction) -> Reconstruction:
    """What rounds over devices, each with mostly one kind of windows, made of it."""
    graphs = export(begun, reconstruction_error, (2, 2, LENGTH), bounds=(0.0, 1.0))
    values = {name: value.detach().numpy() for name, value in begun.named_parameters()}
    trainer = GraphTrainer(
        ort.InferenceSession(graphs.gradient), {name: value.shape for name, value in values.items()}
    )
    shards = {}
    for number in range(DEVICES):
        own = hide(windows(250, seed=number, only=number % CLASSES).x, axis=1, copies=2, seed=number)
        shards[DeviceId(f"dev-{number}")] = DeviceExamples(own.x, own.y)
    plan = TrainPlan(epochs=2, batch_size=32, learning_rate=0.003, momentum=0.9, seed=1, optimizer="adam")
    start = np.concatenate([value.ravel() for value in values.values()])
    *_, last = federated_averaging(trainer, start, shards, rounds=ROUNDS, plan=plan)
    begun.load_state_dict(
        {**begun.state_dict(), **{name: torch.from_numpy(part) for name, part in trainer.split(last).items()}}
    )
    return begun


def test_rounds_teach_devices_to_fill_in_windows_of_nobodys(pretrained: Reconstruction) -> None:
    held = hide(windows(300, seed=50).x, axis=1, copies=1, seed=3)
    assert predict(pretrained, held.x).mean() < 0.85  # 1 is what the mean of a channel fills in


def test_an_encoder_pretrained_in_rounds_needs_fewer_labels(pretrained: Reconstruction) -> None:
    labelled, held = windows(400, seed=60), windows(600, seed=61)
    how = {"epochs": 60, "batch_size": 10, "learning_rate": 1e-3, "seed": 0}
    ready = with_encoder(network(), pretrained)
    gains = []
    for seed in range(5):
        few = few_labels(labelled, 5, seed=seed)
        scratch, tuned = (
            accuracy(fit(start, cross_entropy, few, **how), held) for start in (network(), ready)
        )
        gains.append(tuned - scratch)
    assert np.mean(gains) > 0.05
