"""How long a question waits while its model goes over to other releases: eight threads ask through 50 installations.

A wait is what a question took, less what its thread spent waiting for a processor that other threads used: on a
machine with fewer processors than threads there would be nothing else to see. The baseline are the same questions
while a process of its own installs the same releases: the same work for the machine, and no switch. The longest wait
is to be a millisecond at most, or the baseline's where that is longer: what waits there is the machine's own. A thread
that holds the interpreter may lose its processor too, for a scheduler's slice of some milliseconds, and then all others
wait for the interpreter. With a real-time priority no scheduler takes it away. The host of a virtual machine takes one
away all the same: for how long, processes tell that look at the clock beside it, and there a wait is less by that. How
many installations had a wait of more than a millisecond stands beside how many had without a switch.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from harness import Report, often
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stalls import PRIORITY, Span, stalled_s, watched

from model_packages import RELEASE, digits, release, resigned
from umbel._predict.model import Model
from umbel._releases.follow import Follower
from umbel._releases.shelf import Shelf
from umbel._telemetry.window import PredictionWindow

THREADS = 8
PAUSE_S = 0.005
"""Between two questions of a thread. Eight that never rest would wait for each other alone."""
SWITCHES, SERIES = 50, 5
"""Releases that one shelf goes over to, and how many shelves; the baseline beside each."""
REST_S = 0.05
MAY_WAIT_MS = 1.0
CHANCE = 2.0
"""Standard deviations by which one of two counts of the same rare thing may be above the other."""
INSTALL = "install"
"""The argument of the process that only installs."""


class Windows:
    """Telemetry that is never sent."""

    def window(
        self, *, model: str, version: int, variant: str, engine: str, scope: object = None
    ) -> PredictionWindow:
        return PredictionWindow(model=model, version=version, variant=variant, engine=engine, now_s=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Waits:
    """When questions were asked and answered, seconds, and how long each waited, milliseconds; all of shape (questions,)."""

    begins_s: NDArray[np.float64]
    ends_s: NDArray[np.float64]
    took_ms: NDArray[np.float64]

    def less(self, stalls: list[Span]) -> Waits:
        """Return the waits less what the machine stood still for meanwhile."""
        asked = zip(self.begins_s, self.ends_s, strict=True)
        stalled_ms = np.array([1e3 * stalled_s(stalls, begin, end) for begin, end in asked])
        return replace(self, took_ms=np.maximum(self.took_ms - stalled_ms, 0.0))

    def longest_ms(self, spans: list[Span]) -> list[float]:
        """Return the longest wait in each span of seconds in which there was one."""
        inside = [self.took_ms[(self.begins_s >= begin) & (self.begins_s < end)] for begin, end in spans]
        return [float(each.max()) for each in inside if each.size]


class Queued:
    """How long the thread that makes it has waited for a processor, seconds, each time it is called.

    The file stays open: to open it takes Python's lock, and gives it away, several times more than a question does.
    """

    def __init__(self) -> None:
        self._file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    def __call__(self) -> float:
        return int(os.pread(self._file, 64, 0).split()[1]) / 1e9

    def close(self) -> None:
        os.close(self._file)


def waits(ask: Callable[[], object], work: Callable[[], list[Span]]) -> tuple[Waits, list[Span]]:
    """Return what questions of eight threads took while ``work`` ran, and what it returned.

    Each thread has been answered once before it begins: what a first answer takes more has nothing to do with it. They
    begin one after the other, so that they do not all ask at the same moments.
    """
    stop, ready = threading.Event(), threading.Barrier(THREADS + 1)
    taken: list[list[tuple[float, float, float]]] = [[] for _ in range(THREADS)]

    def client(mine: list[tuple[float, float, float]], after_s: float) -> None:
        with contextlib.closing(Queued()) as queued_s:
            ask()
            ready.wait()
            time.sleep(after_s)
            while not stop.wait(PAUSE_S):
                queued, computed, begin = queued_s(), time.thread_time(), time.perf_counter()
                ask()
                end = time.perf_counter()
                computed = time.thread_time() - computed
                waited = end - begin - computed - (queued_s() - queued)
                mine.append((begin, end, 1e3 * max(waited, 0.0)))

    threads = [
        threading.Thread(target=client, args=(mine, PAUSE_S * place / THREADS))
        for place, mine in enumerate(taken)
    ]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
        spans = work()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    begins, ends, took_ms = np.array([each for mine in taken for each in mine]).T
    return Waits(begins, ends, took_ms), spans


def in_real_time(ask: Callable[[], object], work: Callable[[], list[Span]]) -> tuple[Waits, list[Span]]:
    """Return the same of threads that nothing but the host takes a processor from, less what the host took.

    Raises:
        PermissionError: This process has no right to a real-time priority.
        RuntimeError: The same.
    """
    with watched() as stalls, real_time():
        waited, spans = waits(ask, work)
    return waited.less(stalls), spans


@contextlib.contextmanager
def shelf_of(count: int) -> Iterator[tuple[Model, Callable[[], list[Span]]]]:
    """Make a shelf with a model; yield the model, and what installs ``count`` other releases and tells when."""
    packages = [resigned(release(2), lambda body, n=n: body.update(version=n)) for n in range(2, count + 3)]
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Path(folder) / "shelf", RELEASE.public)
        follower = Follower(shelf, Windows(), clock=time.time)
        shelf.install(packages[0])
        model = follower.model("digits", "fp32")

        def install() -> list[Span]:
            spans = []
            for data in packages[1:]:
                begin = time.perf_counter()
                shelf.install(data, clock=itertools.count().__next__)
                follower.follow()
                spans.append((begin, time.perf_counter()))
                time.sleep(REST_S)
            assert model.version == count + 2
            return spans

        yield model, install


def elsewhere() -> list[Span]:
    """Install the releases in a process of its own, of ordinary priority; return when."""
    done = subprocess.run([sys.executable, __file__, INSTALL], stdout=subprocess.PIPE, text=True, check=True)
    return [(begin, end) for begin, end in json.loads(done.stdout)]


@contextlib.contextmanager
def real_time() -> Iterator[None]:
    """A block whose threads have a real-time priority."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY - 1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def compare(report: Report, x: NDArray[np.float32], count: int, how: str) -> None:
    """Add how long questions wait while releases are installed here, and while they are elsewhere."""
    ours_ms: list[float] = []
    baseline_ms: list[float] = []
    for _ in range(often(SERIES)):
        with shelf_of(count) as (model, install):
            gc.collect()  # What making the releases left behind is no part of installing them.
            ask = functools.partial(model.predict, x)
            measured = in_real_time if how else waits
            busy, spans = measured(ask, install)
            other, rested = measured(ask, elsewhere)
        ours_ms += busy.longest_ms(spans)
        baseline_ms += other.longest_ms(rested)
    of = f"{THREADS} threads{how}, {len(ours_ms)} releases installed, in another process beside it"
    for name, q in (("in the median of the installations", 0.5), ("in 9 of 10", 0.9), ("in all", 1.0)):
        without = float(np.quantile(baseline_ms, q))
        report.value(
            f"longest wait of a question, {of}: {name}",
            float(np.quantile(ours_ms, q)),
            unit="ms",
            at_most=round(max(MAY_WAIT_MS, without), 3),
            baseline=without,
        )
    longer, theirs = (sum(each > MAY_WAIT_MS for each in all_ms) for all_ms in (ours_ms, baseline_ms))
    report.value(
        f"installations in which a question waited more than {MAY_WAIT_MS:g} ms, {of}",
        longer,
        unit="",
        at_most=round(theirs + CHANCE * math.sqrt(2 * max(theirs, 1)), 1),
        baseline=theirs,
    )


def main() -> None:
    """Measure, and write the figures."""
    x, count = digits().held_out.x[0], often(SWITCHES)
    if sys.argv[1:] == [INSTALL]:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        with shelf_of(count) as (_, install):
            print(json.dumps(install()))
        return
    report = Report("sdk_switch")
    for name, how in (("as an application runs", ""), ("in real time", " of real-time priority")):
        with report.part(name):
            compare(report, x, count, how)
    report.finish()


if __name__ == "__main__":
    main()
