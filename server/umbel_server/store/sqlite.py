"""The store in a SQLite file beside the services: nothing to set up, one writer at a time."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from umbel_proto.errors import StorageError, UnavailableError
from umbel_server.store.failures import busy, damaged, disk_full

BUSY_TIMEOUT_MS = 10_000
WHOLE = 256 * 2**20
"""Bytes of a file that is looked through as a whole whenever it is opened: less than half a second."""
SUMS = frozenset({"batches", "rollups", "device_days", "cohort_rollups"})
"""Tables that grow with what devices report."""
BESIDE = 64 * 1024
"""Bytes of the smallest files beside an open store: its shared memory has 32 KiB, and its log some pages."""
_WRITES = "umbel_writes"


@dataclass(frozen=True, slots=True)
class Sqlite:
    """A store in a file.

    Args:
        path: The file.
    """

    path: Path
    errors: tuple[type[Exception], ...] = (sqlite3.Error,)

    @property
    def name(self) -> str:
        """What operators call it."""
        return str(self.path)

    def engine(self) -> Engine:
        """Return an engine whose connections commit to the disk."""
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            pool_size=32,
            max_overflow=-1,
            connect_args={"timeout": 0},
        )
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        return engine

    def make(self) -> None:
        """Make the file if it is missing, for its owner only.

        Raises:
            StorageError: It cannot be opened.
        """
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's other files take its mode.
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(self.name) from exc
            raise StorageError(f"The store {self.name} cannot be opened: {exc.strerror}.") from exc

    def check(self, connection: Connection) -> None:
        """Look for damage: in a large file not in the sums of what devices report, which are most of it.

        Every service that starts reads what is looked through, and of a file of gigabytes that takes minutes. A damaged
        page of sums is found when it is read, and all of them by ``check_all``.

        Raises:
            StorageError: There is some.
        """
        if self.path.stat().st_size <= WHOLE:
            self.check_all(connection)
            return
        tables = (
            connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
        )
        for table in tables:
            if table not in SUMS:
                self._check(connection, f"PRAGMA quick_check('{table}')")

    def check_all(self, connection: Connection) -> None:
        """Look for damage in the whole file.

        Raises:
            StorageError: There is some.
        """
        self._check(connection, "PRAGMA quick_check(1)")

    def _check(self, connection: Connection, pragma: str) -> None:
        if connection.exec_driver_sql(pragma).scalars().first() != "ok":
            raise damaged(self.name)

    def reading(self, connection: Connection) -> Connection:
        """Return the connection, about to read."""
        return connection

    def writing(self, connection: Connection) -> Connection:
        """Return the connection, about to write."""
        return connection.execution_options(**{_WRITES: True})

    def wait_for_turn(self, connection: Connection) -> None:
        """Do nothing: the transaction began with SQLite's only lock."""

    def failure(self, exc: BaseException | None) -> StorageError | UnavailableError:
        """Return our error for one of SQLite's."""
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # Without the extension.
        match code:
            case sqlite3.SQLITE_FULL:
                return disk_full(self.name)
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if self._lacks_room():
                # So SQLite calls it where there is none for the files that it opens beside the store.
                return disk_full(self.name)
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return damaged(self.name)
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return busy(self.name)
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return StorageError(f"The store {self.name} cannot be opened for writing: check who owns it.")
            case _:
                return StorageError(f"The store {self.name} fails: {exc}.")

    def _lacks_room(self) -> bool:
        """Whether the disk has no room for what SQLite keeps beside a file while it is open."""
        try:
            disk = os.statvfs(self.path.parent)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < BESIDE or (disk.f_files > 0 and disk.f_favail == 0)


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # We begin transactions ourselves, see _begin.
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _use_write_ahead_log(cursor)
    cursor.execute(
        "PRAGMA synchronous = FULL"
    )  # In WAL mode NORMAL may lose the last commits in a power cut.
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA trusted_schema = OFF")
    cursor.close()


def _use_write_ahead_log(cursor: sqlite3.Cursor) -> None:
    """Turn a new file to WAL mode, which it keeps.

    Where several connections do it at once, SQLite calls the file locked without waiting.
    """
    give_up_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                raise
            time.sleep(0.01)
        else:
            return


def _begin(connection: Connection) -> None:
    # A deferred transaction that first reads cannot wait for its turn to write: it fails at once.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
