"""The threads that answer a gateway's calls: a fixed number of them on one queue.

The standard library's pool makes a future for each call, with a condition of its own, and wakes who waits for it. gRPC
waits for none of them: it asks only to be told when the call has ended. Without futures a single batch costs a gateway a
tenth less: docs/adr/0020-threads-of-the-gateway.md.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class _Ended:
    """What gRPC is given for a call: it tells when the call has ended, whichever of the two comes first."""

    __slots__ = ("_callback", "_first")

    def __init__(self) -> None:
        self._first = threading.Lock()

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callback = callback
        self.meet()

    def meet(self) -> None:
        """Be one of two who come, the call's end and who wants to know; the second tells."""
        if not self._first.acquire(blocking=False):
            self._callback(self)


class Threads:
    """Threads that run what they are given, in its order.

    Args:
        count: How many.
        name: What they are called, with their number.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._queue: queue.SimpleQueue[tuple[_Ended, Callable[..., object], tuple[object, ...]] | None] = (
            queue.SimpleQueue()
        )
        # Daemons: a process that fails before it shuts them down ends all the same.
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Begin; what was given before waits."""
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., object], *args: object) -> _Ended:
        """Run a function in one of the threads; what it returns tells when it has ended."""
        ended = _Ended()
        self._queue.put((ended, function, args))
        return ended

    def shutdown(self) -> None:
        """Do what was given until now, and end."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            ended, function, args = work
            try:
                function(*args)
            except BaseException:  # gRPC's own: ours are told to the caller.
                log.exception("A call ended with an error of gRPC's")
            ended.meet()
            del work, ended, function, args  # A call is not kept until the next one comes.
