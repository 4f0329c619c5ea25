"""SQLite files of the device, and one sentence for each way a disk can fail them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

from umbel._fork import leave_alone, renew_in_child
from umbel._home.files import SECRET_MODE
from umbel_proto.errors import StorageError, UnavailableError, UsageError

BUSY_TIMEOUT_S = 10.0


def connect(
    path: Path,
    schema: str,
    *,
    synchronous: Literal["NORMAL", "FULL"],
    advice: str,
    pragmas: Sequence[str] = (),
) -> sqlite3.Connection:
    """Open a database, making it if need be.

    Args:
        path: The file.
        schema: Statements that make the tables where they are missing.
        synchronous: In WAL mode a commit survives the end of the process either way; only ``FULL``
            also waits until it survives a power cut.
        advice: What to do about a damaged file: the end of the error's sentence.
        pragmas: What else holds for every connection: ``foreign_keys = ON``.

    Returns:
        A connection for any thread, one at a time, that begins transactions when told to. A forked process opens
        one of its own when it first uses it.

    Raises:
        StorageError: The file is damaged, or the disk is full.
    """
    connection = _Connection(lambda: _connect(path, schema, synchronous, advice, pragmas))
    # It does all that is done with a connection here, and says so itself.
    return cast(sqlite3.Connection, connection)


class _Connection:
    """A connection of this process. SQLite allows none to be used, or even closed, in another one."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._current: sqlite3.Connection | None = connect()
        renew_in_child(self._renew)

    def __getattr__(self, name: str) -> object:
        if self._current is None:
            self._current = self._connect()
        return getattr(self._current, name)

    def close(self) -> None:
        """Close it; one that was never opened here is the parent's to close."""
        if self._current is not None:
            self._current.close()

    def _renew(self) -> None:
        leave_alone(self._current)
        self._current = None


def _connect(
    path: Path, schema: str, synchronous: Literal["NORMAL", "FULL"], advice: str, pragmas: Sequence[str]
) -> sqlite3.Connection:
    with storage_errors(path, advice):
        path.touch(SECRET_MODE)
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _use_write_ahead_log(connection)
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("PRAGMA journal_size_limit = 1048576")
            connection.execute("PRAGMA trusted_schema = OFF")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise _damaged(path, advice)
            connection.executescript(schema)
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Turn a new file to WAL mode, which it keeps.

    Where several connections do it at once, SQLite calls the file locked without waiting.
    """
    give_up_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                raise
            time.sleep(0.01)
        else:
            return


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
        if "closed database" in str(exc):
            raise UsageError(
                f"{path} was closed, alone or with its device: ask an open device for it again."
            ) from exc
        match getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:  # Without the extension.
            case sqlite3.SQLITE_FULL:
                sentence = f"No space is left on the disk of {path}: free some and try again."
            case sqlite3.SQLITE_IOERR if _full(path):  # It says so of the file that it keeps beside this one.
                sentence = f"No space is left on the disk of {path}: free some and try again."
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise _damaged(path, advice) from exc
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise UnavailableError(f"{path} is in use by another process: try again.") from exc
            case _:
                sentence = f"{path} cannot be used ({exc}): check its disk and who owns it."
        raise StorageError(sentence) from exc


def _full(path: Path) -> bool:
    try:
        return os.statvfs(path.parent).f_bavail == 0
    except OSError:
        return False


def _damaged(path: Path, advice: str) -> StorageError:
    return StorageError(f"{path} is damaged: {advice}")
