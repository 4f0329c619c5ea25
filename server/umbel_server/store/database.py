"""The connection to the database: durable transactions, and one sentence for each way they can fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import URL, ColumnElement, Connection, Engine, Table, Text, any_, literal
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from umbel_proto.errors import StorageError, UnavailableError
from umbel_server.store.failures import DiskFullError as DiskFullError
from umbel_server.store.failures import RepeatableError, busy
from umbel_server.store.postgresql import Postgresql
from umbel_server.store.sqlite import Sqlite

ATTEMPTS = 5
"""How often a transaction is tried that the database gives up in favor of others."""

_Result = TypeVar("_Result")


class Kind(Protocol):
    """What SQLite and PostgreSQL do differently."""

    @property
    def name(self) -> str:
        """What operators call the store; without a password."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What the driver raises."""

    def engine(self) -> Engine:
        """Return an engine whose commits are durable."""

    def make(self) -> None:
        """Make what must be there before the first connection."""

    def check(self, connection: Connection) -> None:
        """Raise StorageError if the store is damaged, or can be none."""

    def check_all(self, connection: Connection) -> None:
        """Do what ``check`` does, however long it takes."""

    def reading(self, connection: Connection) -> Connection:
        """Return the connection, about to read one moment of the store."""

    def writing(self, connection: Connection) -> Connection:
        """Return the connection, about to write."""

    def wait_for_turn(self, connection: Connection) -> None:
        """Wait until nobody else changes the store, in a transaction that has begun."""

    def failure(self, exc: BaseException | None) -> StorageError | UnavailableError:
        """Return our error for one of the driver's."""


class Database:
    """A SQLite file or a PostgreSQL database. Reads run beside each other and beside writers.

    Args:
        where: The file, made when missing; or the database's URL, as ``postgresql_url`` reads it.
    """

    def __init__(self, where: Path | URL) -> None:
        self.where = where
        self.kind: Kind = Postgresql(where) if isinstance(where, URL) else Sqlite(where)
        self.engine = self.kind.engine()
        # SQLite wakes the next writer by polling; within the process a lock does it at once.
        self._writer = threading.Lock()
        self._here = threading.local()

    def __repr__(self) -> str:
        return f"Database({self.name!r})"

    @property
    def name(self) -> str:
        """What operators call it; without a password."""
        return self.kind.name

    @property
    def is_postgresql(self) -> bool:
        """Whether it is PostgreSQL, for what only that has: partitions, arrays."""
        return isinstance(self.kind, Postgresql)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment of the store.

        Raises:
            StorageError: The store is damaged or cannot be read.
            UnavailableError: It does not answer.
        """
        held: Connection | None = getattr(self._here, "connection", None)
        if held is not None:
            with self._errors():
                yield held
            return
        with self._errors(), self.engine.connect() as connection:
            reading = self.kind.reading(connection)
            with reading.begin():
                yield reading

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """Let every ``read`` of this thread until the block ends see the same moment, over one connection.

        What is shown together belongs together, and PostgreSQL is asked for it without a transaction for each part.
        What the thread writes meanwhile, it does not see.

        Raises:
            StorageError: As ``read``.
            UnavailableError: As ``read``.
        """
        with self.read() as connection:
            before = getattr(self._here, "connection", None)
            self._here.connection = connection
            try:
                yield
            finally:
                self._here.connection = before

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection whose changes are all on disk when the block ends, or none if it raises.

        One block runs at a time, over all processes: what it read stays true until its end, but for what
        ``write_beside`` changes.

        Raises:
            DiskFullError: The disk is full.
            StorageError: The store is damaged or cannot be written.
            UnavailableError: Another process held the store for too long, or it does not answer.
        """
        with self._writer, self._transaction() as connection:
            self.kind.wait_for_turn(connection)
            yield connection

    @contextmanager
    def write_beside(self) -> Iterator[Connection]:
        """As ``write``, without waiting for other writers where the database has no need to.

        For changes that hold whatever others do meanwhile: rows of one's own, upserts. Two blocks that change
        the same rows do so in the same order, or the database gives one of them up.

        Raises:
            DiskFullError: The disk is full.
            StorageError: The store is damaged or cannot be written.
            UnavailableError: Another process held the store for too long, or it does not answer.
        """
        with nullcontext() if self.is_postgresql else self._writer, self._transaction() as connection:
            yield connection

    def write_again(self, change: Callable[[Connection], _Result]) -> _Result:
        """Run a change beside other writers, again if the database gives it up: it must bear that.

        Raises:
            StorageError: As ``write_beside``.
            UnavailableError: As ``write_beside``.
        """
        for _ in range(ATTEMPTS - 1):
            try:
                with self.write_beside() as connection:
                    return change(connection)
            except RepeatableError:
                continue
        with self.write_beside() as connection:
            return change(connection)

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._errors(), self.engine.connect() as connection:
            writing = self.kind.writing(connection)
            with writing.begin():
                yield writing

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the driver's errors into ours; a broken constraint passes, for the caller knows what it means."""
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as exc:
            raise self.kind.failure(exc.orig) from exc
        except NoConnectionError as exc:
            raise busy(self.name) from exc
        except self.kind.errors as exc:
            raise self.kind.failure(exc) from exc


def insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an ``INSERT`` of the connection's dialect, with ``on_conflict_do_nothing`` and ``.._update``."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def among(connection: Connection, column: ColumnElement[str], names: Collection[str]) -> ColumnElement[bool]:
    """Return whether a column is one of some names: to PostgreSQL one parameter, not a statement of hundreds each time."""
    if connection.dialect.name == "postgresql":
        return column == any_(literal(list(names), postgresql.ARRAY(Text)))
    return column.in_(names)
