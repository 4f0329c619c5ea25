"""Noise that is drawn on a second thread: normal, of every step its own, and no less of it.

A false alarm has a probability of about ``ALARM`` for each assertion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from umbel.train import ExamplePrivacy, TrainPlan, blocks
from umbel.train import ahead as module
from umbel.train.ahead import Ahead
from umbel.train.blocks import LONG, PIECE, second_thread
from umbel.train.descent import NOISY, Work, descend
from umbel.train.summed import Product, Summed
from umbel_proto.prg import Keystream
from umbel_proto.privacy.gaussian import GRAINS

ALARM = 1e-9
DIM = 2 * NOISY + 1
"""A second thread draws for so many."""


class Flat:
    """A loss that is the same everywhere: what moves its parameters is noise alone."""

    def mean(self, x: NDArray[Any], y: NDArray[Any], w: NDArray[np.float32]) -> tuple[Any, float]:
        return np.zeros(DIM, np.float32), 0.0

    def clipped(
        self, x: NDArray[Any], y: NDArray[Any], w: NDArray[np.float32], clip: float
    ) -> tuple[Summed, float]:
        return Summed(np.zeros(DIM, np.float32)), 0.0

    def loss(self, x: NDArray[Any], y: NDArray[Any], w: NDArray[np.float32]) -> float:
        return 0.0


def moved(steps: int) -> NDArray[np.float32]:
    """Return where a private training of so many steps ends that begins at zero: rate 1, noise 1, batches of 1."""
    plan = TrainPlan(1, 1, 1.0, 0.0, 1, ExamplePrivacy(clip=1.0, noise=1.0))
    work = Work(plan, np.zeros((steps, 1), np.float32), np.zeros(steps, np.int64), order=np.arange)
    return descend(np.zeros(DIM, np.float32), Flat(), work).parameters


@contextmanager
def ahead(count: int) -> Iterator[Ahead]:
    """As a training of so many parameters has it."""
    with second_thread(count, NOISY) as pool:
        yield Ahead(pool, count)


@pytest.fixture(params=[1, 2])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    monkeypatch.setattr(blocks, "_cores", lambda: count)
    return count


def test_each_step_has_noise_of_its_own_on_any_number_of_cores(cores: int) -> None:
    """Four steps of the same noise would have the variance of sixteen."""
    ends = moved(4)
    assert stats.kstest(ends / 2, "norm").pvalue > ALARM
    one, two = moved(1), moved(1)
    assert stats.pearsonr(one, two).pvalue > ALARM
    assert one[-1] != 0
    assert two[-1] != 0


def test_what_is_taken_was_drawn_for_one_step() -> None:
    with ahead(DIM) as noise:
        taken = []
        for _ in range(3):
            noise.begin()
            taken.append(noise.take() / GRAINS)
    for one in taken:
        assert len(one) == DIM
        assert stats.kstest(one, "norm").pvalue > ALARM
    for one, two in zip(taken, [*taken[1:], taken[0]], strict=True):
        assert (one == two).sum() < 10


def test_nothing_is_taken_that_was_not_begun_or_was_taken_before() -> None:
    with ahead(DIM) as noise:
        assert len(noise.take()) == 0
        noise.begin()
        assert len(noise.take()) == DIM
        assert len(noise.take()) == 0


@pytest.mark.parametrize("most", [1 << 18, 1 << 21])
def test_every_piece_of_a_sum_has_noise_of_its_own_once(
    cores: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces left out, done twice or under one key on two threads would show in the variance or the correlation."""
    monkeypatch.setattr(module, "MOST", most)
    total = np.zeros(LONG + 5, np.float32)  # Long enough for both threads to put it on.
    with ahead(len(total)) as noise:
        noise.begin()
        released = noise.onto(Summed(total), deviation=3.0, stream=Keystream(), divisor=2.0)
    pieces = released[:LONG].reshape(-1, PIECE)
    for number, piece in enumerate(pieces):
        assert stats.kstest(piece / 1.5, "norm").pvalue > ALARM
        for other in pieces[:number]:
            assert stats.pearsonr(piece, other).pvalue > ALARM
    assert released[-5:].all()


@pytest.mark.parametrize("most", [1 << 18, 1 << 21])
def test_a_sum_in_factors_has_the_noise_of_a_whole_one(
    cores: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left when the sum is taken away again is noise; a block beside its place would stand out of it."""
    monkeypatch.setattr(module, "MOST", most)
    rng = np.random.default_rng(5)
    begin, shape = 1 << 17, (1030, 1000)
    rows = rng.normal(size=(shape[0], 3)).astype(np.float32)
    columns = rng.normal(size=(3, shape[1])).astype(np.float32)
    expected = rng.normal(size=begin + shape[0] * shape[1] + 77).astype(np.float32)
    vector, inside = expected.copy(), slice(begin, begin + shape[0] * shape[1])
    vector[inside] = np.nan
    expected[inside] = (rows @ columns).ravel()
    with ahead(len(vector)) as noise:
        noise.begin()
        summed = Summed(vector, (Product(begin, rows, columns, multiply),))
        assert summed.finite()
        released = noise.onto(summed, deviation=0.5, stream=Keystream(), divisor=4.0)
    left = (4.0 * released.astype(np.float64) - expected) / 0.5
    for part in (left[:begin], left[inside], left[inside.stop :]):
        assert stats.kstest(part, "norm").pvalue > ALARM
    assert np.abs(left).max() < 7


def multiply(left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    np.matmul(left, right, out=out)


@pytest.mark.parametrize("count", [0, 1, NOISY - 1])
def test_for_a_small_network_nothing_is_drawn_ahead(count: int) -> None:
    with ahead(count) as noise:
        noise.begin()
        assert len(noise.take()) == 0


def test_a_large_network_has_so_much_drawn_ahead_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1 << 18)
    with ahead(1 << 20) as noise:
        noise.begin()
        assert len(noise.take()) == 1 << 18
