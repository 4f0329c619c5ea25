"""Where the reviews of a device's models come together: one file, one queue for each model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from umbel._fork import Lock
from umbel._home.directory import DeviceHome
from umbel._review.queue import Queue
from umbel_proto.errors import UmbelError

if TYPE_CHECKING:
    from umbel._data.dataset import DataSet
    from umbel._review.remote import Remote
    from umbel._review.store import ReviewStore
    from umbel._telemetry.telemetry import Telemetry

log = logging.getLogger(__name__)


class Desk:
    """The reviews of a device.

    Args:
        home: The device's files.
        telemetry: Hears how many there were; None to tell nobody.
        data: Returns the local data set of a model.
        labels: Returns the names of a model's classes.
        clock: Returns Unix time, seconds.
    """

    def __init__(
        self,
        home: DeviceHome,
        telemetry: Telemetry | None,
        *,
        data: Callable[[str], DataSet],
        labels: Callable[[str], Sequence[str]],
        clock: Callable[[], float],
    ) -> None:
        self._store: ReviewStore | None = None
        self._home = home
        self._telemetry = telemetry
        self._data = data
        self._clock = clock
        self._queues: dict[str, Queue] = {}
        self._lock = Lock()
        self._opening = Lock()
        self._trouble = ""
        self._labels = labels

    def queue(self, model: str) -> Queue:
        """Return the queue of a model; the same one for the same name."""
        with self._lock:
            if model not in self._queues:
                self._queues[model] = Queue(
                    model,
                    lambda: self.store,
                    tell=functools.partial(self._tell, model),
                    judge=functools.partial(self._judge, model),
                    data=functools.partial(self._data, model),
                    clock=self._clock,
                )
            return self._queues[model]

    def keep(self) -> None:
        """Put on disk what waits in memory. It never raises: what the disk does not take goes on waiting."""
        with self._lock:
            queues = list(self._queues.values())
        try:
            for queue in queues:
                queue.keep()
            self._trouble = ""
        except UmbelError as exc:
            self._say(exc)

    def announce(self) -> None:
        """Let the fleet know what waits for a person, where policy and user allow that. It never raises."""
        if self._telemetry is None or not self._home.reviews.exists():
            return
        try:
            self._remote(self._telemetry).announce()
        except UmbelError as exc:
            self._say(exc)

    def take(self, answers: Sequence[bytes]) -> None:
        """Decide as the fleet's people answered, and let it know. It never raises: what is not taken comes again."""
        if self._telemetry is None:
            return
        try:
            self._remote(self._telemetry).take(answers)
        except UmbelError as exc:
            self._say(exc)
        self.announce()

    def close(self) -> None:
        """Put on disk what waits, and close the file."""
        self.keep()
        if self._store is not None:
            self._store.close()

    @property
    def store(self) -> ReviewStore:
        """What is on disk."""
        # It takes time to import, which who only predicts need not wait for.
        from umbel._review.store import ReviewStore

        with self._opening:
            if self._store is None:
                self._store = ReviewStore(self._home.reviews, self._home.reviews_key)
            return self._store

    def _remote(self, telemetry: Telemetry) -> Remote:
        from umbel._review.announced import Announced
        from umbel._review.remote import Remote

        return Remote(
            self._home,
            queue=self.queue,
            labels=self._labels,
            announced=Announced(self.store),
            telemetry=telemetry,
            clock=self._clock,
        )

    def _say(self, exc: UmbelError) -> None:
        if str(exc) != self._trouble:
            log.warning("%s", exc)
            self._trouble = str(exc)

    def _tell(self, model: str, version: int, name: str, by: int) -> None:
        # What people say is about a version, not about the variant that happened to run.
        if self._telemetry is not None:
            window = self._telemetry.window(model=model, version=version, variant="none", engine="none")
            window.count(name, by)

    def _judge(self, model: str, version: int, agreed: bool, confidence: float | None) -> None:
        if self._telemetry is not None:
            window = self._telemetry.window(model=model, version=version, variant="none", engine="none")
            window.judged(agreed=agreed, confidence=confidence)
