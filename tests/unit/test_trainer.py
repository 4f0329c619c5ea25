"""Training with onnxruntime and numpy is torch's training, to the rounding of a float."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_packages import digits, first, opened, resigned
from umbel.engines.onnx import open_session
from umbel.train import TrainResult
from umbel.train.descent import SHUFFLE_LABEL
from umbel.train.onnx import OnnxTrainer
from umbel_models.task import cross_entropy as loss
from umbel_models.tasks.digits.module import DigitsNet
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.prg import Keystream


@functools.cache
def trainer() -> OnnxTrainer:
    return OnnxTrainer(opened(first()))


def train(rows: int = 50, **settings: float) -> TrainResult:
    chosen = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "momentum": 0.9, "seed": 7} | settings
    x, y = digits().train[:2]
    return trainer().train(opened(first()).parameters(), x[:rows], y[:rows], **chosen)  # type: ignore[arg-type]


def torch_net() -> DigitsNet:
    arrays = opened(first()).split(opened(first()).parameters())
    net = DigitsNet()
    net.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
    return net


def vector(net: DigitsNet) -> NDArray[np.float32]:
    return np.concatenate([value.detach().numpy().ravel() for value in net.parameters()])


def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.argsort(Keystream(digest(SHUFFLE_LABEL, seed, epoch)).uint64(count), kind="stable")


def test_gradients_are_torchs() -> None:
    package = opened(first())
    session = open_session(package.file("grad.onnx"), "grad.onnx")
    x, y = (values[:32] for values in digits().train[:2])
    feed = {**package.split(package.parameters()), "x": x, "y": y, "w": np.ones(32, np.float32)}
    names = [value.name for value in session.get_outputs()]
    results = dict(zip(names, session.run(names, feed), strict=True))
    net = torch_net()
    mean = loss(net(torch.tensor(x)), torch.tensor(y)).mean()
    mean.backward()
    assert results["loss"] == pytest.approx(float(mean.detach()), rel=1e-6)
    for name, value in net.named_parameters():
        assert value.grad is not None
        np.testing.assert_allclose(results[f"grad.{name}"], value.grad.numpy(), atol=5e-7)


def test_a_padded_batch_is_the_unpadded_one() -> None:
    # 10 examples in a batch of 64 are one step, as they are in a batch of 10.
    padded, exact = train(10, epochs=3, batch_size=64), train(10, epochs=3, batch_size=10)
    assert padded.steps == exact.steps == 3
    np.testing.assert_allclose(padded.parameters, exact.parameters, atol=1e-6)
    assert padded.loss == pytest.approx(exact.loss, rel=1e-5)


def test_what_fills_a_batch_up_has_no_influence() -> None:
    package = opened(first())
    session = open_session(package.file("grad.onnx"), "grad.onnx")
    x, y = (values[:8].copy() for values in digits().train[:2])
    w = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    feed = {**package.split(package.parameters()), "w": w}
    names = [value.name for value in session.get_outputs()]
    before = session.run(names, {**feed, "x": x, "y": y})
    x[5:], y[5:] = 16.0, 3
    for left, right in zip(before, session.run(names, {**feed, "x": x, "y": y}), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-7)


def test_training_follows_torchs_sgd_with_momentum() -> None:
    rows, epochs, batch = 100, 3, 32
    x, y = (torch.tensor(values[:rows]) for values in digits().train[:2])
    net = torch_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    total = 0.0
    for epoch in range(epochs):
        total = 0.0
        for part in torch.tensor(order(7, epoch, rows)).split(batch):
            mean = loss(net(x[part]), y[part]).mean()
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            total += float(mean.detach()) * len(part)
    ours = train(rows, epochs=epochs, batch_size=batch)
    np.testing.assert_allclose(ours.parameters, vector(net), atol=2e-5)
    assert ours.loss == pytest.approx(total / rows, rel=1e-4)
    assert (ours.examples, ours.steps) == (100, 12)


def test_training_repeats_to_the_bit() -> None:
    assert train().parameters.tobytes() == train().parameters.tobytes()


def test_another_seed_takes_another_way() -> None:
    assert train().parameters.tobytes() != train(seed=8).parameters.tobytes()


def test_training_leaves_the_given_parameters_alone() -> None:
    start = opened(first()).parameters()
    kept = start.copy()
    x, y = digits().train[:2]
    trainer().train(start, x[:20], y[:20], epochs=1, batch_size=8, learning_rate=0.1, momentum=0.0, seed=0)
    np.testing.assert_array_equal(start, kept)


def test_training_lowers_the_loss() -> None:
    assert train(400, epochs=6).loss < 0.5 < train(400, epochs=1).loss


def test_a_closed_trainer_opens_again() -> None:
    own = OnnxTrainer(opened(first()))
    x, y = digits().train[:2]
    settings = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.0, "seed": 0}
    before = own.train(opened(first()).parameters(), x[:20], y[:20], **settings)  # type: ignore[arg-type]
    own.close()
    own.close()
    after = own.train(opened(first()).parameters(), x[:20], y[:20], **settings)  # type: ignore[arg-type]
    assert before.parameters.tobytes() == after.parameters.tobytes()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("seed", -1),
        ("seed", 1 << 64),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(setting: str, value: float) -> None:
    with pytest.raises(UsageError, match=setting):
        train(**{setting: value})


def test_training_that_diverges_says_so() -> None:
    with pytest.raises(UsageError, match="diverged at learning rate 1e\\+20"):
        train(learning_rate=1e20)


@pytest.mark.parametrize(
    "y",
    [
        np.zeros(3, np.int64),
        np.zeros((4, 1), np.int64),
        np.full(4, 10),
        np.full(4, -1),
        np.zeros(4),
        ["a"] * 4,
    ],
)
def test_labels_that_are_no_labels_are_refused(y: NDArray[np.int64]) -> None:
    x = digits().train.x[:4]
    with pytest.raises(UsageError, match=r"[Ll]abel"):
        trainer().train(
            opened(first()).parameters(),
            x,
            y,
            epochs=1,
            batch_size=2,
            learning_rate=0.1,
            momentum=0.0,
            seed=0,
        )


def test_examples_that_break_the_contract_are_refused() -> None:
    x, y = digits().train[:2]
    with pytest.raises(UsageError, match="over 16"):
        trainer().train(
            opened(first()).parameters(),
            x[:4] * 16,
            y[:4],
            epochs=1,
            batch_size=2,
            learning_rate=0.1,
            momentum=0.0,
            seed=0,
        )


def test_parameters_of_another_model_are_refused() -> None:
    x, y = digits().train[:2]
    with pytest.raises(UsageError, match="13706 parameters"):
        trainer().train(
            np.zeros(5, np.float32),
            x[:4],
            y[:4],
            epochs=1,
            batch_size=2,
            learning_rate=0.1,
            momentum=0.0,
            seed=0,
        )


def test_a_model_without_a_gradient_graph_cannot_be_trained() -> None:
    data = resigned(first(), lambda body: body.update(graphs={}))
    with pytest.raises(UsageError, match="no gradient graph"):
        OnnxTrainer(opened(data))
