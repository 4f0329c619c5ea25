"""What the services count, for Prometheus. No label names a device: there may be a hundred thousand.

Each process of the service counts into files of its own in ``metrics/`` of the fleet's directory (the multiprocess
mode of prometheus_client), and ``umbel serve health`` adds them up.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram
    from prometheus_client.registry import Collector

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
LATER_S = 0.1
"""How long after its answer a call may be counted."""
MANY = 64
"""How many answered calls are counted at once, by whoever answered the last of them."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def count_into(directory: Path) -> None:
    """Let this process count into a directory's files; before anything counts, or it counts for itself."""
    directory.mkdir(mode=0o700, exist_ok=True)
    os.environ[_DIRECTORY] = str(directory)


def forget_ended(directory: Path) -> None:
    """Delete the files of processes that have ended: Prometheus takes a count that begins anew for what it is."""
    for file in directory.glob("*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            file.unlink(missing_ok=True)


def registry_of(directory: Path, *others: Collector) -> CollectorRegistry:
    """Return all that the processes of a service count, and what others tell beside it.

    Args:
        directory: Where the processes count.
        others: What else tells figures when it is asked.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    for each in others:
        registry.register(each)
    return registry


class Meters:
    """The counters of a process.

    Calls are counted some at a time: what a counter keeps in a file is written under a lock that all counters share, and
    for one call among those of a hundred threads it costs several times what it does for many at once. A thread counts
    what is left when no more come.
    """

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        self._calls: Counter = Counter(
            "umbel_gateway_calls", "Calls that the gateway answered.", ["method", "code"]
        )
        self._seconds: Histogram = Histogram(
            "umbel_gateway_call_seconds", "How long an answer took.", ["method"], buckets=_SECONDS
        )
        self._batches: Counter = Counter(
            "umbel_gateway_batches", "Sealed batches, by what became of them: new or repeated.", ["outcome"]
        )
        self._errors: Counter = Counter(
            "umbel_gateway_store_errors", "Calls that failed because of the store.", ["kind"]
        )
        self._opened: Counter = Counter(
            "umbel_opener_batches", "Batches that the opener is done with: opened or rejected.", ["outcome"]
        )
        self._windows: Counter = Counter("umbel_opener_windows", "Windows that were summed.")
        self._known: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._new = self._batches.labels("new")
        self._repeated = self._batches.labels("repeated")
        self._answered: deque[tuple[str, str, float]] = deque()
        self._some = threading.Event()
        threading.Thread(target=self._count_later, name="umbel-meters", daemon=True).start()
        atexit.register(self.count_now)

    def answered(self, method: str, code: str, seconds: float) -> None:
        """Count a call: within a tenth of a second, or when the process ends."""
        self._answered.append((method, code, seconds))
        if len(self._answered) >= MANY:
            self.count_now()
        elif not self._some.is_set():
            self._some.set()

    def count_now(self) -> None:
        """Count the calls that were answered until now."""
        while self._answered:
            try:
                method, code, seconds = self._answered.popleft()
            except IndexError:  # Another thread has counted it.
                return
            pair = self._known.get((method, code))
            if pair is None:
                pair = self._known[method, code] = (
                    self._calls.labels(method, code),
                    self._seconds.labels(method),
                )
            pair[0].inc()
            pair[1].observe(seconds)

    def _count_later(self) -> None:
        while self._some.wait():
            time.sleep(LATER_S)
            self._some.clear()  # Before it counts: who answers from here on wakes it again.
            self.count_now()

    def stored(self, new: int, repeated: int) -> None:
        """Count the batches of a commit."""
        self._new.inc(new)
        self._repeated.inc(repeated)

    def failed(self, kind: str) -> None:
        """Count a call that the store failed."""
        self._errors.labels(kind).inc()

    def opened(self, batches: int, rejected: int, windows: int) -> None:
        """Count what the opener did."""
        self._opened.labels("opened").inc(batches)
        self._opened.labels("rejected").inc(rejected)
        self._windows.inc(windows)


_meters: list[Meters] = []


def meters() -> Meters:
    """Return the process's counters, made when first asked for."""
    if not _meters:
        _meters.append(Meters())
    return _meters[0]
