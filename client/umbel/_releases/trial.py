"""Trying a package that may crash or hang: a mark that outlives the process, and a limit of time.

A mark is a file that its process holds a lock on. The lock is the kernel's and goes with the process, however
that ends: a mark that nobody holds is of a process that died before it could take the mark away.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from umbel._home.files import SECRET_MODE, make_private_directory, storage_error, sync_directory
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.ids import check_name

TRIAL_S = 30.0
"""How long a package may take to load and to pass its golden vectors, seconds."""

T = TypeVar("T")


class Purpose(StrEnum):
    """What a package is loaded for."""

    trial = "trial"
    """To see whether it may become active: one crash is enough to refuse it."""
    start = "start"
    """To answer: only several crashes in a short time are held against it."""
    beside = "beside"
    """To be asked beside the one that answers: the same."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A load that was begun.

    Args:
        purpose: What for.
        model: The model.
        version: Its version.
        sha256: Its package.
        at_s: When, Unix seconds.
    """

    purpose: Purpose
    model: str
    version: int
    sha256: str
    at_s: float


class Mark:
    """An attempt that is under way. ``end`` takes it away."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    def end(self) -> None:
        """Say that the process has lived through it. A second time does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(descriptor)


class Marks:
    """The marks of a shelf. Whoever calls holds the shelf's lock.

    Args:
        folder: Where they are; made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, attempt: Attempt) -> Mark:
        """Put a mark on the disk, before the attempt.

        Raises:
            StorageError: The disk is full or damaged.
        """
        make_private_directory(self._folder)
        path = self._folder / secrets.token_hex(8)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.write(descriptor, json.dumps(asdict(attempt)).encode())
                os.fsync(descriptor)
                sync_directory(self._folder)
            except BaseException:
                Mark(path, descriptor).end()
                raise
        except OSError as exc:
            raise storage_error(exc, path) from exc
        return Mark(path, descriptor)

    def crashed(self) -> list[tuple[Attempt, Path]]:
        """Return the attempts whose process died, each with its mark's file, which is the caller's to remove.

        Raises:
            StorageError: A mark cannot be read.
        """
        try:
            return [found for path in sorted(self._folder.iterdir()) if (found := _crashed(path)) is not None]
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise storage_error(exc, self._folder) from exc

    def any(self) -> bool:
        """Whether there is a mark at all; no lock is needed to ask."""
        try:
            return next(self._folder.iterdir(), None) is not None
        except OSError:
            return False


def within(limit_s: float, work: Callable[[], T], what: str) -> T:
    """Return what ``work`` returns, or raise what it raises, unless it takes too long.

    A runtime that hangs cannot be interrupted: it is left behind, in a thread of its own.

    Args:
        limit_s: How long it may take, seconds.
        work: What to do.
        what: What it is, for the sentence: a version of a model.

    Raises:
        PackageError: It took too long.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as exc:
            result.set_exception(exc)

    threading.Thread(target=run, name="umbel-trial", daemon=True).start()
    try:
        return result.result(limit_s)
    except TimeoutError as exc:
        if result.done():
            raise
        raise PackageError(f"{what} was not ready after {limit_s:g} s: this device does not use it.") from exc


def _crashed(path: Path) -> tuple[Attempt, Path] | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A mark that was taken away between the two calls above is of a process that lives.
        raw = path.read_bytes()
    except (BlockingIOError, FileNotFoundError):
        return None
    finally:
        os.close(descriptor)
    try:
        fields = json.loads(raw)
        attempt = Attempt(
            Purpose(fields["purpose"]),
            check_name(fields["model"], "model"),
            int(fields["version"]),
            str(fields["sha256"]),
            float(fields["at_s"]),
        )
    except (ValueError, KeyError, TypeError, UsageError):
        # The process died while it wrote the mark, before it began the attempt.
        path.unlink(missing_ok=True)
        return None
    return attempt, path
