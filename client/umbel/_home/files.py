"""Files of the device: written whole or not at all, and readable by their owner only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import math
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from umbel_proto.errors import StorageError

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
DIRECTORY_MODE = 0o700
_DRAFT_BYTES = 4
ASK_AGAIN_S = 0.05
"""How often a lock is asked for that is not waited for without end."""


def write_atomically(path: Path, data: bytes, mode: int = SECRET_MODE) -> None:
    """Write a file so that after a crash the disk holds the old content or the new, never a part.

    What a crash leaves beside it, a draft with a dot before the name, goes with the next write of the file.

    Args:
        path: Where; its directory exists.
        data: The whole content.
        mode: Permissions, whatever the umask; by default only the owner may read.

    Raises:
        StorageError: The disk is full or the directory cannot be written.
    """
    try:
        _remove_drafts(path)
        descriptor, draft = _draft(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
                draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as exc:
        raise storage_error(exc, path) from exc


def overwrite(path: Path, data: bytes) -> None:
    """Write a file in the place of what it holds, which takes no room where there is none. A crash may tear it.

    Raises:
        StorageError: It is not there, or cannot be written.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY), "wb") as file:
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise storage_error(exc, path) from exc


def _draft(path: Path) -> tuple[int, Path]:
    """Make an empty file beside another, and lock it: as long as it is locked somebody writes it."""
    while True:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(_DRAFT_BYTES)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_MODE)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, draft
        os.close(descriptor)  # Somebody took it for abandoned before it was locked.


def _remove_drafts(path: Path) -> None:
    """Remove the drafts of a file whose writers were killed: they may hold keys, or examples."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * (2 * _DRAFT_BYTES)}"):
        # Somebody writes it, has just finished it, or owns it.
        with contextlib.suppress(OSError):
            descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink()
            finally:
                os.close(descriptor)


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        StorageError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise StorageError(f"{path} cannot be read ({exc.strerror}): restore it, or enroll again.") from exc


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it, that only its owner may enter.

    Raises:
        StorageError: It cannot be made, or is a file.
    """
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as exc:
        raise storage_error(exc, path) from exc


def linked(file: Path, name: Path) -> bool:
    """Give a file a second name, once it is on the disk; False where the file system has no such thing.

    Args:
        file: Where it is.
        name: Its other name, on the same file system.

    Raises:
        OSError: The disk is full or damaged.
    """
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(file, name)
    except OSError:
        return False
    name.chmod(SECRET_MODE)
    sync_directory(name.parent)
    return True


@contextlib.contextmanager
def locked(path: Path, *, within_s: float = math.inf) -> Iterator[None]:
    """Be the only one, of all threads and processes, in blocks with this file, which is made.

    The lock is the kernel's: it goes with the process, however that ends.

    Args:
        path: The file.
        within_s: How long to wait for others at most, seconds.

    Raises:
        StorageError: The file cannot be made.
        TimeoutError: Others were in such a block for so long.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_MODE)
    except OSError as exc:
        raise storage_error(exc, path) from exc
    try:
        if within_s == math.inf:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _lock_within(descriptor, within_s)
        try:
            yield
        finally:
            # Closing is not enough where a process was forked meanwhile: that has the file open as well.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _lock_within(descriptor: int, seconds: float) -> None:
    """Wait for a lock for so long: the kernel has no word for that, so it is asked again and again."""
    until_s = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                raise TimeoutError(f"others held a lock for {seconds:g} s") from None
            time.sleep(ASK_AGAIN_S)
        else:
            return


def sync_directory(path: Path) -> None:
    """Put a directory's names on disk: without it, a new file may be gone after a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(exc: OSError, path: Path) -> StorageError:
    """Return the sentence for a write to ``path`` that failed."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"No space is left on the disk of {path}: free some and try again.")
    cure = "check who owns it"
    if exc.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENOENT):
        cure = "name a directory that is there, or that can be made"
    if exc.errno == errno.EROFS:
        cure = "mount its disk for writing"
    return StorageError(f"{path} cannot be written ({exc.strerror}): {cure}.")
