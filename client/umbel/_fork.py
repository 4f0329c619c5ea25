"""What a forked process makes anew: no thread of its parent goes on in it, and none lets go of a lock there."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import MethodType
from typing import cast

_methods: weakref.WeakKeyDictionary[object, Callable[..., None]] = weakref.WeakKeyDictionary()

_left_alone: list[object] = []


def renew_in_child(method: Callable[[], None]) -> None:
    """Call a bound method, one of each object, in every process that is forked from now on, for as long as its object lives.

    The child's one thread calls it before anything else runs, and in no order that could be told: it takes no lock
    and only lets go of what was the parent's.
    """
    # Kept by its object, which lives no longer for it; a WeakMethod complains when the interpreter ends.
    bound = cast(MethodType, method)
    _methods[bound.__self__] = bound.__func__


def leave_alone(thing: object) -> None:
    """Keep something of the parent's for ever, because to end it here could wait, or end what the parent uses."""
    _left_alone.append(thing)


class Lock:
    """A lock that is free in a forked process, whichever thread of the parent held it."""

    def __init__(self) -> None:
        self._renew()
        renew_in_child(self._renew)

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take it; False if another thread has it and ``blocking`` is False."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()


def _renew() -> None:
    for item, method in list(_methods.items()):
        method(item)


# Windows cannot fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
