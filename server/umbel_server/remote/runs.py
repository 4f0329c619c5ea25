"""Runs at a fleet's service, as commands start, follow and end them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from umbel_proto.errors import UsageError
from umbel_server.remote.client import PAGE, Client, path
from umbel_server.remote.place import needed
from umbel_server.remote.plan_file import fields_of

ATTEMPTS = 20
"""A page of them: each names its devices."""
PACK_S = 1800.0
"""How long a service may take to make a package: it quantizes and evaluates."""


class RunsFar:
    """The runs at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def start(self, plan: Path, *, name: str, dry_run: bool) -> dict[str, Any]:
        """Check a plan, and start its run unless it is only tried; return the run's name and what it will cost."""
        asked = {"plan": fields_of(plan), "name": name or None, "dry_run": dry_run}
        made: dict[str, Any] = self._client.post("/runs", asked)
        return made

    def pause(self, run: str, reason: str) -> None:
        """Let a run begin no more rounds for now."""
        self._client.post(path("runs", run, "pause"), {"reason": needed(reason)})

    def resume(self, run: str, reason: str) -> None:
        """Let a paused run go on, or start a run's server process again."""
        self._client.post(path("runs", run, "resume"), {"reason": needed(reason)})

    def stop(self, run: str, reason: str) -> None:
        """End a run after the round it is in, or one that is paused."""
        self._client.post(path("runs", run, "stop"), {"reason": needed(reason)})

    def all(self, *, limit: int | None = None, after: str = "") -> list[dict[str, Any]]:
        """Return every run, the oldest first; with a limit or a name, by name those after it, a page is read."""
        pages = self._client.pages("/run-reports", limit=min(limit or PAGE, PAGE), after=after or None)
        found = list(islice(pages, limit))
        if not limit and not after:
            found.sort(key=lambda each: each["created_s"])
        for each in found:
            del each["plan"]
        return list(map(_run, found))

    def show(self, run: str) -> dict[str, Any]:
        """Return a run and how far it is."""
        return _run(self._client.get(path("run-reports", run)))

    def attempts(self, run: str) -> list[dict[str, Any]]:
        """Return a run's attempts at rounds with who was in them, in their order."""
        return list(self._client.pages(path("run-reports", run, "attempts"), limit=ATTEMPTS))

    def pack(
        self,
        run: str,
        *,
        calibration: Path | None,
        heldout: Path | None,
        key: Path | None,
        version: int | None,
        out: Path | None,
    ) -> dict[str, Any]:
        """Let the service make a signed package of what a run has learned, a draft in its registry."""
        if key is not None:
            raise UsageError("A release key is not sent to a service: sign where the fleet's directory is.")
        if out is not None:
            raise UsageError("--out writes where the fleet's directory is: leave out --out, or say --fleet.")
        asked = {
            "calibration": None if calibration is None else str(calibration),
            "heldout": None if heldout is None else str(heldout),
            "version": version,
        }
        made: dict[str, Any] = self._client.post(path("runs", run, "pack"), asked, timeout_s=PACK_S)
        return made

    def draw(self, run: str, plot: Path) -> None:
        """Refuse to draw: that is done where the records are."""
        raise UsageError("--plot draws where the fleet's directory is: leave out --plot, or say --fleet.")


def _run(shown: dict[str, Any]) -> dict[str, Any]:
    # Only a model that answers with numbers has the one, and only a plan that asks for it the other.
    return {
        name: value for name, value in shown.items() if value is not None or name not in ("r2", "within_clip")
    }
