"""Laws: rounds on one machine are what their papers print; a trainer may be brought by name."""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from crashing import crashed
from model_packages import RELEASE, digits, first, opened
from umbel._data.examples import Examples
from umbel.train import TrainPlan
from umbel.train.load import load_trainer
from umbel.train.local import federated_averaging, training_seed
from umbel.train.onnx import OnnxTrainer
from umbel.train.prepare import SHUFFLE_LABEL
from umbel_models.task import cross_entropy as loss
from umbel_models.tasks.digits.module import DigitsNet
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.prg import Keystream

RATE, BATCH, ROWS = 0.05, 16, 48
PLAN = TrainPlan(2, BATCH, RATE, 0.0, 5)


@functools.cache
def shards() -> Mapping[DeviceId, Examples]:
    """Three devices of 48 digits each, and no digit on two of them: data as different as they come."""
    x, y = digits().train[:2]
    found = {}
    for number, labels in enumerate(([0, 1, 2], [3, 4, 5], [6, 7, 8, 9])):
        rows = np.flatnonzero(np.isin(y, labels))[:ROWS]
        found[DeviceId(f"dev-{number}")] = Examples(x[rows], y[rows])
    return found


def rounds(count: int, plan: TrainPlan = PLAN, **more: Any) -> list[NDArray[np.float32]]:
    trainer, start = OnnxTrainer(opened(first())), opened(first()).parameters()
    return list(federated_averaging(trainer, start, shards(), rounds=count, plan=plan, **more))


def gradient(at: NDArray[np.float64], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    arrays = opened(first()).manifest.split(at.astype(np.float32))
    net = DigitsNet()
    net.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
    loss(net(torch.tensor(x)), torch.tensor(y)).mean().backward()
    return np.concatenate([value.grad.numpy().ravel() for value in net.parameters()]).astype(np.float64)  # type: ignore[union-attr]


def scaffold(count: int) -> list[NDArray[np.float64]]:
    """Algorithm 1 of Karimireddy et al., line by line: all devices in every round, a global step of 1, option II."""
    x_ = opened(first()).parameters().astype(np.float64)
    c, own, found = np.zeros_like(x_), {device: np.zeros_like(x_) for device in shards()}, []
    for number in range(1, count + 1):
        moves, turns = [], []
        for device, data in shards().items():
            y_, steps, seed = x_.copy(), 0, training_seed(PLAN.seed, number, device)
            for epoch in range(PLAN.epochs):
                order = np.argsort(Keystream(digest(SHUFFLE_LABEL, seed, epoch)).uint64(ROWS), kind="stable")
                for rows in np.split(order, ROWS // BATCH):
                    assert data.y is not None
                    y_ -= RATE * (gradient(y_, data.x[rows], data.y[rows]) - own[device] + c)
                    steps += 1
            new = own[device] - c + (x_ - y_) / (steps * RATE)
            moves.append(y_ - x_)
            turns.append(new - own[device])
            own[device] = new
        x_ = x_ + np.mean(moves, axis=0)
        c = c + np.mean(turns, axis=0)
        found.append(x_)
    return found


def test_scaffold_is_its_algorithm() -> None:
    for ours, expected in zip(rounds(3, scaffold=True), scaffold(3), strict=True):
        np.testing.assert_allclose(ours, expected, atol=5e-5)


def test_the_first_round_of_scaffold_is_federated_averaging_and_the_second_is_not() -> None:
    (one, two), (plain, other) = rounds(2, scaffold=True), rounds(2)
    np.testing.assert_array_equal(one, plain)
    assert np.abs(two - other).max() > 1e-3


def test_fedprox_keeps_devices_nearer_to_where_they_began() -> None:
    start = opened(first()).parameters()
    far, near, nearest = (
        np.linalg.norm(rounds(1, TrainPlan(8, BATCH, RATE, 0.0, 5, fedprox_mu=mu))[0] - start)
        for mu in (0.0, 1.0, 5.0)
    )
    assert nearest < 0.8 * near < 0.8 * far


def brought(package: object) -> OnnxTrainer:
    """A trainer of somebody's own, for ``load_trainer``."""
    raise UsageError("this trainer was brought")


def test_a_trainer_is_found_by_its_name() -> None:
    assert load_trainer("umbel.train.onnx:OnnxTrainer") is OnnxTrainer
    with pytest.raises(UsageError, match="was brought"):
        load_trainer(f"{__name__}:brought")(opened(first()))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("OnnxTrainer", "write MODULE:NAME"),
        ("umbel.train.onnx:", "write MODULE:NAME"),
        (":OnnxTrainer", "write MODULE:NAME"),
        ("umbel.train.onnx:no such", "write MODULE:NAME"),
        ("umbel.no_such:trainer", "There is no trainer umbel.no_such:trainer: No module named"),
        (
            "umbel.train.onnx:no_such",
            "There is no trainer umbel.train.onnx:no_such: module .* has no attribute",
        ),
        (".relative:trainer", "There is no trainer"),
        ("umbel.train.plan:MIN_CLIP", "makes no trainers"),
    ],
)
def test_a_name_of_no_trainer_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_trainer(name)


def test_umbel_train_takes_all_of_it(tmp_path: Path) -> None:
    package, key, data = tmp_path / "digits.umbel", tmp_path / "release.pub", tmp_path / "data.npz"
    package.write_bytes(first())
    key.write_bytes(RELEASE.public.raw)
    x, y = digits().train[:2]
    np.savez(data, x=x[:40], y=y[:40])
    base = [
        sys.executable, "-m", "umbel", "train", str(package), "--release-key", str(key), "--data", str(data),
        "--heldout", str(data), "--rounds", "4", "--epochs", "5", "--json",
    ]  # fmt: skip
    ways = {
        "sgd": [],
        "adam": ["--optimizer", "adam", "--momentum", "0.9", "--learning-rate", "0.002"],
        "clipped": ["--gradient-clip", "0.1"],
        "fedprox": ["--fedprox-mu", "3"],
        "scaffold": ["--scaffold"],
    }
    told = {}
    for name, options in ways.items():
        done = subprocess.run([*base, *options], capture_output=True, check=True, text=True)
        told[name] = tuple(json.loads(done.stdout)["accuracy"])
    assert len(set(told.values())) >= 4  # on one device SCAFFOLD corrects nothing
    assert told["scaffold"] == told["sgd"]
    wrong = subprocess.run(
        [*base, "--trainer", "nowhere:at_all"], capture_output=True, check=False, text=True
    )
    assert (wrong.returncode, "There is no trainer nowhere:at_all" in wrong.stderr) == (2, True)


def test_a_training_that_is_killed_at_any_instant_leaves_the_old_parameters_or_the_new(
    tmp_path: Path,
) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place/digits.umbel").write_bytes(first())
    (tmp_path / "place/release.pub").write_bytes(RELEASE.public.raw)
    examples = next(iter(shards().values()))
    np.savez(tmp_path / "place/examples.npz", x=examples.x, y=examples.y)
    left = crashed("crashing_train.py", tmp_path / "place")
    assert [each for each, _ in itertools.groupby(left)] == ["old", "new"]
    assert len(left) > 5
