"""How busy a machine is without the training that this device does itself: it must not stop for its own sake."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace

from umbel._rounds.probes import Probe, Reading

AVERAGE_S = 60.0
"""How far back the machine's load looks. Source: proc_loadavg(5), the first figure."""


class OthersLoad:
    """A probe that says of the load only what others make of it.

    Args:
        probe: Says what it says.
        own: Returns this device's own part, in programs that want to compute.
        cores: How many cores there are; by default this machine's.
    """

    def __init__(self, probe: Probe, own: Callable[[], float], *, cores: int | None = None) -> None:
        self._probe, self._own, self._cores = probe, own, cores or os.cpu_count() or 1

    def __call__(self) -> Reading:
        """Return the reading, with the load of others."""
        reading = self._probe()
        if reading.load is None:
            return reading
        return replace(reading, load=max(0.0, reading.load - self._own() / self._cores))


class OwnLoad:
    """What a program that computes, or does not, adds to the average of those that want to."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._computes, self._level, self._since_s = 0.0, 0.0, clock()

    def begin(self) -> None:
        """It computes from now on."""
        self._turn(1.0)

    def end(self) -> None:
        """It does not any more."""
        self._turn(0.0)

    def now(self) -> float:
        """Return its part, in [0, 1]."""
        fades = math.exp((self._since_s - self._clock()) / AVERAGE_S)
        return self._computes + (self._level - self._computes) * fades

    def _turn(self, computes: float) -> None:
        self._level, self._since_s, self._computes = self.now(), self._clock(), computes
