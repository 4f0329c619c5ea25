"""The connection to SQLite: durable transactions, and one sentence for each way a disk can fail."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError

from umbel_proto.errors import StorageError, UnavailableError

BUSY_TIMEOUT_MS = 10_000
_WRITES = "umbel_writes"


class DiskFullError(StorageError):
    """The disk is full: nothing of the transaction was kept."""


class Database:
    """One SQLite file. Reads run beside each other and beside the one writer; a commit is on disk.

    Args:
        path: The file; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine: Engine = create_engine(
            URL.create("sqlite", database=str(path)),
            pool_size=32,
            max_overflow=-1,
            connect_args={"timeout": 0},
        )
        # SQLite wakes the next writer by polling; within the process a lock does it at once.
        self._writer = threading.Lock()
        event.listen(self.engine, "connect", _configure)
        event.listen(self.engine, "begin", _begin)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment of the store.

        Raises:
            StorageError: The store is damaged or cannot be read.
        """
        with storage_errors(self.path), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection whose changes are all on disk when the block ends, or none if it raises.

        Raises:
            DiskFullError: The disk is full.
            StorageError: The store is damaged or cannot be written.
            UnavailableError: Another process held the store for too long.
        """
        with self._writer, storage_errors(self.path), self.engine.connect() as connection:
            writing = connection.execution_options(**{_WRITES: True})
            with writing.begin():
                yield writing

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours; a broken constraint passes, for the caller knows what it means."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as exc:
        raise _storage_error(exc.orig, path) from exc
    except sqlite3.Error as exc:
        raise _storage_error(exc, path) from exc


def _storage_error(exc: BaseException | None, path: Path) -> StorageError | UnavailableError:
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # Without the extension.
    match code:
        case sqlite3.SQLITE_FULL:
            return DiskFullError(f"No space is left on the disk of {path}: free some and try again.")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return damaged(path)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return UnavailableError(f"The store {path} is busy: try again.")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StorageError(f"The store {path} cannot be opened for writing: check who owns it.")
        case _:
            return StorageError(f"The store {path} fails: {exc}.")


def damaged(path: Path) -> StorageError:
    """Return the error for a store that SQLite cannot make sense of."""
    return StorageError(f"The store {path} is corrupted: stop the services and restore it from a backup.")


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # We begin transactions ourselves, see _begin.
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute(
        "PRAGMA synchronous = FULL"
    )  # In WAL mode NORMAL may lose the last commits in a power cut.
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA trusted_schema = OFF")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A deferred transaction that first reads cannot wait for its turn to write: it fails at once.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
