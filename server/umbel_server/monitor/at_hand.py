"""How a fleet's models are doing where its directory is at hand, as commands read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from umbel_server.access.actor import local_actor
from umbel_server.access.chain import keep_checkpoint
from umbel_server.access.reads import Read, on_record
from umbel_server.fleet.at_hand import pages
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor import drift_report, looks, report
from umbel_server.store.store import Store
from umbel_server.store.wanted import Wanted


class MonitorAtHand:
    """What devices reported, and what follows from it, in the fleet's directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def export(self) -> None:
        """Put on record that what devices reported leaves as data; a look at a table is not."""
        on_record(self._store, local_actor(), Read.TELEMETRY, fleet=self._fleet.name)
        keep_checkpoint(self._fleet, self._store)

    def together(self, *, since_s: float) -> tuple[report.ModelLine, ...]:
        """Return what all devices reported of each model since, summed over them."""
        return report.together(self._store, since_s=since_s)

    def devices(
        self, wanted: Wanted, *, limit: int | None, after: str, since_s: float
    ) -> Sequence[report.TelemetryLine]:
        """Return what devices reported since, each by itself, by name, those after a name."""
        return [
            line
            for page in pages(self._store, wanted, limit=limit, after=after)
            for line in report.telemetry(self._store, page, since_s=since_s)
        ]

    def drift(
        self, model: str, version: int | None, *, days: int, level: float, floor: float
    ) -> drift_report.Drift:
        """Return whether inputs and answers are distributed as they were."""
        return drift_report.drift(
            self._fleet, self._store, model, version, days=days, level=level, floor=floor
        )

    def performance(self, model: str, version: int | None, *, days: int) -> looks.Look:
        """Return how often a version is right."""
        return looks.look_at_performance(self._fleet, self._store, model, version, days=days)

    def fairness(
        self, model: str, version: int | None, *, label: str, days: int, least: int, matters: float
    ) -> looks.Look:
        """Return how a version treats cohorts."""
        return looks.look_at_fairness(
            self._fleet, self._store, model, version, label=label, days=days, least=least, matters=matters
        )

    def operations(self, model: str, version: int | None, *, days: int) -> looks.Look:
        """Return how devices run a version."""
        return looks.look_at_operations(self._fleet, self._store, model, version, days=days)
