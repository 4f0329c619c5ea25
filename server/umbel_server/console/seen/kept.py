"""Figures that take a while, kept for some seconds: made once for all who look, by one thread each."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from typing import Generic, TypeVar

from umbel_server.clock import Clock

T = TypeVar("T")
MOST = 64
log = logging.getLogger(__name__)


class Kept(Generic[T]):
    """What was made lately, by what it is of.

    A screen of a large fleet waits briefly, and shows what was made before or that it is being made; fifty operators
    who look at the same rollout cost one look.

    Args:
        clock: Tells the time.
        fresh_s: For how long what was made is shown without making it anew, seconds.
        wait_s: For how long somebody who looks waits for it, seconds.
        most: How many are kept; those that nobody looked at for longest go.
    """

    def __init__(self, clock: Clock, *, fresh_s: float, wait_s: float, most: int = MOST) -> None:
        self._clock, self._fresh_s, self._wait_s, self._most = clock, fresh_s, wait_s, most
        self._lock = threading.Lock()
        self._made: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()
        self._making: dict[Hashable, Future[T]] = {}

    def get(self, key: Hashable, make: Callable[[], T], *, wait_s: float | None = None) -> T | None:
        """Return what a key is of; None: it is being made, ask again soon.

        Args:
            key: What it is of, and whatever changes it at once.
            make: Makes it, in a thread of its own.
            wait_s: For how long to wait this time, seconds; None: as always.

        Raises:
            Exception: What ``make`` raised, to those who waited for it.
        """
        with self._lock:
            found = self._made.get(key)
            if found is not None:
                self._made.move_to_end(key)
                if self._clock() - found[0] < self._fresh_s:
                    return found[1]
            making = self._making.get(key)
            if making is None:
                making = self._making[key] = Future()
                threading.Thread(target=self._work, args=(key, make, making), daemon=True).start()
        try:
            return making.result(timeout=self._wait_s if wait_s is None else wait_s)
        except Late:
            return None if found is None else found[1]

    def _work(self, key: Hashable, make: Callable[[], T], making: Future[T]) -> None:
        try:
            made = make()
        except Exception as exc:  # Whoever waits gets it; who does not asks again.
            log.info("what %s is of was not made: %s", key, exc)
            with self._lock:
                del self._making[key]
            making.set_exception(exc)
            return
        with self._lock:
            self._made[key] = (self._clock(), made)
            self._made.move_to_end(key)
            while len(self._made) > self._most:
                self._made.popitem(last=False)
            del self._making[key]
        making.set_result(made)
