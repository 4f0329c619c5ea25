"""The predictions of a model that want a review, on their way to the disk.

One is handed over in memory and put on disk later, off the way of the next one. Who only predicts imports this, and not
what the disk and people need.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbel._fork import Lock, renew_in_child
from umbel._review.recent import Labeled
from umbel_proto.errors import UmbelError

if TYPE_CHECKING:
    from umbel._data.dataset import DataSet
    from umbel._predict.answer import Prediction
    from umbel._review.store import ReviewStore

MAX_UNKEPT = 1000
"""Predictions that wait in memory for the disk, of one model, as many as may wait there; beyond it, and beyond the bytes of
their inputs, the oldest go, counted."""
MAX_UNKEPT_BYTES = 16 * 1024 * 1024

Tell = Callable[[int, str, int], None]
"""Tells telemetry of a model version: the version, a counter's name, and by how much it grows."""

Judge = Callable[[int, bool, float | None], None]
"""Tells telemetry of a label that arrived: the version, whether it had given it, and how sure it was of its own."""


class Offered(NamedTuple):
    """A prediction on its way to the disk: what was said, when, of what, and why a person is needed."""

    prediction: Prediction
    at_s: float
    x: NDArray[Any]
    unsure: bool
    flagged: bool


class Queue:
    """The predictions of one model that want a review, on their way to the disk; a device has one for each model.

    Args:
        model: The model's name.
        store: Returns what is on disk.
        tell: Tells telemetry.
        judge: Tells telemetry of labels that arrive.
        data: Returns the model's local data set.
        clock: Returns Unix time, seconds.
    """

    def __init__(
        self,
        model: str,
        store: Callable[[], ReviewStore],
        *,
        tell: Tell,
        judge: Judge,
        data: Callable[[], DataSet],
        clock: Callable[[], float],
    ) -> None:
        self.model = model
        self.tell = tell
        self.judge = judge
        self.labeled: Labeled = Labeled()
        self.data = data
        self.clock = clock
        self._store = store
        self._unkept: deque[Offered] = deque()
        self._held_bytes = self._lost = 0
        self._lock = Lock()
        self._losing = Lock()
        renew_in_child(self._renew)

    def _renew(self) -> None:
        """In a forked process: what the parent predicted it keeps itself."""
        self._forget()

    @property
    def store(self) -> ReviewStore:
        """What is on disk."""
        return self._store()

    def offer(self, prediction: Prediction, x: object, *, unsure: bool = True, flagged: bool = False) -> None:
        """Take a prediction that wants a review. It waits in memory until ``keep``, and blocks nobody."""
        offered, waiting = Offered(prediction, self.clock(), np.array(x), unsure, flagged), self._unkept
        # A lock that nobody holds for longer than this, unlike the disk's.
        with self._losing:
            waiting.append(offered)
            self._held_bytes += offered.x.nbytes
            while len(waiting) > MAX_UNKEPT or (self._held_bytes > MAX_UNKEPT_BYTES and len(waiting) > 1):
                self._held_bytes -= waiting.popleft().x.nbytes
                self._lost += 1

    def keep(self) -> None:
        """Put on disk what waits in memory. Where the disk takes none it goes on waiting.

        Raises:
            StorageError: The disk is full, or the file damaged.
            UnavailableError: Another process held the file for too long.
        """
        with self._lock:
            with self._losing:
                taken = list(self._unkept)
                self._forget()
            if not taken:
                return
            from umbel._review.review import row_of

            try:
                rows = [row_of(each) for each in taken]
                gone = self.store.add(self.model, rows)
            except UmbelError:
                with self._losing:
                    self._unkept.extendleft(reversed(taken))
                    self._held_bytes += sum(each.x.nbytes for each in taken)
                raise
            for each in taken:
                self.tell(each.prediction.model_version, "review.asked", 1)
            with self._losing:
                gone, self._lost = gone + self._lost, 0
            if gone:
                self.tell(taken[-1].prediction.model_version, "review.dropped", gone)

    def clear(self) -> int:
        """Forget everything that waits; return how much it was."""
        with self._lock, self._losing:
            unkept = len(self._unkept)
            self._forget()
        return unkept + self.store.clear(self.model)

    def _forget(self) -> None:
        self._unkept.clear()
        self._held_bytes = 0
