"""Queries at a fleet's service, as commands ask and show them."""

from __future__ import annotations

from typing import Any

from umbel_server.remote.client import Client, path


class QueriesFar:
    """The queries at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def ask(self, fields: dict[str, Any], *, dry_run: bool) -> dict[str, Any]:
        """Check a question and, unless it is only tried, ask it; return what it will cost and how exact it will be."""
        told: dict[str, Any] = self._client.post("/queries", {**fields, "dry_run": dry_run})
        return told

    def all(self) -> list[dict[str, Any]]:
        """Return every query, the oldest first."""
        return sorted(self._client.pages("/queries"), key=lambda each: float(each["created_s"]))

    def show(self, name: str) -> dict[str, Any]:
        """Return a query and what it answered."""
        shown: dict[str, Any] = self._client.get(path("queries", name))
        return shown
