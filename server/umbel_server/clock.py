"""Time as an argument: whatever decides by the clock is handed one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Clock = Callable[[], float]
"""Returns Unix time in seconds."""


def system_clock() -> float:
    """Return the machine's Unix time, seconds."""
    return time.time()


@dataclass(slots=True)
class ManualClock:
    """A clock that goes on only when told to; it begins now.

    Args:
        now_s: What it says, Unix seconds.
    """

    now_s: float = field(default_factory=system_clock)

    def __call__(self) -> float:
        """Return what it says."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
