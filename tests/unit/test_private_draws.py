"""Draws of private training: whole, however many examples they have, in parts of a bounded size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from umbel.train import ExamplePrivacy, TrainPlan
from umbel.train.descent import MAX_ROWS, Work, descend
from umbel.train.summed import Summed


class Adds:
    """A loss whose gradient by its one parameter is the example itself: sums say which examples they are of."""

    def __init__(self) -> None:
        self.parts: list[int] = []
        self.drawn = 0.0

    def mean(self, x: NDArray[Any], y: NDArray[Any], w: NDArray[np.float32]) -> tuple[Any, float]:
        raise AssertionError("a private training asks for clipped sums alone")

    def clipped(
        self, x: NDArray[Any], y: NDArray[Any], w: NDArray[np.float32], clip: float
    ) -> tuple[Summed, float]:
        assert w.tolist() == [1.0] * len(x)
        self.parts.append(len(x))
        self.drawn += float(x.sum())
        return Summed(x.sum(axis=0)), 0.0

    def loss(self, x: NDArray[Any], y: NDArray[Any], w: NDArray[np.float32]) -> float:
        return 0.0


@pytest.mark.parametrize("batch_size", [1, 2, 16, 60, 200])
def test_every_example_that_is_drawn_counts_once_in_parts_hardly_larger_than_planned(batch_size: int) -> None:
    count = 4 * batch_size
    plan = TrainPlan(30, batch_size, 1.0, 0.0, 1, ExamplePrivacy(clip=1.0, noise=0.0))
    # Whole numbers: sums of them are exact.
    x = np.arange(1, count + 1, dtype=np.float32)[:, None]
    gradients = Adds()
    work = Work(plan, x, np.zeros(count, np.int64), order=np.arange)
    moved = descend(np.zeros(1, np.float32), gradients, work).parameters
    assert -moved[0] * batch_size == pytest.approx(gradients.drawn, rel=1e-5)
    assert gradients.drawn > 0
    assert max(gradients.parts) <= min(MAX_ROWS, 1.5 * batch_size)
