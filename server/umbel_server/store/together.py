"""Many callers, one commit: what arrives while the disk is busy goes into the next transaction together."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from umbel_proto.errors import UnavailableError
from umbel_server.store.failures import DiskFullError

MANY = 8
"""How many callers shared a commit for the next one to wait for more."""
COMPANY_S = 0.002
"""How long it waits for them."""

_Item = TypeVar("_Item")


@dataclass(slots=True)
class _Waiting(Generic[_Item]):
    item: _Item
    done: bool = False
    error: Exception | None = None
    # Locked until it is done, or its turn to commit; a lock wakes a thread at a fifth of what an Event costs.
    sleep: threading.Lock = field(default_factory=threading.Lock)
    # Who was in the same commit and is told by this one; the last lets the next commit begin.
    after: _Waiting[_Item] | None = None

    def __post_init__(self) -> None:
        self.sleep.acquire()


class Together(Generic[_Item]):
    """Commits what its callers bring, each call returning when its own is on disk.

    The first caller commits for all who wait by then, and there is no thread. Afterwards each wakes the next: woken all
    at once, they would only wait again, for Python's lock, at two switches of threads each. The last of them lets the
    next commit begin: who calls until then shares it, and by as much it costs each less. Where many shared the one
    before, it waits a moment for more of them; a lone caller waits for nobody.

    Args:
        commit: Commits items in one transaction, all or none; again is no harm.
        most: How many items one transaction takes.
        pause: Waits for so many seconds.

    Source:
        PostgreSQL 17, 19.5.1 "Settings": ``commit_delay`` and ``commit_siblings``.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[_Item]], None],
        *,
        most: int,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._commit = commit
        self._most = most
        self._pause = pause
        self._shared_by = 0
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting[_Item]] = deque()
        self._busy = False

    def add(self, item: _Item) -> None:
        """Commit an item; on return it is on disk.

        Raises:
            Exception: What ``commit`` raised for it. One that is wrong spoils no other's.
        """
        mine = _Waiting(item)
        with self._lock:
            self._waiting.append(mine)
            first, self._busy = not self._busy, True
        if not first:
            mine.sleep.acquire()
        try:
            if not mine.done:
                self._commit_some()
        finally:
            if mine.after is not None:
                mine.after.sleep.release()
            else:
                self._let_next_begin()
        if mine.error is not None:
            raise mine.error

    def _commit_some(self) -> None:
        """Commit those who wait longest, this thread's own the first of them, and leave the rest to the next."""
        some: list[_Waiting[_Item]] = []
        try:
            if self._shared_by >= MANY:
                self._pause(COMPANY_S)
            with self._lock:
                some = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            self._shared_by = len(some)
            self._settle(some)
        finally:
            with self._lock:
                # Interrupted: this thread's own is given up, and the next in line commits the others.
                some = some or [self._waiting.popleft()]
                self._waiting.extendleft(reversed([each for each in some[1:] if not each.done]))
            last = some[0]
            for each in some[1:]:
                if each.done:
                    last.after = each
                    last = each

    def _let_next_begin(self) -> None:
        with self._lock:
            self._busy = bool(self._waiting)
            if self._busy:
                self._waiting[0].sleep.release()

    def _settle(self, some: Sequence[_Waiting[_Item]]) -> None:
        try:
            self._commit([each.item for each in some])
        except Exception as exc:
            # What ails the store ails every item; all else may be one item's fault, and the others are innocent.
            if len(some) > 1 and not isinstance(exc, UnavailableError | DiskFullError):
                for each in some:
                    self._settle([each])
                return
            for each in some:
                each.error = exc if len(some) == 1 else copy.copy(exc)
        for each in some:
            each.done = True
