"""Taking turns: threads that ask a small model without rest go on one after another, where all are sooner done so.

Python's lock is let go of while a graph runs, and every thread that comes back wakes another, or sleeps until it is
woken. Where the graph takes a few microseconds, that is what eight threads spend most of their time on.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, sleep, thread_time
from typing import TypeVar

from umbel.engines import Seat

TURN_S = 0.0005
"""How long a thread goes on while others rest. To begin takes some 30 microseconds, as others had the processor's
caches."""
PATIENCE = 8
"""Times in a row that a thread may meet another before it rests."""
PAUSE_S = 0.00005
"""A thread that does something else for so long between two questions asks with rest, and need not take any."""
LOOK_S = 0.0003
"""Time of a processor to spend at most on looking for a run that is brief."""

Answer = TypeVar("Answer")


class Turns:
    """Whose turn it is among the threads that ask one version of a model.

    Nothing but time depends on it. Each thread has a seat of its own, and one that has rested goes on, whether the
    others are done or not; so it holds no lock, and nothing that ends within a question keeps others waiting.
    """

    def __init__(self) -> None:
        self._last: object = None
        self._inside: set[object] = set()
        self._resting: set[object] = set()

    def taking(self, ask: Callable[[object], Answer]) -> Callable[[object], Answer]:
        """Return what asks likewise, for one more thread, which rests when it is not its turn.

        One that meets others again and again, and does nothing else between, rests until each of those that rest already
        had a turn.

        Args:
            ask: Answers one question.
        """
        mine, met, left_s, inside, resting = object(), 0, 0.0, self._inside, self._resting
        enter, leave, clock = inside.add, inside.discard, perf_counter

        def in_turn(x: object) -> Answer:
            nonlocal met, left_s
            if self._last is not mine:
                met = met + 1 if inside and (not met or clock() - left_s < PAUSE_S) else 0
                if met > PATIENCE:
                    try:
                        resting.add(mine)
                        sleep(TURN_S * len(resting))
                    finally:
                        resting.discard(mine)
                self._last = mine
            try:
                enter(mine)
                return ask(x)
            finally:
                leave(mine)
                if met:
                    left_s = clock()

        return in_turn


def is_brief(seat: Seat) -> bool:
    """Tell whether a seat's runs take so little that threads had better take turns."""
    # Of this thread's own time: others may ask already, and wait for each other.
    run, begin = seat.run, thread_time()
    now = begin
    while seat.brief_s and now - begin < LOOK_S:
        before = now
        try:
            run()
        except Exception:  # Whatever a runtime raises: who asks will hear it.
            return False
        now = thread_time()
        if now - before < seat.brief_s:
            return True
    return False
