"""One process drives a run: a lock on a file in the run's directory.

The lock is the kernel's: it goes with the process, however that ends, so that a killed server
keeps nobody from going on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from umbel_proto.errors import UsageError
from umbel_server.files import SECRET_MODE, storage_error

LOCK = "lock"
"""The file's name; it holds the id of the process that had the lock last."""


_RUN = "Run {name} is driven by process {holder} already: wait for its end, or stop it first."
_RUNS = "umbel serve runs is process {holder} already in this fleet: stop it first."


@contextlib.contextmanager
def keeping(directory: Path) -> Iterator[None]:
    """Be the one process that keeps a fleet's runs going, for the length of a block.

    Args:
        directory: That of all the fleet's runs; it exists.

    Raises:
        UsageError: Another process does.
        StorageError: The directory cannot be written.
    """
    with driving(directory, taken=_RUNS):
        yield


@contextlib.contextmanager
def driving(directory: Path, *, taken: str = _RUN) -> Iterator[None]:
    """Be the one process that drives a run, for the length of a block.

    Args:
        directory: The run's; it exists.
        taken: What to say where another process is it.

    Raises:
        UsageError: Another process drives it.
        StorageError: The directory cannot be written.
    """
    path = directory / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, SECRET_MODE)
    except OSError as exc:
        raise storage_error(exc, path) from exc
    try:
        _take(descriptor, directory, taken)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)


def require_free(directory: Path) -> None:
    """Say so if a process drives a run; otherwise do nothing.

    Args:
        directory: The run's, whether it exists or not.

    Raises:
        UsageError: A process drives it.
    """
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR)
    except OSError:
        return  # Nobody drove it yet, or what is wrong will be found by who does.
    try:
        _take(descriptor, directory, _RUN)
    finally:
        os.close(descriptor)


def _take(descriptor: int, directory: Path, taken: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise UsageError(taken.format(name=directory.name, holder=holder)) from exc
