"""Schedules at a fleet's service, as commands make, read and change them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel_server.remote.client import Client, path
from umbel_server.remote.place import needed
from umbel_server.remote.plan_file import fields_of

if TYPE_CHECKING:
    from umbel_server.learning.scheduling import When
    from umbel_server.store.schedules import State


class SchedulesFar:
    """The schedules at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def add(self, name: str, plan: Path, when: When) -> dict[str, Any]:
        """Check a plan, and let runs of it begin by themselves."""
        made: dict[str, Any] = self._client.post(
            "/schedules",
            {
                "name": name,
                "plan": fields_of(plan),
                "every_s": when.every_s,
                "at_s": when.at_s,
                "labels": when.labels,
                "now": when.now,
            },
        )
        return made

    def all(self) -> list[dict[str, Any]]:
        """Return every schedule, by name."""
        return list(self._client.pages("/schedules"))

    def set_state(self, name: str, state: State, reason: str) -> None:
        """Pause a schedule, or let it go on."""
        self._do(name, "pause" if state == "paused" else "resume", reason)

    def hasten(self, name: str, reason: str) -> None:
        """Let a schedule's next run begin now."""
        self._do(name, "begin", reason)

    def remove(self, name: str, reason: str) -> None:
        """Remove a schedule."""
        self._do(name, "remove", reason)

    def _do(self, name: str, what: str, reason: str) -> None:
        self._client.post(path("schedules", name, what), {"reason": needed(reason)})
