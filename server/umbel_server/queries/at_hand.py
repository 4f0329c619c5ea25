"""Queries where the fleet's directory is at hand, as commands ask and show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umbel_proto.errors import UsageError
from umbel_proto.ids import RunId
from umbel_server.access.actor import local_actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.fleet.layout import FleetDir
from umbel_server.queries.plan import question_of
from umbel_server.queries.shown import query_json
from umbel_server.store.store import Store


class QueriesAtHand:
    """The queries of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def ask(self, fields: dict[str, Any], *, dry_run: bool) -> dict[str, Any]:
        """Check a question and, unless it is only tried, ask it; return what it will cost and how exact it will be."""
        from umbel_server.queries.ask import ask

        told = ask(self._fleet, self._store, question_of(fields), dry_run=dry_run, actor=local_actor())
        if not dry_run:
            keep_checkpoint(self._fleet, self._store)
        return told

    def all(self) -> list[dict[str, Any]]:
        """Return every query, the oldest first."""
        return [query_json(self._store, record) for record in self._store.queries.all()]

    def show(self, name: str) -> dict[str, Any]:
        """Return a query and what it answered."""
        record = self._store.queries.get(RunId(name))
        if record is None:
            raise UsageError(f"There is no query {name[:63]!r} in this fleet:  umbel query list  shows them.")
        return query_json(self._store, record)
