"""A store whose disk is full until a test frees it: SQLite then answers as it does where no space is left."""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy import event

from umbel_server.access.actor import Actor
from umbel_server.store.database import DiskFullError
from umbel_server.store.store import Store

SOMEBODY = Actor("somebody", frozenset())


class FullDisk:
    """A SQLite store that cannot grow: no entry of the audit log fits any more.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.database.read() as connection:
            self._pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        event.listen(store.database.engine, "checkout", self._limit)
        for reason in ("x" * 1000, "x" * 100, ""):
            with contextlib.suppress(DiskFullError):
                while True:
                    store.audit.record(SOMEBODY, action="disk.fill", object="disk", reason=reason)

    def free(self) -> None:
        """Free space: from the next connection on the store grows."""
        event.remove(self._store.database.engine, "checkout", self._limit)
        self._store.database.engine.dispose()

    def _limit(self, connection: Any, _record: object, _proxy: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {self._pages}")
