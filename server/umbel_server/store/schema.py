"""Bring a store's tables up to date, once, whoever comes first."""

from __future__ import annotations

import os
from pathlib import Path

from umbel_proto.errors import StorageError
from umbel_server.store.database import Database, damaged

HEAD = "0002"
"""The newest migration: a store that says so is used as it is, without loading Alembic."""

MIGRATIONS = Path(__file__).parent / "migrations"


def prepare(database: Database) -> None:
    """Check a store for damage and migrate it to ``HEAD``.

    Raises:
        StorageError: It is damaged, cannot be written, or was made by a newer umbel.
    """
    _make(database.path)
    _check(database)
    version = _version(database)
    if version == HEAD:
        return
    if version is not None and version > HEAD:
        raise StorageError(
            f"The store {database.path} has schema {version}, and this umbel knows {HEAD}: update umbel."
        )
    _migrate(database)


def _make(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's other files take its mode.
    except OSError as exc:
        raise StorageError(f"The store {path} cannot be opened: {exc.strerror}.") from exc


def _check(database: Database) -> None:
    with database.read() as connection:
        if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one() != "ok":
            raise damaged(database.path)


def _version(database: Database) -> str | None:
    with database.read() as connection:
        present = connection.exec_driver_sql(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
        ).scalar()
        if present is None:
            return None
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return None if version is None else str(version)


def _migrate(database: Database) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    # The transaction is the lock: whoever comes second waits for it, and finds nothing left to do.
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)
