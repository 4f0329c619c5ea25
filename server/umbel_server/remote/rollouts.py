"""Rollouts at a fleet's service, as commands read and change them."""

from __future__ import annotations

from itertools import islice
from typing import Any

from umbel_server.remote.client import PAGE, Client, path
from umbel_server.remote.place import needed
from umbel_server.rollouts.plan import RolloutPlan
from umbel_server.rollouts.state import Event, Pause, Resume, RollBack, StopKeeping

SHOWN = 100_000
"""So many devices of each step are asked for."""


class RolloutsFar:
    """The rollouts at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def start(
        self, model: str, version: int, plan: RolloutPlan, *, name: str | None, since: int | None, reason: str
    ) -> dict[str, Any]:
        """Begin a rollout."""
        asked = _asked(model, version, plan, name, since) | {"reason": needed(reason)}
        made: dict[str, Any] = self._client.post("/rollouts", asked)
        return made

    def plan(
        self, model: str, version: int, plan: RolloutPlan, *, name: str | None, since: int | None
    ) -> dict[str, Any]:
        """Return whom a rollout would reach."""
        asked = _asked(model, version, plan, name, since) | {"shown": SHOWN}
        reached: dict[str, Any] = self._client.post("/rollouts/plan", asked)
        return reached

    def all(
        self, *, limit: int | None = None, after: str = ""
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Return rollouts, and what devices get of models that are held.

        All of them, the newest first; with a limit or a name, by name those after it, and a page is read.
        """
        pages = self._client.pages("/rollouts", limit=min(limit or PAGE, PAGE), after=after or None)
        found = list(islice(pages, limit))
        if not limit and not after:
            # The API lists by name, which is the order of those that began at once.
            found.sort(key=lambda each: -each["created_s"])
        held = {each["model"]: each["version"] for each in self._client.pages("/holds")}
        return found, held

    def status(self, name: str) -> dict[str, Any]:
        """Return where a rollout stands, what its gates say, and what happened to it."""
        found: dict[str, Any] = self._client.get(path("rollouts", name))
        return found

    def happen(self, name: str, event: Event, reason: str) -> dict[str, Any]:
        """Pause a rollout, let it go on, or end it."""
        match event:
            case Pause(why):
                what, body = "pause", {"reason": why}
            case Resume():
                what, body = "resume", {"reason": needed(reason)}
            case StopKeeping(why):
                what, body = "stop", {"devices": "keep", "reason": why}
            case RollBack(why):
                what, body = "stop", {"devices": "roll-back", "reason": why}
            case _:
                raise AssertionError(event)
        after: dict[str, Any] = self._client.post(path("rollouts", name, what), body)
        return after

    def hold(self, model: str, reason: str) -> int:
        """Let new versions come by rollouts only; return the one that devices get."""
        return int(self._client.post(path("holds", model), {"reason": needed(reason)})["version"])

    def unhold(self, model: str, reason: str) -> None:
        """Let the newest version reach every device again."""
        self._client.post(path("holds", model, "end"), {"reason": needed(reason)})

    def pin(self, device: str, model: str, version: int | None, reason: str) -> None:
        """Let a device stay at a version; None: let it have what the others get."""
        if version is None:
            self._client.post(path("pins", device, model, "end"), {"reason": needed(reason)})
        else:
            self._client.replace(path("pins", device, model), {"version": version, "reason": needed(reason)})

    def tag(self, device: str, tags: list[str], reason: str) -> None:
        """Give a device these tags and no others."""
        self._client.replace(path("devices", device, "tags"), {"tags": tags, "reason": needed(reason)})


def _asked(
    model: str, version: int, plan: RolloutPlan, name: str | None, since: int | None
) -> dict[str, Any]:
    return {
        "model": model,
        "version": version,
        "from_version": since,
        "name": name,
        "plan": plan.to_dict(),
    }
