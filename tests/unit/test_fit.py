"""The workbench's training loop does what it says: it learns, repeats itself, and leaves its input alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from umbel_models.fit import accuracy, fit, predict
from umbel_models.task import Examples, cross_entropy
from umbel_proto.errors import UsageError

HOW = {"epochs": 30, "batch_size": 32, "learning_rate": 0.05, "seed": 3}


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def blobs(count: int = 200, seed: int = 1) -> Examples:
    chance = np.random.default_rng(seed)
    y = chance.integers(0, 2, count)
    x = chance.normal(size=(count, 4)) + 1.2 * y[:, np.newaxis]
    return Examples(x.astype(np.float32), y)


def bits(module: nn.Module) -> bytes:
    return b"".join(value.detach().numpy().tobytes() for value in module.state_dict().values())


def test_a_linear_module_becomes_as_good_as_scikit_learns() -> None:
    train, held = blobs(2000), blobs(2000, seed=2)
    oracle = LogisticRegression().fit(train.x, train.y).score(held.x, held.y)
    assert accuracy(fit(linear(), cross_entropy, train, **HOW), held) == pytest.approx(oracle, abs=0.01)


def test_the_same_seed_gives_the_same_bits_and_another_other_ones() -> None:
    first, again = (fit(linear(), cross_entropy, blobs(), **HOW) for _ in range(2))
    assert bits(first) == bits(again)
    assert bits(first) != bits(fit(linear(), cross_entropy, blobs(), **{**HOW, "seed": 4}))


def test_training_leaves_the_module_the_random_state_and_the_threads_alone() -> None:
    module, state, threads = linear(), torch.get_rng_state(), torch.get_num_threads()
    before = bits(module)
    state = torch.get_rng_state()
    fit(module, cross_entropy, blobs(), **HOW)
    assert bits(module) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_no_epoch_changes_nothing() -> None:
    assert bits(fit(linear(), cross_entropy, blobs(), **{**HOW, "epochs": 0})) == bits(linear())


def test_a_frozen_parameter_keeps_its_value() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    module[0].requires_grad_(False)
    trained = fit(module, cross_entropy, blobs(), **HOW)
    assert bits(trained[0]) == bits(module[0])
    assert bits(trained[2]) != bits(module[2])


def test_an_example_of_weight_zero_teaches_nothing() -> None:
    # Half of the examples have the wrong label and no weight: the rest is learned as if they were not there.
    good = blobs(1000)
    mixed = Examples(np.concatenate([good.x, good.x]), np.concatenate([good.y, 1 - good.y]))
    trust = np.repeat([1.0, 0.0], 1000)
    held = blobs(2000, seed=2)
    alone = accuracy(fit(linear(), cross_entropy, good, **HOW), held)
    assert accuracy(fit(linear(), cross_entropy, mixed, weights=trust, **HOW), held) == pytest.approx(
        alone, abs=0.01
    )


def test_only_the_proportions_of_weights_matter() -> None:
    weights = np.random.default_rng(0).uniform(0.5, 2, 200)
    one, other = (fit(linear(), cross_entropy, blobs(), weights=w, **HOW) for w in (weights, 4 * weights))
    assert bits(one) == bits(other)


def test_progress_hears_of_every_epoch_and_of_a_falling_loss() -> None:
    heard: list[tuple[int, float]] = []
    fit(linear(), cross_entropy, blobs(), progress=lambda epoch, loss: heard.append((epoch, loss)), **HOW)
    assert [epoch for epoch, _ in heard] == list(range(1, 31))
    assert heard[-1][1] < heard[0][1]


def test_predictions_do_not_depend_on_how_many_are_asked_for() -> None:
    x = blobs(1300).x
    np.testing.assert_allclose(predict(linear(), x)[700:710], predict(linear(), x[700:710]), atol=1e-6)
    assert predict(linear(), x).shape == (1300, 2)


def explode(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits, y) * float("inf")


def nothing() -> Examples:
    return Examples(np.empty((0, 4), np.float32), np.empty(0, np.int64))


def damaged() -> Examples:
    x, y, *_ = blobs()
    x[3, 1] = np.nan
    return Examples(x, y)


def test_training_that_makes_no_sense_is_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="0 inputs and 0 labels"):
        fit(linear(), cross_entropy, nothing(), **HOW)
    with pytest.raises(UsageError, match="not finite: clean"):
        fit(linear(), cross_entropy, damaged(), **HOW)
    with pytest.raises(UsageError, match="not finite: clean"):
        predict(linear(), damaged().x)
    with pytest.raises(UsageError, match="diverged in epoch 1: choose a smaller"):
        fit(linear(), explode, blobs(), **HOW)
    with pytest.raises(UsageError, match="Every parameter is frozen"):
        fit(linear().requires_grad_(False), cross_entropy, blobs(), **HOW)
    with pytest.raises(UsageError, match="Weights are one finite number"):
        fit(linear(), cross_entropy, blobs(), weights=np.full(200, -1.0), **HOW)
    with pytest.raises(UsageError, match="batch_size >= 1"):
        fit(linear(), cross_entropy, blobs(), **{**HOW, "batch_size": 0})
