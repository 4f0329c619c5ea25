"""Who hears of a model's answers: telemetry, and a version that is asked beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from umbel._predict.answer import Estimate, Prediction


class Log(Protocol):
    """Where predictions are written down, each by a row or its label, until they are counted. Any thread may write."""

    @property
    def whole(self) -> Callable[[], bool]:
        """Tells whether the next prediction is to leave a row. One of a label up to 255 leaves that alone otherwise."""

    @property
    def labels(self) -> bytearray:
        """Labels of predictions that left no row: append to them."""

    @property
    def rows(self) -> bytearray:
        """Rows that nobody has counted yet: append to them."""

    @property
    def row(self) -> Callable[[float, float, int], bytes]:
        """Makes a row of a prediction's time in nanoseconds, its confidence or NaN, and its label or -1."""

    @property
    def due(self) -> int:
        """Bytes of rows that are to be counted."""

    @property
    def settle(self) -> Callable[[object], None]:
        """Has them counted; it is given the last input, for statistics, and never blocks."""


class Window(Protocol):
    """What a model tells telemetry. It counts and keeps no input; it never blocks."""

    @property
    def log(self) -> Log:
        """Where predictions of one example are written down, in this process."""

    def observe_batch(
        self,
        latency_ns: float,
        labels: Sequence[int | None],
        confidences: Sequence[float | None],
        batch: NDArray[Any],
    ) -> None:
        """Count the predictions of a batch.

        Args:
            latency_ns: Each one's share of the time it took, nanoseconds.
            labels: The label of each.
            confidences: The probability of each.
            batch: The inputs, shape (n, *example).
        """

    def error(self) -> None:
        """Count an input that was refused, or a prediction that failed."""

    def count(self, name: str, by: int = 1) -> None:
        """Count something that happens to few predictions: ``contract.COLUMN.below``."""

    def judged(self, *, agreed: bool, confidence: float | None) -> None:
        """Count a label that arrived after its prediction, which had this confidence."""


class Shadow(Protocol):
    """A version that is asked beside the one that answers. It never raises, and never blocks."""

    def offer(self, x: object, said: Prediction | Estimate) -> None:
        """Take note of an answer, if it is this one's turn.

        Args:
            x: What was asked: one example, an array; it is the application's, who may change it later.
            said: What was answered.
        """

    def offer_batch(self, batch: NDArray[Any], said: Sequence[Prediction] | Sequence[Estimate]) -> None:
        """Take note of one of a batch's answers at most.

        Args:
            batch: What was asked, shape (n, *example).
            said: What was answered of each.
        """
