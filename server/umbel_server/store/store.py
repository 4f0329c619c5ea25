"""Open a store and reach its subjects."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from umbel_server.clock import Clock, system_clock
from umbel_server.store.batches import Batches
from umbel_server.store.database import Database
from umbel_server.store.devices import Devices
from umbel_server.store.releases import Releases
from umbel_server.store.rollups import Rollups
from umbel_server.store.runs import Runs
from umbel_server.store.schema import prepare
from umbel_server.store.tokens import Tokens


class Store:
    """Everything the services know. Any number of threads and processes may use it at once."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.tokens = Tokens(database, clock)
        self.devices = Devices(database, clock)
        self.batches = Batches(database, clock)
        self.rollups = Rollups(database, clock)
        self.releases = Releases(database, clock)
        self.runs = Runs(database, clock)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self.database.close()


def open_store(path: Path, *, clock: Clock = system_clock) -> Store:
    """Open a store, made if missing, with its tables brought up to date.

    Args:
        path: The SQLite file.
        clock: Dates what is stored.

    Raises:
        StorageError: It is damaged, cannot be written, or was made by a newer umbel.
    """
    database = Database(path)
    try:
        prepare(database)
    except BaseException:
        database.close()
        raise
    return Store(database, clock)
