"""Where the reviews of a device's models come together: one file, one queue for each model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from umbel._fork import Lock
from umbel._home.directory import DeviceHome
from umbel._review.review import Queue
from umbel._review.store import ReviewStore
from umbel_proto.errors import StorageError, UnavailableError

if TYPE_CHECKING:
    from umbel._data.dataset import DataSet
    from umbel._telemetry.telemetry import Telemetry

log = logging.getLogger(__name__)


class Desk:
    """The reviews of a device.

    Args:
        home: The device's files.
        telemetry: Hears how many there were; None to tell nobody.
        data: Returns the local data set of a model.
        clock: Returns Unix time, seconds.
    """

    def __init__(
        self,
        home: DeviceHome,
        telemetry: Telemetry | None,
        *,
        data: Callable[[str], DataSet],
        clock: Callable[[], float],
    ) -> None:
        self.store: ReviewStore = ReviewStore(home.reviews, home.reviews_key)
        self._telemetry = telemetry
        self._data = data
        self._clock = clock
        self._queues: dict[str, Queue] = {}
        self._lock = Lock()
        self._trouble = ""

    def queue(self, model: str) -> Queue:
        """Return the queue of a model; the same one for the same name."""
        with self._lock:
            if model not in self._queues:
                self._queues[model] = Queue(
                    model,
                    self.store,
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
        except (StorageError, UnavailableError) as exc:
            if str(exc) != self._trouble:
                log.warning("%s", exc)
                self._trouble = str(exc)

    def close(self) -> None:
        """Put on disk what waits, and close the file."""
        self.keep()
        self.store.close()

    def _tell(self, model: str, version: int, name: str, by: int) -> None:
        # What people say is about a version, not about the variant that happened to run.
        if self._telemetry is not None:
            window = self._telemetry.window(model=model, version=version, variant="none", engine="none")
            window.count(name, by)

    def _judge(self, model: str, version: int, agreed: bool, confidence: float | None) -> None:
        if self._telemetry is not None:
            window = self._telemetry.window(model=model, version=version, variant="none", engine="none")
            window.judged(agreed=agreed, confidence=confidence)
