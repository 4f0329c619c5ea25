"""Sign-ins that failed lately, by address: who guesses waits."""

from __future__ import annotations

import threading
from collections import OrderedDict

from umbel_server.clock import Clock

MAX_ADDRESSES = 10_000
"""So many are remembered, the latest: an attacker with more has the machines to wait anyway."""


class Failures:
    """How many sign-ins each address may still get wrong: a bucket that fills again over a minute.

    Args:
        per_minute: How many it holds.
        clock: Tells the time.
    """

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_s = per_minute / 60
        self._most = float(per_minute)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, address: str) -> float:
        """Return how long an address has to wait before it may try again; 0: not at all."""
        with self._lock:
            left = self._now(address)
        return 0.0 if left >= 1 else (1 - left) / self._per_s

    def count(self, address: str) -> None:
        """Count a sign-in that failed."""
        with self._lock:
            self._left[address] = (max(self._now(address) - 1, 0.0), self._clock())
            self._left.move_to_end(address)
            while len(self._left) > MAX_ADDRESSES:
                self._left.popitem(last=False)

    def _now(self, address: str) -> float:
        left, at_s = self._left.get(address, (self._most, 0.0))
        # A clock that was set back fills nothing.
        return min(left + max(self._clock() - at_s, 0.0) * self._per_s, self._most)
