"""Files that are either the old one or the new one, never half of it."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from umbel_proto.errors import StorageError

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
_PART = ".part"


class DiskFullError(StorageError):
    """The disk is full: nothing of what was to be written was kept."""


def write_atomically(path: Path, data: bytes, *, mode: int = SECRET_MODE) -> None:
    """Write a file so that a crash leaves the old content or the new, on disk.

    Args:
        path: Where; its directory exists.
        data: The whole content.
        mode: Permissions; by default only the owner may read.

    Raises:
        StorageError: The disk is full or the directory cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as exc:
        raise storage_error(exc, path) from exc


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed process left of files it was writing; nobody may be writing there now."""
    for path in directory.glob(f".*{_PART}"):
        path.unlink(missing_ok=True)


def read_file(path: Path, what: str) -> bytes:
    """Return a file's bytes.

    Raises:
        StorageError: It is missing or unreadable; the sentence calls it ``what``.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise StorageError(f"The {what} at {path} cannot be read: {exc.strerror}.") from exc


def sync_directory(path: Path) -> None:
    """Put a directory's entries on disk: without it, a new name may not survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_full(what: object) -> DiskFullError:
    """Return the error for what finds no room left on its disk: a file, or a store by its name."""
    return DiskFullError(f"No space is left on the disk of {what}: free some and try again.")


def storage_error(exc: OSError, path: Path) -> StorageError:
    """Return the sentence for a failed write to ``path``."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    return StorageError(f"{path} cannot be written: {exc.strerror}.")
