"""Experiments where the fleet's directory is at hand, as commands read and change them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel_server.access.actor import local_actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.experiments.begin import begin, design
from umbel_server.experiments.decision import decide
from umbel_server.experiments.dry_run import dry_run
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.experiments.shown import experiment_json, shown_json
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

if TYPE_CHECKING:
    from umbel_server.rollouts.begin import Proposal


class ExperimentsAtHand:
    """The experiments of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def plan(self, model: str, version: int, plan: ExperimentPlan, *, name: str | None) -> dict[str, Any]:
        """Return whom an experiment would draw."""
        return dry_run(self._store, self._design(model, version, plan, name), plan)

    def start(
        self, model: str, version: int, plan: ExperimentPlan, *, name: str | None, reason: str
    ) -> dict[str, Any]:
        """Begin an experiment."""
        proposal = self._design(model, version, plan, name)
        made, rollout = begin(self._store, proposal, plan, actor=local_actor(), reason=reason)
        keep_checkpoint(self._fleet, self._store)
        return experiment_json(made, rollout)

    def all(self) -> list[dict[str, Any]]:
        """Return every experiment, the newest first."""
        store = self._store
        return [experiment_json(each, store.rollouts.get(each.id)) for each in store.experiments.all()]

    def show(self, name: str) -> dict[str, Any]:
        """Return an experiment with what it says; of a decided one, what was seen then."""
        return shown_json(self._store, name)

    def decide(self, name: str, decision: str, reason: str, *, days: float | None) -> dict[str, Any]:
        """Put a decision on record, and return the experiment after it."""
        after = decide(self._store, name, decision, actor=local_actor(), comment=reason, days=days)
        keep_checkpoint(self._fleet, self._store)
        return experiment_json(after, self._store.rollouts.get(name))

    def _design(self, model: str, version: int, plan: ExperimentPlan, name: str | None) -> Proposal:
        kept_days = self._fleet.settings.retention.hours_days
        return design(self._store, model, version, plan, name=name, kept_days=kept_days)
