"""Long vectors, block by block, on two cores where there are: every element comes out as on one."""

from __future__ import annotations

import contextvars
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

BLOCK = 1 << 15
"""Elements that one thread works on at once, which a core's cache holds: 128 KiB of float32."""

PIECE = 1 << 16
"""Elements that one of two threads works on at once: in smaller blocks each would wait for the other's Python."""

LONG = 1 << 20
"""Elements from which on a second thread is worth waking."""

Work = Callable[[int, int], None]
"""Works on the elements from one place up to another."""


@contextmanager
def second_thread(dim: int, least: int = LONG) -> Iterator[ThreadPoolExecutor | None]:
    """A block with a thread beside this one, for vectors of ``dim`` elements; None where it would gain nothing.

    Args:
        dim: How long they are.
        least: How long they must be.
    """
    if dim < least or _cores() == 1:
        yield None
        return
    with ThreadPoolExecutor(1, "umbel-second") as pool:
        yield pool


def at_once(pool: ThreadPoolExecutor | None, dim: int) -> int:
    """Return how many of ``dim`` elements a thread works on at once, at most."""
    return BLOCK if pool is None or dim < LONG else PIECE


def cut(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the places from one up to another in blocks of ``size`` at most."""
    return ((low, min(low + size, end)) for low in range(begin, end, size))


def in_blocks(
    pool: ThreadPoolExecutor | None,
    dim: int,
    work: Work,
    others: Work | None = None,
    blocks: Iterable[tuple[int, int]] | None = None,
) -> None:
    """Have all of ``dim`` elements worked on, each once; of a long vector each thread takes a block until none is left.

    Args:
        pool: The second thread; None for this one alone.
        dim: How many elements there are.
        work: What becomes of an element must depend on its own values alone.
        others: What the second thread calls instead, where it needs something of its own.
        blocks: Which elements are worked on at once; as many as ``at_once`` says where it is left out.
    """
    left = deque(cut(0, dim, at_once(pool, dim)) if blocks is None else blocks)

    def take(each: Work) -> None:
        for low, high in _claimed(left):
            each(low, high)

    if pool is None or dim < LONG:
        take(work)
        return
    # What numpy is to say of overflow is this thread's setting.
    other = pool.submit(contextvars.copy_context().run, take, others or work)
    take(work)
    other.result()


def _claimed(left: deque[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what is left, each to one of the threads that ask."""
    while True:
        try:
            block = left.popleft()
        except IndexError:
            return
        yield block


def _cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Only some systems can say so.
        return os.cpu_count() or 1
