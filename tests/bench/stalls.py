"""When this machine stood still: on each processor a process that does nothing but look at the clock every half millisecond.

It has a higher priority than all that is measured beside it, so that only the host, or the kernel, can wake it late. How
late it was, is a stall of that processor, whoever else ran there. This is what jHiccup does for programs of a JVM
(G. Tene, https://github.com/giltene/jHiccup), and rt-tests' cyclictest for a kernel.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

Span = tuple[float, float]
"""When something began and ended, seconds of a clock that all processes share."""

EVERY_S = 0.0005
LATE_S = 0.00015
"""By which a wake-up may be late and no stall: two to three times what it is where nothing else runs."""
PRIORITY = 2


@contextlib.contextmanager
def watched() -> Iterator[list[Span]]:
    """A block beside which all processors are watched; the list has their stalls after it, ordered by their beginning.

    Raises:
        RuntimeError: This process has no right to a real-time priority.
    """
    stalls: list[Span] = []
    with contextlib.ExitStack() as processes:
        watchers = [
            processes.enter_context(
                subprocess.Popen([sys.executable, __file__, str(cpu)], stdout=subprocess.PIPE, text=True)
            )
            for cpu in sorted(os.sched_getaffinity(0))
        ]
        try:
            if any(each.stdout is None or not each.stdout.readline() for each in watchers):
                raise RuntimeError("no right to a real-time priority: run this as root, or with CAP_SYS_NICE")
            yield stalls
        finally:
            for each in watchers:
                each.terminate()
        for each in watchers:
            stalls += [(begin, end) for begin, end in json.loads(each.communicate()[0])]
    stalls.sort()


def stalled_s(stalls: Sequence[Span], begin_s: float, end_s: float) -> float:
    """Return how many of the seconds between two moments any processor stood still."""
    total, since = 0.0, begin_s
    for begin, end in stalls:
        since = max(since, begin)
        if since < min(end, end_s):
            total += min(end, end_s) - since
            since = end
    return total


def watch(cpu: int) -> None:
    """Write the stalls of a processor, once this process is asked to end."""
    ended = False

    def end(_signal: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    gc.disable()
    print("watching", flush=True)
    stalls: list[Span] = []
    due = time.perf_counter() + EVERY_S
    while not ended:
        time.sleep(max(due - time.perf_counter(), 0.0))
        now = time.perf_counter()
        if now - due > LATE_S:
            stalls.append((due, now))
        due = max(due + EVERY_S, now)
    print(json.dumps(stalls))


if __name__ == "__main__":
    watch(int(sys.argv[1]))
