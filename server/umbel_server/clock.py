"""Time as an argument: whatever decides by the clock is handed one."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns Unix time in seconds."""


def system_clock() -> float:
    """Return the machine's Unix time, seconds."""
    return time.time()
