"""SQLite files of the device, and one sentence for each way a disk can fail them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from umbel._files import SECRET_MODE
from umbel_proto.errors import StorageError, UnavailableError

BUSY_TIMEOUT_S = 10.0


def connect(
    path: Path, schema: str, *, synchronous: Literal["NORMAL", "FULL"], advice: str
) -> sqlite3.Connection:
    """Open a database, making it if need be.

    Args:
        path: The file.
        schema: Statements that make the tables where they are missing.
        synchronous: In WAL mode a commit survives the end of the process either way; only ``FULL``
            also waits until it survives a power cut.
        advice: What to do about a damaged file: the end of the error's sentence.

    Returns:
        A connection for any thread, one at a time, that begins transactions when told to.

    Raises:
        StorageError: The file is damaged, or the disk is full.
    """
    with storage_errors(path, advice):
        path.touch(SECRET_MODE)
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("PRAGMA journal_size_limit = 1048576")
            connection.execute("PRAGMA trusted_schema = OFF")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise _damaged(path, advice)
            connection.executescript(schema)
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, path: Path, advice: str) -> Iterator[sqlite3.Connection]:
    """A block whose changes are kept all or, if it raises, not at all; one writer at a time.

    Raises:
        StorageError: The file is damaged, or the disk is full.
        UnavailableError: Another process held the file for too long.
    """
    with storage_errors(path, advice):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def storage_errors(path: Path, advice: str) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except OSError as exc:
        raise StorageError(f"{path} cannot be opened ({exc.strerror}): check who owns it.") from exc
    except sqlite3.Error as exc:
        match getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:  # Without the extension.
            case sqlite3.SQLITE_FULL:
                sentence = f"No space is left on the disk of {path}: free some and try again."
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise _damaged(path, advice) from exc
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise UnavailableError(f"{path} is in use by another process: try again.") from exc
            case _:
                sentence = f"{path} cannot be used ({exc}): check its disk and who owns it."
        raise StorageError(sentence) from exc


def _damaged(path: Path, advice: str) -> StorageError:
    return StorageError(f"{path} is damaged: {advice}")
