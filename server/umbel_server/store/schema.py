"""Bring a store's tables up to date, once, whoever comes first."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import inspect

from umbel_proto.errors import StorageError
from umbel_server.store.database import Database

HEAD = "0021"
"""The newest migration: a store that says so is used as it is, without loading Alembic."""

MIGRATIONS = Path(__file__).parent / "migrations"


def prepare(database: Database) -> None:
    """Check a store for damage and migrate it to ``HEAD``.

    Raises:
        StorageError: It is damaged, cannot be written, or was made by a newer umbel.
        UnavailableError: It does not answer.
    """
    database.kind.make()
    with database.read() as connection:
        database.kind.check(connection)
    version = schema_of(database)
    if version == HEAD:
        return
    if version is not None and version > HEAD:
        raise StorageError(
            f"The store {database.name} has schema {version}, and this umbel knows {HEAD}: update umbel. "
            "A schema is never taken back: for the older umbel, restore a backup of before."
        )
    _migrate(database)


def schema_of(database: Database) -> str | None:
    """Return the newest migration that a store has seen; None: it is no store yet."""
    with database.read() as connection:
        if not inspect(connection).has_table("alembic_version"):
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
