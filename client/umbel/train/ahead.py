"""Noise that is drawn while the gradients it will hide are computed, and what is left on two cores, where there are.

A runtime that computes the gradients of a large network leaves Python alone for milliseconds. The noise of a few
million parameters takes as long.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from umbel_proto.prg import Keystream
from umbel_proto.privacy.gaussian import noised
from umbel_proto.privacy.normal import Normal

LEAST = 1 << 17
"""Values of noise below which a second thread gains nothing."""

MOST = 5 << 19
"""Values that are drawn ahead at most, 20 MiB of them: of a smaller network's step they are all there are."""

AT_ONCE = 1 << 14
"""Values that a thread draws at once: of a thousand each would cost four times as much, for the steps of numpy."""

PIECE = 1 << 17
"""Values that one of two threads works on at once: in smaller pieces each would wait for the other's Python."""


class Ahead:
    """Draws noise on one thread for another, and with it.

    Args:
        pool: The thread to draw on; None where nothing is drawn ahead.
        count: How many values a step needs.
    """

    def __init__(self, pool: ThreadPoolExecutor | None, count: int) -> None:
        self._pool = pool
        self._values = np.empty(0 if pool is None else min(count, MOST))
        self._left = count - len(self._values)
        # Where two threads draw, both at once, they do it in pieces so large that neither waits much for the other's Python.
        self._own = Normal(count if pool is None else self._left >> 5)
        self._other = Normal(0 if pool is None else max(AT_ONCE, self._left >> 5))
        self._drawn: Future[None] | None = None

    def begin(self) -> None:
        """Begin to draw for the next step, under a key fresh from the operating system."""
        if self._pool is not None:
            self._drawn = self._pool.submit(self._other.fill, self._values, Keystream())

    def take(self) -> NDArray[np.float64]:
        """Wait for what was begun, and return it, shape (n,): for one step, which uses it up."""
        if self._drawn is None:
            return self._values[:0]
        self._drawn.result()
        self._drawn = None
        return self._values

    def onto(
        self, total: NDArray[np.floating], *, deviation: float, stream: Keystream, divisor: float
    ) -> None:
        """Put noise onto a sum, in place: see ``noised``. Where some is still to draw, each thread takes a piece until none is left."""
        drawn, begins = self.take(), deque(range(0, len(total), PIECE))

        def work(normal: Normal, stream: Keystream) -> None:
            for low in _claimed(begins):
                piece, ready = total[low : low + PIECE], drawn[low : low + PIECE]
                noised(
                    piece,
                    deviation=deviation,
                    stream=stream,
                    out=piece,
                    drawn=ready,
                    normal=normal,
                    divisor=divisor,
                )

        # Noise that is drawn is put on sooner than another thread is awake.
        pool = self._pool if self._left else None
        other = None if pool is None else pool.submit(work, self._other, Keystream())
        work(self._own, stream)
        if other is not None:
            other.result()


def _claimed(begins: deque[int]) -> Iterator[int]:
    """Yield what is left, each to one of the threads that ask."""
    while True:
        try:
            begin = begins.popleft()
        except IndexError:
            return
        yield begin


@contextmanager
def ahead(count: int) -> Iterator[Ahead]:
    """A block in which noise is drawn ahead, where that gains time.

    Args:
        count: How many values of noise a step needs; 0 for none.
    """
    if count < LEAST or _cores() == 1:
        yield Ahead(None, count)
        return
    with ThreadPoolExecutor(1, "umbel-noise") as pool:
        yield Ahead(pool, count)


def _cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Only some systems can say so.
        return os.cpu_count() or 1
