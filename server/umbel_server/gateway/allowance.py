"""How often a device may call: a token bucket for each.

Source: ITU-T I.371, annex A, the leaky bucket as a meter; here as the equivalent that counts what is left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from umbel_proto.errors import UnavailableError
from umbel_proto.ids import DeviceId

MOST_KEPT = 16_384
"""Buckets that are not known to be full; the full ones need no keeping."""


class TooOftenError(UnavailableError):
    """A device called more often than it may.

    Args:
        retry_after_s: In how many seconds one more call is allowed.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("The device calls more often than this gateway allows: call again later.")
        self.retry_after_s = retry_after_s


class Allowance:
    """Counts the calls of devices. It knows nobody who has not shown a certificate of the fleet.

    Args:
        per_s: Calls that a device may make, each second; 0: any number.
        burst: How many it may make at once after a pause.
        elapsed: Returns seconds since some moment.
    """

    def __init__(self, per_s: float, burst: int, elapsed: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._elapsed = elapsed
        self._lock = threading.Lock()
        # What each device had left, and when.
        self._left: dict[DeviceId, tuple[float, float]] = {}

    def take(self, device: DeviceId) -> None:
        """Count a call.

        Raises:
            TooOftenError: It is one too many; it costs the device nothing.
        """
        if not self._per_s:
            return
        with self._lock:
            now_s = self._elapsed()
            left = self._now(device, now_s)
            if left < 1.0:
                raise TooOftenError((1.0 - left) / self._per_s)
            if len(self._left) >= MOST_KEPT and device not in self._left:
                self._forget_full(now_s)
            self._left[device] = (left - 1.0, now_s)

    def _now(self, device: DeviceId, now_s: float) -> float:
        left, then_s = self._left.get(device, (self._burst, now_s))
        return min(self._burst, left + (now_s - then_s) * self._per_s)

    def _forget_full(self, now_s: float) -> None:
        full = [device for device in self._left if self._now(device, now_s) >= self._burst]
        for device in full or [next(iter(self._left))]:
            del self._left[device]
