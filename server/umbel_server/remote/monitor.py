"""How a fleet's models are doing at its service, as commands read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from umbel_proto.errors import RemoteProtocolError, UsageError
from umbel_server.monitor.drift_report import Drift
from umbel_server.monitor.fairness import Fairness
from umbel_server.monitor.looks import Look
from umbel_server.monitor.operations import Operations
from umbel_server.monitor.performance import Performance
from umbel_server.monitor.report import ModelLine, lines_of
from umbel_server.remote.client import Client, path
from umbel_server.store.cohorts import EVERYBODY, CohortSum

if TYPE_CHECKING:
    from umbel_server.monitor.report import TelemetryLine
    from umbel_server.store.wanted import Wanted

LATEST_S = 4_000_000_000
"""The last moment that a service is asked about, Unix seconds: it tells of nothing that begins after now."""
_T = TypeVar("_T")


class MonitorFar:
    """What devices reported, and what follows from it, at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def export(self) -> None:
        """Do nothing: a service tells sums over devices, and of no single one."""

    def together(self, *, since_s: float) -> tuple[ModelLine, ...]:
        """Return what all devices reported of each model since, summed over them."""
        told = self._client.get("/telemetry", since_s=since_s)["models"]
        sums = [
            {**each, "cohort": EVERYBODY}
            for model in sorted({each["model"] for each in told})
            for each in self._client.get(
                path("telemetry", model, "totals"), since_s=since_s, until_s=LATEST_S, span="day"
            )["items"]
        ]
        return lines_of(self._read(tuple[CohortSum, ...], sums))

    def devices(
        self, wanted: Wanted, *, limit: int | None, after: str, since_s: float
    ) -> Sequence[TelemetryLine]:
        """Refuse: a service tells nothing of a single device's reports."""
        raise UsageError(
            "A service tells of no single device what it reported: say --sum for all of them together, "
            "or --fleet where the fleet's directory is."
        )

    def drift(self, model: str, version: int | None, *, days: int, level: float, floor: float) -> Drift:
        """Return whether inputs and answers are distributed as they were."""
        return self._read(
            Drift, self._get(model, "drift", version=version, days=days, level=level, floor=floor)
        )

    def performance(self, model: str, version: int | None, *, days: int) -> Look:
        """Return how often a version is right."""
        told = self._get(model, "performance", version=version, days=days)
        now, before = (self._read(Performance, told.pop(each)) for each in ("now", "before"))
        return Look(**told, now=now, before=before)

    def fairness(
        self, model: str, version: int | None, *, label: str, days: int, least: int, matters: float
    ) -> Look:
        """Return how a version treats cohorts."""
        told = self._get(
            model, "fairness", version=version, label=label, days=days, least_devices=least, matters=matters
        )
        now, before = (self._read(Fairness, told.pop(each)) for each in ("now", "before"))
        return Look(**told, now=now, before=before)

    def operations(self, model: str, version: int | None, *, days: int) -> Look:
        """Return how devices run a version."""
        told = self._get(model, "operations", version=version, days=days)
        now = self._read(Operations, told.pop("now"))
        return Look(**told, now=now)

    def _get(self, model: str, what: str, **asked: object) -> dict[str, Any]:
        told: dict[str, Any] = self._client.get(path("monitor", model, what), **asked)
        return told

    def _read(self, kind: type[_T], told: object) -> _T:
        try:
            return TypeAdapter(kind).validate_python(told)
        except ValidationError as exc:
            raise RemoteProtocolError(
                self._client.place.server,
                "its figures are not those of this umbel: is it of another version?",
            ) from exc
