"""How long a telemetry window stays open: the longer nothing gets through, the longer.

A batch a minute would fill the spool in some days, and then the oldest go. So windows last longer while batches
wait, and a month without the network fits: what is reported is coarser in time, and no prediction is missing from
it. A window lives in memory, so a process that is killed then loses more: an hour, not a minute.
"""

from __future__ import annotations

import sys
import time

from umbel._telemetry.spool import MAX_BYTES, Depth

POLL_S = 60.0
"""How often a device asks for releases."""
MIN_POLL_S = 0.1
"""The shortest pause between two such questions: without one a device would do nothing but ask."""
CLOSE_S = 5.0
"""How long it waits for the gateway when it is closed."""

REST_S = 2.0
"""How long it leaves a process that begins with a model in peace."""

SHORT_S = 60.0
MEDIUM_S = 600.0
LONG_S = 3600.0
LONGEST_S = 6 * 3600.0

MEDIUM_FROM = 60
"""Batches that wait after an hour without the gateway, where one process reports."""
LONG_FROM = 240
"""Batches that wait after 31 hours."""
LONGEST_FROM = 0.5
"""Share of the spool that is full: batches are large, or many processes report."""


def elapsed_s() -> float:
    """Return seconds since some moment. Nobody sets this clock, and on Linux it goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


def window_s(depth: Depth, *, shortest_s: float = SHORT_S) -> float:
    """Return how long windows stay open now, seconds.

    In 30 days one process makes some 930 batches: 16 MiB hold them if each is of 8 KiB, and if they are larger the
    rhythm of six hours makes them fewer: up to 64 KiB each.

    Args:
        depth: What waits.
        shortest_s: How long while the gateway answers.
    """
    if depth.bytes >= LONGEST_FROM * MAX_BYTES:
        return max(LONGEST_S, shortest_s)
    if depth.batches >= LONG_FROM:
        return max(LONG_S, shortest_s)
    if depth.batches >= MEDIUM_FROM:
        return max(MEDIUM_S, shortest_s)
    return shortest_s
