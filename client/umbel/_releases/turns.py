"""Letting other threads have the interpreter, while one works on a package.

Both settings are of the whole interpreter: they are changed while any thread is in such a block.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

from umbel._fork import Lock, renew_in_child

SWITCH_S = 0.00002
"""Seconds after which a thread gives the interpreter to one that waits for it. That one counts anew whenever it wakes and another
was faster, so a question waits for several turns: of 0.5 ms they made 1 to 2. Much less costs threads that compute in Python more
than a tenth of their time."""
YOUNG = 10_000
"""Objects that a process may make, while it works on a package, until Python looks which of them are garbage. A package is a
thousand, most of which go with it; a look may be at every object of the process, and all threads wait for it."""


class _Blocks:
    """Counts the blocks that threads are in, and remembers what was before the first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0
        self._usual_s = 0.0
        self._usual_young = 0
        renew_in_child(self._renew)

    def begin(self) -> None:
        with self._lock:
            if self._count == 0:
                self._usual_s, self._usual_young = sys.getswitchinterval(), gc.get_threshold()[0]
            self._count += 1  # Before anything is changed: from now on a forked process changes it back.
            if self._count == 1:
                sys.setswitchinterval(min(self._usual_s, SWITCH_S))
                if self._usual_young:  # 0: the application looks for garbage itself.
                    gc.set_threshold(max(self._usual_young, YOUNG), *gc.get_threshold()[1:])

    def end(self) -> None:
        with self._lock:
            if self._count == 1:
                self._restore()
            self._count = max(self._count - 1, 0)  # A process that was forked within a block is in none.

    def _restore(self) -> None:
        sys.setswitchinterval(self._usual_s)
        gc.set_threshold(self._usual_young, *gc.get_threshold()[1:])

    def _renew(self) -> None:
        """In a forked process: no thread is left that would end its block."""
        if self._count:
            self._restore()
            self._count = 0


_blocks = _Blocks()


@contextlib.contextmanager
def yielding() -> Iterator[None]:
    """Let other threads take the interpreter back within a fraction of a millisecond, instead of five, for a block.

    Loading a package is Python here and there; a prediction on another thread must not wait for it. Nor for garbage to
    be looked for because of what loading makes: where an application itself makes much, it is looked for all the same.
    """
    _blocks.begin()
    try:
        yield
    finally:
        _blocks.end()
