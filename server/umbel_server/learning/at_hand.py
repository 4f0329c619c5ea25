"""Runs where the fleet's directory is at hand, as commands start, follow and end them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel_proto.errors import MissingExtraError, RefusedError, UsageError
from umbel_proto.ids import RunId
from umbel_server.access.actor import local_actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.begin import read_mapping, resume, start
from umbel_server.learning.shown import attempt_json, run_json
from umbel_server.store.store import Store

if TYPE_CHECKING:
    from umbel_server.store.runs import RunRecord


class RunsAtHand:
    """The runs of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def start(self, plan: Path, *, name: str, dry_run: bool) -> dict[str, Any]:
        """Check a plan, and start its run unless it is only tried; return the run's name and what it will cost."""
        run, figures = start(
            self._fleet, self._store, read_mapping(plan), name=name, dry_run=dry_run, actor=local_actor()
        )
        if not dry_run:
            keep_checkpoint(self._fleet, self._store)
        return {"run": run, "started": not dry_run, **figures}

    def pause(self, run: str, reason: str) -> None:
        """Let a run begin no more rounds for now."""
        self._store.pauses.begin(self._record(run).id, actor=local_actor(), reason=reason)
        keep_checkpoint(self._fleet, self._store)

    def resume(self, run: str, reason: str) -> None:
        """Let a paused run go on, or start a run's server process again."""
        resume(self._fleet, self._store, self._record(run), actor=local_actor(), reason=reason)
        keep_checkpoint(self._fleet, self._store)

    def stop(self, run: str, reason: str) -> None:
        """End a run after the round it is in, or one that is paused."""
        record = self._record(run)
        if record.finished_s is not None:
            raise RefusedError(f"Run {run} is {record.state}: only one that has not ended can be stopped.")
        self._store.runs.finish(record.id, "stopped", reason, actor=local_actor())
        keep_checkpoint(self._fleet, self._store)

    def all(self, *, limit: int | None = None, after: str = "") -> list[dict[str, Any]]:
        """Return every run, the oldest first; with a limit or a name, by name those after it, a page is read."""
        runs = self._store.runs
        found = runs.page(after=after, limit=limit) if limit or after else runs.all()
        return [run_json(record, self._store.attempts.reached(record.id)) for record in found]

    def show(self, run: str) -> dict[str, Any]:
        """Return a run and how far it is."""
        record = self._record(run)
        summary = run_json(record, self._store.attempts.reached(record.id))
        return {**summary, "plan": json.loads(record.plan)}

    def attempts(self, run: str) -> list[dict[str, Any]]:
        """Return a run's attempts at rounds with who was in them, in their order."""
        return [attempt_json(each) for each in self._store.runs.rounds(self._record(run).id)]

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
        """Make a signed package of what a run has learned, a draft in the registry."""
        from umbel_server.learning.pack import pack

        made = pack(
            self._fleet,
            self._store,
            self._record(run),
            local_actor(),
            calibration=calibration,
            heldout=heldout,
            key=key,
            version=version,
            out=out,
        )
        keep_checkpoint(self._fleet, self._store)
        return {**made.to_json(), "package": str(made.path)}

    def draw(self, run: str, plot: Path) -> None:
        """Draw a run as a PNG."""
        record = self._record(run)
        try:
            from umbel_server.learning.plot import draw
        except ModuleNotFoundError as exc:
            raise MissingExtraError("demo", "Drawing a plot") from exc
        draw(record, self._store.runs.rounds(record.id), plot)

    def _record(self, run: str) -> RunRecord:
        record = self._store.runs.get(RunId(run))
        if record is None:
            known = ", ".join(each.id for each in self._store.runs.all()) or "none yet"
            raise UsageError(f"There is no run {run!r} in this fleet; its runs: {known}.")
        return record
