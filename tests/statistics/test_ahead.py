"""Noise that is drawn on a second thread: normal, of every step its own, and no less of it.

A false alarm has a probability of about ``ALARM`` for each assertion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from umbel.train import ExamplePrivacy, TrainPlan, blocks
from umbel.train import ahead as module
from umbel.train.ahead import LEAST, ahead
from umbel.train.blocks import LONG, PIECE
from umbel.train.descent import Work, descend
from umbel_proto.prg import Keystream
from umbel_proto.privacy.gaussian import GRAINS

ALARM = 1e-9
DIM = 2 * LEAST + 1
"""A second thread draws for so many."""


class Flat:
    """A loss that is the same everywhere: what moves its parameters is noise alone."""

    def mean(self, x: NDArray[Any], y: NDArray[Any], w: NDArray[np.float32]) -> tuple[Any, float]:
        return np.zeros(DIM, np.float32), 0.0

    def clipped(
        self, x: NDArray[Any], y: NDArray[Any], w: NDArray[np.float32], clip: float
    ) -> tuple[Any, float]:
        return np.zeros(DIM, np.float32), 0.0

    def loss(self, x: NDArray[Any], y: NDArray[Any], w: NDArray[np.float32]) -> float:
        return 0.0


def moved(steps: int) -> NDArray[np.float32]:
    """Return where a private training of so many steps ends that begins at zero: rate 1, noise 1, batches of 1."""
    plan = TrainPlan(1, 1, 1.0, 0.0, 1, ExamplePrivacy(clip=1.0, noise=1.0))
    work = Work(plan, np.zeros((steps, 1), np.float32), np.zeros(steps, np.int64), order=np.arange)
    return descend(np.zeros(DIM, np.float32), Flat(), work).parameters


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
        noise.onto(total, deviation=3.0, stream=Keystream(), divisor=2.0)
    pieces = total[:LONG].reshape(-1, PIECE)
    for number, piece in enumerate(pieces):
        assert stats.kstest(piece / 1.5, "norm").pvalue > ALARM
        for other in pieces[:number]:
            assert stats.pearsonr(piece, other).pvalue > ALARM
    assert total[-5:].all()


@pytest.mark.parametrize("count", [0, 1, LEAST - 1])
def test_for_a_small_network_nothing_is_drawn_ahead(count: int) -> None:
    with ahead(count) as noise:
        noise.begin()
        assert len(noise.take()) == 0


def test_a_large_network_has_so_much_drawn_ahead_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1 << 18)
    with ahead(1 << 20) as noise:
        noise.begin()
        assert len(noise.take()) == 1 << 18
