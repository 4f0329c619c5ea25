"""A store as an older umbel made it: empty, and of an earlier schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL

from umbel_server.store.database import Database
from umbel_server.store.schema import MIGRATIONS


def older_store(place: Path | URL, schema: str) -> Database:
    """Return the store's database.

    Args:
        place: Where to make it.
        schema: The last migration that it has, such as ``0011``.
    """
    database = Database(place)
    database.kind.make()
    migrate(database, schema)
    return database


def migrate(database: Database, schema: str) -> None:
    """Bring a store up to a schema, in one transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, schema)
