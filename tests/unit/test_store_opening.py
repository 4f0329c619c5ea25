"""Opening a store: migrations, damage, a full disk."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import event, text

from service_fleet import PlainDevice, make_fleet
from umbel_proto.errors import StorageError, UnavailableError, UsageError
from umbel_server.store import sqlite as sqlite_module
from umbel_server.store.batches import Arrival
from umbel_server.store.database import DiskFullError
from umbel_server.store.schema import HEAD, MIGRATIONS
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import metadata


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store.db") as opened:
        yield opened


def test_the_migrations_make_every_constraint_and_index_that_the_code_declares(store: Store) -> None:
    """compare_metadata sees neither check constraints nor partial indexes on SQLite."""
    tables = metadata.tables.values()
    items = [item for table in tables for item in (*table.constraints, *table.indexes)]
    named = {str(name) for item in items if (name := getattr(item, "name", None))}
    with store.database.read() as connection:
        statements = text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        schema = " ".join(connection.execute(statements).scalars())
    assert "WHERE state = 'sealed'" in schema
    assert {name for name in named if name not in schema} == set()


def test_the_newest_migration_is_the_one_that_needs_no_alembic() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [HEAD]


def test_every_column_says_what_it_means_in_the_tables_and_in_the_migrations() -> None:
    migrations = "".join(path.read_text() for path in (MIGRATIONS / "versions").glob("*.py"))
    for table in metadata.tables.values():
        for column in table.columns:
            assert column.comment, column
            assert f'"{column.comment}"' in migrations, column


def test_only_the_owner_may_read_the_store(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db") as store:
        store.tokens.issue(valid_s=60)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("store.db*")}
        assert set(modes.values()) == {0o600}


def test_an_acknowledged_commit_is_synced_and_foreign_keys_hold(store: Store) -> None:
    with store.database.write() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_file_that_is_no_database_is_called_corrupted(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database at all, " * 100)
    with pytest.raises(StorageError, match=r"store\.db is corrupted: .* restore it from a backup"):
        open_store(path)


def test_a_store_with_a_damaged_page_is_called_corrupted_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with open_store(path) as store:
        for _ in range(300):
            store.tokens.issue(valid_s=60)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    page_size = connection.execute("PRAGMA page_size").fetchone()[0]
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tokens'").fetchone()[0]
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * page_size)
        file.write(os.urandom(page_size))
    with pytest.raises(StorageError, match="corrupted"):
        open_store(path)


def test_of_a_large_store_all_but_what_devices_report_is_looked_through_and_a_check_finds_that_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "WHOLE", 0)
    for table, opens in (("batches", True), ("tokens", False)):
        path = tmp_path / f"{table}.db"
        open_store(path).close()
        with sqlite3.connect(path) as connection:
            page_size = connection.execute("PRAGMA page_size").fetchone()[0]
            (root,) = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
            ).fetchone()
        connection.close()
        with path.open("r+b") as file:
            file.seek((root - 1) * page_size)
            file.write(b"\xff" * page_size)
        if not opens:
            with pytest.raises(StorageError, match="corrupted"):
                open_store(path)
            continue
        with open_store(path) as store:
            with store.database.read() as connection, pytest.raises(StorageError, match="corrupted"):
                store.database.kind.check_all(connection)
            with pytest.raises(StorageError, match="corrupted"), store.database.read() as connection:
                connection.exec_driver_sql("SELECT * FROM batches NOT INDEXED").all()


def test_a_truncated_store_is_called_corrupted(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_store(path).close()
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(StorageError, match="corrupted"):
        open_store(path)


def test_a_fleet_whose_store_is_elsewhere_or_lost_gets_no_empty_one(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    for file in fleet.path.glob("store.db*"):
        file.unlink()
    with pytest.raises(UsageError, match=r"store\.db is not there: .* say where in UMBEL_STORE_URL"):
        fleet.open_store()
    assert not fleet.store_db.exists()


def test_a_store_in_no_directory_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened: No such file"):
        open_store(tmp_path / "nowhere" / "store.db")


def limit_pages(store: Store, extra: int) -> None:
    """Let the database grow by so many pages: SQLite then answers as it does on a full disk."""

    def configure(connection: Any, _record: object, _proxy: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + extra}")

    event.listen(store.database.engine, "checkout", configure)


def test_a_full_disk_keeps_nothing_of_the_transaction_and_says_so(store: Store) -> None:
    device = PlainDevice()
    admitted = store.devices.enroll(device.application(store.tokens.issue(valid_s=60)), certificate_life_s=60)
    store.batches.append(admitted.id, [Arrival(bytes(16), "key", b"header", b"small")])
    limit_pages(store, 4)
    arrivals = [Arrival(bytes([n] * 16), "key", b"header", bytes(10_000)) for n in range(1, 9)]
    with pytest.raises(DiskFullError, match=r"No space is left on the disk of .*store\.db"):
        store.batches.append(admitted.id, arrivals)
    assert [len(sealed.ciphertext) for sealed in store.batches.sealed(limit=100)] == [len(b"small")]


def test_a_store_that_another_process_holds_for_too_long_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_TIMEOUT_MS", 50)
    with open_store(tmp_path / "store.db") as store:
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="busy"):
            store.tokens.issue(valid_s=60)
        other.execute("ROLLBACK")
        other.close()
        store.tokens.issue(valid_s=60)
