"""Figures that take a while, kept for some seconds: made once for all who look, by one thread each."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import Generic, TypeVar

from umbel_server.clock import Clock

T = TypeVar("T")
MOST = 64
SHARE, LONGEST = 20, 10
"""Making something anew takes at most one second in so many; but it is fresh for at most so many times its usual."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    value: T
    at_s: float
    fresh_s: float


class Kept(Generic[T]):
    """What was made lately, by what it is of.

    A screen of a large fleet waits briefly, and shows what was made before or that it is being made; fifty operators
    who look at the same rollout cost one look.

    Args:
        clock: Tells the time.
        fresh_s: For how long what was made is shown without making it anew, seconds; what takes long, for
            longer (``SHARE``).
        oldest_s: Up to this age, seconds, it is shown at once and made anew beside; who comes later waits for it.
        wait_s: For how long somebody who looks waits for it, seconds.
        most: How many are kept; those that nobody looked at for longest go.
    """

    def __init__(
        self, clock: Clock, *, fresh_s: float, oldest_s: float, wait_s: float, most: int = MOST
    ) -> None:
        self._clock, self._fresh_s, self._oldest_s = clock, fresh_s, oldest_s
        self._wait_s, self._most = wait_s, most
        self._lock = threading.Lock()
        self._made: OrderedDict[Hashable, _Made[T]] = OrderedDict()
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
        now_s = self._clock()
        with self._lock:
            found = self._made.get(key)
            if found is not None:
                self._made.move_to_end(key)
                if now_s - found.at_s < found.fresh_s:
                    return found.value
            making = self._making.get(key)
            if making is None:
                making = self._making[key] = Future()
                threading.Thread(target=self._work, args=(key, make, making), daemon=True).start()
        if found is not None and now_s - found.at_s < self._oldest_s:
            return found.value
        try:
            return making.result(timeout=self._wait_s if wait_s is None else wait_s)
        except Late:
            return None

    def _work(self, key: Hashable, make: Callable[[], T], making: Future[T]) -> None:
        begin_s = time.monotonic()
        try:
            made = make()
        except Exception as exc:  # Whoever waits gets it; who does not asks again.
            log.info("what %s is of was not made: %s", key, exc)
            with self._lock:
                del self._making[key]
            making.set_exception(exc)
            return
        took_s = time.monotonic() - begin_s
        fresh_s = min(max(self._fresh_s, SHARE * took_s), LONGEST * self._fresh_s)
        with self._lock:
            self._made[key] = _Made(made, self._clock(), fresh_s)
            self._made.move_to_end(key)
            while len(self._made) > self._most:
                self._made.popitem(last=False)
            del self._making[key]
        making.set_result(made)
