"""What a device makes of a gradient is what torch makes of it."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from umbel.train import TrainPlan
from umbel.train.blocks import BLOCK, LONG, in_blocks, second_thread
from umbel.train.optimizer import clip_norm, optimizer_of, pull
from umbel_proto.errors import UsageError

DIM = BLOCK + 77  # a whole block and a part of one

Torch = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def plan(**settings: Any) -> TrainPlan:
    return TrainPlan(
        **{"epochs": 1, "batch_size": 1, "learning_rate": 0.01, "momentum": 0.0, "seed": 0} | settings
    )


def gradients(steps: int) -> NDArray[np.float32]:
    """Gradients that agree with each other for a while, as real ones do, and of very different sizes."""
    chance = np.random.default_rng(5)
    drift = chance.normal(size=(1, DIM)) * 10.0 ** chance.uniform(-6, 1, size=(1, DIM))
    noise: NDArray[np.float32] = (drift * (1 + chance.normal(size=(steps, DIM)))).astype(np.float32)
    return noise


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({}, lambda p: torch.optim.SGD(p, lr=0.01)),
        ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        (
            {"momentum": 0.9, "nesterov": True},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        ),
        (
            {"momentum": 0.5, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5, weight_decay=0.1),
        ),
        ({"weight_decay": 0.1}, lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1)),
        ({"optimizer": "adam", "momentum": 0.9}, lambda p: torch.optim.Adam(p, lr=0.01)),
        (
            {"optimizer": "adam", "momentum": 0.7, "second_momentum": 0.95, "adaptivity": 1e-4},
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.7, 0.95), eps=1e-4),
        ),
        (
            {"optimizer": "adam", "momentum": 0.9, "weight_decay": 0.1},
            lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        ),
    ],
    ids=lambda value: ",".join(value) or "plain" if isinstance(value, dict) else "",
)
def test_two_hundred_steps_are_torchs(settings: dict[str, Any], theirs: Torch) -> None:
    start = np.random.default_rng(6).normal(scale=0.1, size=DIM).astype(np.float32)
    ours, parameter = start.copy(), torch.nn.Parameter(torch.tensor(start))
    optimizer, reference = optimizer_of(plan(**settings), DIM), theirs([parameter])
    for gradient in gradients(200):
        parameter.grad = torch.tensor(gradient)
        reference.step()
        optimizer.step(ours, gradient)
    expected = parameter.detach().numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    assert np.median(np.abs(ours - expected)) <= 1e-6
    assert np.abs(ours - start).max() > 0.1


@pytest.mark.parametrize("limit", [1e-3, 1.0, 50.0, 1e9])
def test_a_gradient_is_clipped_as_torch_clips_it(limit: float) -> None:
    (ours,) = gradients(1)
    parameter = torch.nn.Parameter(torch.zeros(DIM))
    parameter.grad = torch.tensor(ours)
    torch.nn.utils.clip_grad_norm_([parameter], limit)
    clip_norm(ours, limit)
    np.testing.assert_allclose(ours, parameter.grad.numpy(), rtol=2e-6, atol=0)


def test_a_short_gradient_stays_to_the_bit() -> None:
    (gradient,) = gradients(1)
    before = gradient.tobytes()
    clip_norm(gradient, 1e9)
    assert gradient.tobytes() == before


def test_a_gradient_whose_square_overflows_is_clipped_and_not_forgotten() -> None:
    gradient = np.full(DIM, -3e30, np.float32)
    with np.errstate(over="ignore"):
        clip_norm(gradient, 2.0)
    assert np.linalg.norm(gradient.astype(np.float64)) == pytest.approx(2.0, rel=1e-5)
    assert (gradient < 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_does_not_become_so(value: float) -> None:
    gradient = np.ones(DIM, np.float32)
    gradient[BLOCK + 3] = value
    with np.errstate(invalid="ignore"):
        clip_norm(gradient, 1.0)
    assert not np.isfinite(gradient).all()


def test_fedprox_pulls_with_the_gradient_of_its_term() -> None:
    (now, start, gradient) = gradients(3)
    parameter = torch.nn.Parameter(torch.tensor(now))
    (0.05 * (parameter - torch.tensor(start)).square().sum()).backward()
    assert parameter.grad is not None
    expected = gradient + parameter.grad.numpy()
    pull(gradient, now, start, 0.1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "lion"}, "no optimizer 'lion': choose from sgd, adam"),
        ({"nesterov": True}, "nesterov needs"),
        ({"nesterov": True, "momentum": 0.9, "optimizer": "adam"}, "nesterov needs"),
        ({"second_momentum": 1.0}, "second_momentum is 1"),
        ({"adaptivity": 0.0}, "adaptivity is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"gradient_clip": float("inf")}, "gradient_clip is inf"),
        ({"gradient_clip": float("nan")}, "gradient_clip is nan"),
        ({"fedprox_mu": -0.1}, "fedprox_mu is -0.1"),
        ({"patience": -1}, "patience is -1"),
        ({"time_limit_s": float("nan")}, "time_limit_s is nan"),
        ({"energy_limit_j": -5.0}, "energy_limit_j is -5"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"momentum": 0.9}, {"optimizer": "adam"}],
)
def test_two_threads_take_the_steps_of_one_to_the_bit(settings: dict[str, Any]) -> None:
    dim, chance = LONG + 77, np.random.default_rng(1)
    ends = []
    given = chance.normal(size=(3, dim)).astype(np.float32)
    for cores in (1, 2):
        with second_thread(dim) if cores == 2 else contextlib.nullcontext() as pool:
            parameters, optimizer = np.ones(dim, np.float32), optimizer_of(plan(**settings), dim, pool)
            for gradient in given:
                optimizer.step(parameters, gradient.copy())
        ends.append(parameters)
    assert (ends[0] == ends[1]).all()


def test_each_element_is_worked_on_once_and_a_failure_on_either_thread_is_raised() -> None:
    with ThreadPoolExecutor(1) as pool:
        for dim in (1, BLOCK + 1, LONG, LONG + 1):
            seen = np.zeros(dim, int)

            def count(low: int, high: int, seen: NDArray[Any] = seen) -> None:
                seen[low:high] += 1

            in_blocks(pool, dim, count)
            assert (seen == 1).all()

        def fail(low: int, high: int) -> None:
            raise ZeroDivisionError

        for mine, others in ((fail, lambda low, high: None), (lambda low, high: time.sleep(1e-4), fail)):
            with pytest.raises(ZeroDivisionError):
                in_blocks(pool, 64 * LONG, mine, others)  # Neither thread comes too late for all of them.


def test_overflow_on_the_second_thread_follows_the_first_ones_setting() -> None:
    great = np.full(LONG, 3e38, np.float32)

    def grow(low: int, high: int) -> None:
        great[low:high] *= np.float32(10)

    with ThreadPoolExecutor(1) as pool, np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        in_blocks(pool, LONG, grow)
    assert np.isinf(great).all()
