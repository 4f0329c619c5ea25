"""Schedules where the fleet's directory is at hand, as commands make, read and change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umbel_server.access.actor import local_actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.begin import read_mapping
from umbel_server.learning.scheduling import When, schedule
from umbel_server.learning.shown import schedule_json
from umbel_server.store.schedules import State
from umbel_server.store.store import Store


class SchedulesAtHand:
    """The schedules of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def add(self, name: str, plan: Path, when: When) -> dict[str, Any]:
        """Check a plan, and let runs of it begin by themselves."""
        made = schedule(self._fleet, self._store, name, read_mapping(plan), when, local_actor())
        self._changed()
        return schedule_json(made)

    def all(self) -> list[dict[str, Any]]:
        """Return every schedule, by name."""
        return list(map(schedule_json, self._store.schedules.all()))

    def set_state(self, name: str, state: State, reason: str) -> None:
        """Pause a schedule, or let it go on."""
        self._store.schedules.set_state(name, state, local_actor(), reason=reason)
        self._changed()

    def hasten(self, name: str, reason: str) -> None:
        """Let a schedule's next run begin now."""
        self._store.schedules.hasten(name, local_actor(), reason=reason)
        self._changed()

    def remove(self, name: str, reason: str) -> None:
        """Remove a schedule."""
        self._store.schedules.remove(name, local_actor(), reason=reason)
        self._changed()

    def _changed(self) -> None:
        keep_checkpoint(self._fleet, self._store)
