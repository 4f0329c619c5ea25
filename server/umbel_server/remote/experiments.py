"""Experiments at a fleet's service, as commands read and change them."""

from __future__ import annotations

from typing import Any

from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.remote.client import Client, path
from umbel_server.remote.place import needed

SHOWN = 100_000
"""So many devices of each arm are asked for."""


class ExperimentsFar:
    """The experiments at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def plan(self, model: str, version: int, plan: ExperimentPlan, *, name: str | None) -> dict[str, Any]:
        """Return whom an experiment would draw."""
        drawn: dict[str, Any] = self._client.post(
            "/experiments/plan", _asked(model, version, plan, name) | {"shown": SHOWN}
        )
        return drawn

    def start(
        self, model: str, version: int, plan: ExperimentPlan, *, name: str | None, reason: str
    ) -> dict[str, Any]:
        """Begin an experiment."""
        asked = _asked(model, version, plan, name) | {"reason": needed(reason)}
        made: dict[str, Any] = self._client.post("/experiments", asked)
        return made

    def all(self) -> list[dict[str, Any]]:
        """Return every experiment, the newest first."""
        # The API lists by name, which is the order of those that began at once.
        return sorted(self._client.pages("/experiments"), key=lambda each: -float(each["created_s"]))

    def show(self, name: str) -> dict[str, Any]:
        """Return an experiment with what it says; of a decided one, what was seen then."""
        shown: dict[str, Any] = self._client.get(path("experiments", name))
        return shown

    def decide(self, name: str, decision: str, reason: str, *, days: float | None) -> dict[str, Any]:
        """Put a decision on record, and return the experiment after it."""
        asked = {"decision": decision, "days": days, "reason": needed(reason)}
        after: dict[str, Any] = self._client.post(path("experiments", name, "decide"), asked)
        return after


def _asked(model: str, version: int, plan: ExperimentPlan, name: str | None) -> dict[str, Any]:
    return {"model": model, "version": version, "name": name, "plan": plan.to_dict()}
