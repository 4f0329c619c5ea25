"""A store copied into another database: every row, in one transaction, and read back to see that it is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, func, insert, inspect, select, text

from umbel_proto.errors import StorageError, UsageError
from umbel_server.store import store as _every_subject  # noqa: F401  # Each brings its tables.
from umbel_server.store.database import Database
from umbel_server.store.schema import HEAD, prepare, schema_of
from umbel_server.store.tables import metadata

ROWS_PER_STEP = 2000
_HASHES = 1 << 256


@dataclass(frozen=True, slots=True)
class Copied:
    """A table that is in both databases, the same.

    Args:
        table: Its name.
        rows: How many rows it has.
        sha256: The sum, modulo 2**256, of the rows' SHA-256, in hexadecimal: the same in any order.
    """

    table: str
    rows: int
    sha256: str


def copy_store(
    source: Database,
    target: Database,
    *,
    moment: bool = False,
    progress: Callable[[str, int], None] = lambda table, rows: None,
) -> tuple[Copied, ...]:
    """Copy a store into an empty one of any kind; until it returns the target has nothing.

    While it runs nobody changes either, unless a moment's copy will do: who tries waits, and is told that the store is busy.

    Args:
        source: Where the rows are; its schema is up to date.
        target: Where they go; its tables are made, and must be empty.
        moment: Copy the source as it is at one moment, and let it change meanwhile.
        progress: Told after each step: the table, and how many rows of it are copied.

    Raises:
        UsageError: The target has rows, or the source's schema is not this umbel's.
        StorageError: A database fails, or the copy differs.
        UnavailableError: A database is busy or does not answer.
    """
    if schema_of(source) != HEAD:
        raise UsageError(f"The store {source.name} has another schema than this umbel: upgrade it first.")
    prepare(target)
    with source.read() if moment else source.write() as reading, target.write() as writing:
        order = _tables(reading)
        for table in order:
            if writing.execute(select(func.count()).select_from(table)).scalar_one():
                raise UsageError(f"The store {target.name} has rows in {table.name}: copy into an empty one.")
        copied = [_copy(reading, writing, table, progress) for table in order]
        for each, table in zip(copied, order, strict=True):
            if _sum(_rows(writing, table)) != (each.rows, each.sha256):
                raise StorageError(
                    f"The copy of {each.table} in {target.name} differs: nothing is kept of it."
                )
        if target.is_postgresql:
            _continue_numbers(writing, order)
    return tuple(copied)


def _tables(connection: Connection) -> Sequence[Table]:
    """Return every table of a store, those that others point at first."""
    known = metadata.sorted_tables
    present = set(inspect(connection).get_table_names()) - {"alembic_version"}
    # Of a table in parts, the parts are copied with it.
    unknown = {name for name in present if not name.startswith("batches_")} - {table.name for table in known}
    if unknown:
        raise UsageError(
            f"The store has a table {min(unknown)} that is not of umbel: move it elsewhere first."
        )
    return known


def _copy(
    reading: Connection, writing: Connection, table: Table, progress: Callable[[str, int], None]
) -> Copied:
    copied, total = 0, 0
    for some in _steps(_rows(reading, table)):
        writing.execute(insert(table), [dict(zip(table.columns.keys(), row, strict=True)) for row in some])
        copied, total = copied + len(some), total + sum(map(_hash, some))
        progress(table.name, copied)
    return Copied(table.name, copied, _hex(total))


def _rows(connection: Connection, table: Table) -> Iterator[Sequence[Any]]:
    return iter(connection.execute(select(table).execution_options(yield_per=ROWS_PER_STEP)))


def _steps(rows: Iterator[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    some: list[Sequence[Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == ROWS_PER_STEP:
            yield some
            some = []
    if some:
        yield some


def _sum(rows: Iterator[Sequence[Any]]) -> tuple[int, str]:
    count, total = 0, 0
    for row in rows:
        count, total = count + 1, total + _hash(row)
    return count, _hex(total)


def _hash(row: Sequence[Any]) -> int:
    # The repr of bytes, text, whole numbers, floats and None says each value and its type exactly.
    return int.from_bytes(hashlib.sha256(repr(tuple(row)).encode()).digest())


def _hex(total: int) -> str:
    return f"{total % _HASHES:064x}"


def _continue_numbers(connection: Connection, order: Sequence[Table]) -> None:
    """Let columns that number rows go on after the highest."""
    for table in order:
        for column in table.columns:
            sequence = connection.execute(
                text("SELECT pg_get_serial_sequence(:table, :column)"),
                {"table": table.name, "column": column.name},
            ).scalar()
            highest = connection.execute(select(func.max(column))).scalar() if sequence else None
            if highest is not None:
                connection.execute(
                    text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest}
                )
