"""Distillation: the soft loss is Hinton's, and a student learns from it what its labels don't say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from sklearn.datasets import load_digits
from torch import nn

from umbel_models.distill import distill, soft_loss
from umbel_models.fit import accuracy, fit, predict
from umbel_models.task import Examples, cross_entropy
from umbel_proto.errors import UsageError


def digits() -> tuple[Examples, Examples]:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return Examples(x[:1300], y[:1300]), Examples(x[1300:], y[1300:])


def network(hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return fit(network(96), cross_entropy, digits()[0], epochs=20, batch_size=32, learning_rate=3e-3, seed=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_loss_is_the_divergence_of_softened_probabilities_times_the_temperature_squared(
    temperature: float,
) -> None:
    chance = np.random.default_rng(0)
    mine, taught = chance.normal(0, 3, (2, 7, 5))
    oracle = temperature**2 * rel_entr(
        softmax(taught / temperature, -1), softmax(mine / temperature, -1)
    ).sum(-1)
    found = soft_loss(torch.from_numpy(mine), torch.from_numpy(taught), temperature)
    np.testing.assert_allclose(found.numpy(), oracle, rtol=1e-9)


def test_at_a_high_temperature_the_gradient_matches_logits() -> None:
    # Hinton et al., equation 4: with logits of mean 0 it tends to (z - v) / N, here times T^2 / T^2.
    chance = np.random.default_rng(0)
    mine, taught = (torch.from_numpy(each) for each in chance.normal(0, 1, (2, 1, 5)))
    mine, taught = mine - mine.mean(), taught - taught.mean()
    mine.requires_grad_()
    (gradient,) = torch.autograd.grad(soft_loss(mine, taught, 1e4).sum(), mine)
    torch.testing.assert_close(gradient, (mine - taught).detach() / 5, rtol=1e-3, atol=1e-6)


def test_a_student_learns_from_the_teacher_alone_where_every_label_is_wrong(teacher: nn.Module) -> None:
    train, held = digits()
    wrong = Examples(train.x, (train.y + 1) % 10)
    taught = distill(teacher, network(12), cross_entropy, wrong, soft=1.0, epochs=20)
    assert accuracy(taught, held) > accuracy(teacher, held) - 0.1
    misled = distill(teacher, network(12), cross_entropy, wrong, soft=0.0, epochs=5)
    assert accuracy(misled, held) < 0.1


def test_a_distilled_student_is_closer_to_its_teacher_than_one_that_learned_from_labels(
    teacher: nn.Module,
) -> None:
    train, held = digits()
    how = {"epochs": 40, "batch_size": 32, "learning_rate": 3e-3, "seed": 0}
    alone = fit(network(12), cross_entropy, train, **how)
    taught = distill(teacher, network(12), cross_entropy, train, **how)

    def distance(student: nn.Module) -> float:
        pair = (softmax(predict(each, held.x), -1) for each in (teacher, student))
        return float(rel_entr(*pair).sum(-1).mean())

    assert distance(taught) < 0.7 * distance(alone)


def test_distilling_changes_neither_network_and_repeats_itself(teacher: nn.Module) -> None:
    train, _ = digits()
    student = network(4)
    before = [predict(each, train.x) for each in (teacher, student)]
    one, other = (distill(teacher, student, cross_entropy, train, epochs=1) for _ in range(2))
    for network_, logits in zip((teacher, student), before, strict=True):
        np.testing.assert_array_equal(predict(network_, train.x), logits)
    np.testing.assert_array_equal(predict(one, train.x), predict(other, train.x))


def test_settings_that_make_no_sense_are_refused_in_a_sentence(teacher: nn.Module) -> None:
    train, _ = digits()
    with pytest.raises(UsageError, match="choose a number > 0"):
        distill(teacher, network(4), cross_entropy, train, temperature=0.0)
    with pytest.raises(UsageError, match="one in \\[0, 1\\]"):
        distill(teacher, network(4), cross_entropy, train, soft=1.5)
    with pytest.raises(UsageError, match="give both the same labels"):
        distill(teacher, nn.Linear(64, 9), cross_entropy, train)
