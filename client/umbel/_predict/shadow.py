"""A candidate that is asked beside the version that answers: what it says is compared, counted, and reaches nobody.

A prediction leaves one example in a queue once in a while, and never waits. One thread of low priority asks the
candidate, within a share of the time of one core and of memory; what there is no room for is counted as dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from umbel._fork import leave_alone, renew_in_child
from umbel._predict.answer import Estimate, Prediction
from umbel.engines import Engine
from umbel_proto.errors import UmbelError
from umbel_proto.manifest import REGRESSION
from umbel_proto.package import GOLDEN, Package

if TYPE_CHECKING:
    from umbel._telemetry.comparison import Comparison

SHARE = 0.05
"""Of the time of one core, what a candidate takes at most."""
WAITING, WAITING_BYTES = 16, 1 << 20
"""Examples that wait at most, and what they take together; one may always."""
NICE = 10
"""How much the thread gives way to others. Not all the way: what it holds of the interpreter others wait for, and a
thread of the lowest priority that is interrupted then comes back late."""
CLOSE_S = 1.0
"""How long to wait for the thread's last comparison."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A version that is ready to be asked.

    Args:
        package: Where it comes from.
        engine: What runs it.
        window: What counts how it compares.
        within: Of a model that answers with numbers, how far its may be from the active version's to agree, in standard
            deviations of its golden answers.
    """

    package: Package
    engine: Engine
    window: Comparison
    within: float = 0.0
    tolerated: NDArray[np.float64] | None = field(init=False)

    def __post_init__(self) -> None:
        manifest, tolerated = self.package.manifest, None
        if manifest.kind == REGRESSION:
            golden = self.package.tensors(GOLDEN)[f"{self.engine.variant}.{manifest.answer}"]
            tolerated = self.within * golden.std(axis=0, dtype=np.float64)
        object.__setattr__(self, "tolerated", tolerated)

    def compare(self, x: NDArray[Any], said: Prediction | Estimate) -> None:
        """Ask it what the active version was asked, and count what it says.

        Args:
            x: One example.
            said: What the active version answered.
        """
        begin = perf_counter()
        try:
            batch, _ = self.package.manifest.contract.check(x)
            answer = self.engine.answers(batch)[0]
        except Exception as exc:  # Whatever a runtime raises.
            log.debug("a candidate could not answer: %s", type(exc).__name__)
            self.window.error()
            return
        latency_ns = 1e9 * (perf_counter() - begin)
        difference = None
        if isinstance(said, Estimate):
            agreed = _near(answer, said.values, self.tolerated)
        else:
            label = int(answer.argmax())
            difference = float(answer[label]) - said.confidence
            # By name: a candidate may have its classes in another order, or others.
            agreed = self.package.manifest.labels[label] == said.name
        self.window.compared(agreed=agreed, difference=difference, latency_ns=latency_ns)


def _near(answer: NDArray[Any], said: NDArray[Any], tolerated: NDArray[np.float64] | None) -> bool:
    if tolerated is None or answer.shape != said.shape:
        return False
    return bool((np.abs(answer.astype(np.float64) - said) <= tolerated).all())  # Never where either is NaN.


class Shadow:
    """What a prediction leaves its example with, and the thread that asks the candidate.

    Args:
        load: Returns the candidate; None if it cannot be run here. It runs in the thread.
        one_in: Of so many predictions one is put to it, on average, >= 1.
        example_bytes: How large an example is.
    """

    def __init__(self, load: Callable[[], Candidate | None], *, one_in: int, example_bytes: int) -> None:
        self._load: Callable[[], Candidate | None] | None = load
        self._one_in = one_in
        self._room = max(1, min(WAITING, WAITING_BYTES // max(example_bytes, 1)))
        self._wait = self._next()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="umbel-shadow", daemon=True)
        self._renew()
        renew_in_child(self._renew_in_child)

    def _renew(self) -> None:
        self._queue: queue.SimpleQueue[tuple[NDArray[Any], Prediction | Estimate] | None] = (
            queue.SimpleQueue()
        )
        # To count takes no lock: who holds one could be interrupted, and a prediction would wait.
        self._missed = count().__next__
        self._told = -1
        self._put_to = self._put_to_told = 0  # Each is written by one thread.

    def _renew_in_child(self) -> None:
        """In a forked process nobody asks the candidate: whoever follows releases begins with it anew."""
        leave_alone((self._thread, self._stop, self._queue))
        self._stop = threading.Event()
        self._renew()

    def start(self) -> None:
        """Load the candidate and begin, in the background."""
        self._thread.start()

    def end(self) -> None:
        """Let it end, after the comparison that is under way."""
        self._stop.set()
        self._queue.put(None)

    def close(self) -> None:
        """End it, and wait until what it compared is counted. A second time does nothing."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def asked(self) -> int:
        """Return how many examples were put to the candidate since the last call. One thread calls it."""
        number, before = self._put_to, self._put_to_told
        self._put_to_told = number
        return number - before

    def offer(self, x: object, said: Prediction | Estimate) -> None:
        """Take note of an answer, if it is this one's turn. It never raises, and never waits.

        Args:
            x: What was asked: one example, an array.
            said: What was answered.
        """
        self._wait -= 1  # Two threads may count as one: it is only chance that is drawn here.
        if self._wait <= 0:
            self._wait = self._next()
            self._put(x, said)

    def offer_batch(self, batch: NDArray[Any], said: Sequence[Prediction] | Sequence[Estimate]) -> None:
        """Take note of one of a batch's answers at most.

        Args:
            batch: What was asked, shape (n, *example).
            said: What was answered of each.
        """
        self._wait -= len(said)
        if self._wait <= 0:
            self._wait = self._next()
            place = secrets.randbelow(len(said))
            self._put(batch[place], said[place])

    def _next(self) -> int:
        # By chance: what an application repeats must not fall in step with it.
        return 1 + secrets.randbelow(2 * self._one_in - 1)

    def _put(self, x: object, said: Prediction | Estimate) -> None:
        if self._queue.qsize() >= self._room:
            self._missed()
            return
        try:
            self._queue.put((np.array(x), said))  # The application may write over its own.
        except Exception:
            self._missed()

    def _run(self) -> None:
        give_way()
        load, self._load = self._load, None
        try:
            candidate = None if load is None else load()
        except UmbelError as exc:
            log.warning("%s", exc)
            return
        except Exception:
            log.exception("a candidate could not be loaded")
            return
        if candidate is None:
            return
        while (asked := self._queue.get()) is not None and not self._stop.is_set():
            self._stop.wait(self.turn(candidate, *asked))
        left = [] if asked is None else [asked]
        with contextlib.suppress(queue.Empty):
            while True:
                left += filter(None, [self._queue.get_nowait()])
        candidate.window.dropped(self._dropped() + len(left))

    def turn(self, candidate: Candidate, x: NDArray[Any], said: Prediction | Estimate) -> float:
        """Make one comparison.

        Returns:
            How long to rest after it, seconds.
        """
        begin = perf_counter()
        candidate.compare(x, said)
        self._put_to += 1
        candidate.window.dropped(self._dropped())
        return (perf_counter() - begin) * (1 / SHARE - 1)

    def _dropped(self) -> int:
        """Return how many were dropped since the last call."""
        number, before = self._missed(), self._told
        self._told = number
        return number - before - 1


def give_way() -> None:
    """Let other threads of this machine go before the one that calls, where the system knows of threads."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
