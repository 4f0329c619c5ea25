"""Months of batches: on PostgreSQL each lies in a partition of its own, made ahead and dropped whole.

What is of no month that has one, for a device's clock may say anything, lies in ``batches_other``.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection

from umbel_server.store.batches import month_of
from umbel_server.store.database import Database

OTHER = "batches_other"
MONTHS_AHEAD = 2
# Whoever comes meanwhile waits behind the lock of a table: rather not this time than everybody.
_BRIEFLY = "SET LOCAL lock_timeout = '200ms'"
_NAME = re.compile(r"batches_(\d{6})")


def months(connection: Connection) -> list[int]:
    """Return the months that have a partition, as in 202611, oldest first."""
    names = connection.exec_driver_sql(
        "SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid "
        "WHERE inhparent = 'batches'::regclass"
    ).scalars()
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def make_ahead(database: Database, now_s: float) -> list[int]:
    """Make the partitions of this month, the one before and those to come; return the months that had none."""
    wanted = [month_before(month_of(now_s))]
    while len(wanted) < 2 + MONTHS_AHEAD:
        wanted.append(month_after(wanted[-1]))
    with database.read() as connection:
        present = months(connection)
    missing = [month for month in wanted if month not in present]
    for month in missing:
        with database.write() as connection:
            if month not in months(connection):
                _make(connection, month)
    return missing


def drop_before(database: Database, cutoff_s: float) -> int:
    """Drop the months of which nothing waits and nothing came since; return how many batches they had."""
    dropped = 0
    with database.read() as connection:
        old = [month for month in months(connection) if month < month_of(cutoff_s)]
        # Counted before anybody is locked out: of a large fleet that takes minutes.
        counts = {month: _count(connection, month) for month in old if _is_over(connection, month, cutoff_s)}
    for month, count in counts.items():
        with database.write() as connection:
            connection.exec_driver_sql(_BRIEFLY)
            if month not in months(connection):
                continue
            table = f"batches_{month}"
            connection.exec_driver_sql(f"LOCK TABLE batches, {table} IN ACCESS EXCLUSIVE MODE")
            if _is_over(connection, month, cutoff_s):
                connection.exec_driver_sql(f"DROP TABLE {table}")
                dropped += count
    return dropped


def _is_over(connection: Connection, month: int, cutoff_s: float) -> bool:
    """Return whether nothing of a month waits and nothing came since; two indexes know."""
    sealed, newest_s = connection.exec_driver_sql(
        f"SELECT EXISTS (SELECT FROM batches_{month} WHERE state = 'sealed'), "  # noqa: S608  # A number that we made.
        f"(SELECT max(received_s) FROM batches_{month})"
    ).one()
    return not sealed and (newest_s is None or newest_s < cutoff_s)


def _count(connection: Connection, month: int) -> int:
    return int(connection.exec_driver_sql(f"SELECT count(*) FROM batches_{month}").scalar_one())  # noqa: S608


def month_after(month: int) -> int:
    """Return the next month: 202701 follows 202612."""
    return month + 1 if month % 100 < 12 else month + 89


def month_before(month: int) -> int:
    """Return the month before."""
    return month - 1 if month % 100 > 1 else month - 89


def _make(connection: Connection, month: int) -> None:
    table = f"batches_{month}"
    connection.exec_driver_sql(_BRIEFLY)
    # Nothing may come for this month between the move and the partition; once a month, and at once.
    connection.exec_driver_sql("LOCK TABLE batches IN SHARE ROW EXCLUSIVE MODE")
    connection.exec_driver_sql(
        f"CREATE TABLE {table} (LIKE batches INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS)"
    )
    connection.exec_driver_sql(
        f"WITH moved AS (DELETE FROM {OTHER} WHERE month = {month} RETURNING *) "  # noqa: S608
        f"INSERT INTO {table} SELECT * FROM moved"
    )
    connection.exec_driver_sql(
        f"ALTER TABLE batches ATTACH PARTITION {table} FOR VALUES FROM ({month}) TO ({month_after(month)})"
    )
