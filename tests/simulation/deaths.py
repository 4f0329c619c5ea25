"""How a server ends in the middle of its work, within this process: by an exception that nothing in umbel handles."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from sqlalchemy import Connection, Engine, event


class PowerCut(BaseException):
    """Nothing in umbel handles it."""


Deaths = Callable[[int], AbstractContextManager[None]]
"""n -> a block in which the server ends at the n-th of something."""


@contextlib.contextmanager
def before_commit(number: int) -> Iterator[None]:
    """End before the store's n-th write is on the disk."""
    count = itertools.count(1)

    def die(connection: Connection) -> None:
        if connection.get_execution_options().get("umbel_writes") and next(count) == number:
            raise PowerCut

    event.listen(Engine, "commit", die)
    try:
        yield
    finally:
        event.remove(Engine, "commit", die)


@contextlib.contextmanager
def after_commit(number: int) -> Iterator[None]:
    """End after the store's n-th write, before anything else is read or written there."""
    done = 0

    def note(connection: Connection) -> None:
        nonlocal done
        done += bool(connection.get_execution_options().get("umbel_writes"))

    def die(_connection: Connection) -> None:
        if done == number:
            raise PowerCut

    event.listen(Engine, "commit", note)
    event.listen(Engine, "begin", die)
    try:
        yield
    finally:
        event.remove(Engine, "commit", note)
        event.remove(Engine, "begin", die)


@contextlib.contextmanager
def before_sync(number: int) -> Iterator[None]:
    """End before the n-th file or directory, of checkpoints and the trained model, is on the disk."""
    count, sync = itertools.count(1), os.fsync

    def die(descriptor: int) -> None:
        if next(count) == number:
            raise PowerCut
        sync(descriptor)

    os.fsync = die
    try:
        yield
    finally:
        os.fsync = sync
