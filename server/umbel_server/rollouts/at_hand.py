"""Rollouts where the fleet's directory is at hand, as commands read and change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umbel_proto.ids import DeviceId, ModelName, check_name
from umbel_server.access.actor import local_actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.fleet.layout import FleetDir
from umbel_server.rollouts.begin import begin, propose
from umbel_server.rollouts.dry_run import dry_run
from umbel_server.rollouts.holding import hold, pin
from umbel_server.rollouts.plan import RolloutPlan
from umbel_server.rollouts.shown import rollout_json, status_json
from umbel_server.rollouts.state import Event
from umbel_server.store.store import Store


class RolloutsAtHand:
    """The rollouts of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def start(
        self, model: str, version: int, plan: RolloutPlan, *, name: str | None, since: int | None, reason: str
    ) -> dict[str, Any]:
        """Begin a rollout."""
        proposal = propose(self._store, model, version, plan, name=name, since=since)
        made = begin(self._store, proposal, actor=local_actor(), reason=reason)
        self._changed()
        return rollout_json(made)

    def plan(
        self, model: str, version: int, plan: RolloutPlan, *, name: str | None, since: int | None
    ) -> dict[str, Any]:
        """Return whom a rollout would reach."""
        return dry_run(self._store, propose(self._store, model, version, plan, name=name, since=since))

    def all(
        self, *, limit: int | None = None, after: str = ""
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Return rollouts, and what devices get of models that are held.

        All of them, the newest first; with a limit or a name, by name those after it, and a page is read.
        """
        rollouts = self._store.rollouts
        found = rollouts.page(after=after, limit=limit) if limit or after else rollouts.all()
        held = {str(model): version for model, version in rollouts.baselines().items()}
        return [rollout_json(each) for each in found], held

    def status(self, name: str) -> dict[str, Any]:
        """Return where a rollout stands, what its gates say, and what happened to it."""
        return status_json(self._store, self._store.rollouts.get(name), now_s=self._store.clock())

    def happen(self, name: str, event: Event, reason: str) -> dict[str, Any]:
        """Pause a rollout, let it go on, or end it."""
        after = self._store.rollouts.happen(name, event, actor=local_actor(), reason=reason)
        self._changed()
        return rollout_json(after)

    def hold(self, model: str, reason: str) -> int:
        """Let new versions come by rollouts only; return the one that devices get."""
        version = hold(self._store, model, actor=local_actor(), reason=reason)
        self._changed()
        return version

    def unhold(self, model: str, reason: str) -> None:
        """Let the newest version reach every device again."""
        of_model = ModelName(check_name(model, "model"))
        self._store.rollouts.hold(of_model, None, actor=local_actor(), reason=reason)
        self._changed()

    def pin(self, device: str, model: str, version: int | None, reason: str) -> None:
        """Let a device stay at a version; None: let it have what the others get."""
        pin(self._store, device, model, version, actor=local_actor(), reason=reason)
        self._changed()

    def tag(self, device: str, tags: list[str], reason: str) -> None:
        """Give a device these tags and no others."""
        self._store.placements.tag(DeviceId(device), tags, actor=local_actor(), reason=reason)
        self._changed()

    def _changed(self) -> None:
        keep_checkpoint(self._fleet, self._store)
