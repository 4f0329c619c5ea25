"""What the store and the directory tell of a fleet's health: read when asked, at most every few seconds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cryptography import x509
from sqlalchemy import case, func, select

from umbel_proto.errors import StorageError, UmbelError, UnavailableError
from umbel_server.files import read_file
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.rules import SEVERITIES
from umbel_server.services.memory import resident_bytes
from umbel_server.store.admission import ACTIVE
from umbel_server.store.alerts import OPEN
from umbel_server.store.batches import SEALED
from umbel_server.store.rollouts import STATES
from umbel_server.store.store import Store
from umbel_server.store.tables import batches, devices

if TYPE_CHECKING:
    from prometheus_client import Metric

FRESH_S = 5.0
ONLINE_S = 120.0
STALE_S = 86400.0


class Vitals:
    """A collector for Prometheus: gauges of the whole fleet.

    Args:
        fleet: The fleet.
        store: Its store.
    """

    def __init__(self, fleet: FleetDir, store: Store) -> None:
        self._fleet = fleet
        self._store = store
        self._lock = threading.Lock()
        self._taken_s = -FRESH_S
        self._taken: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead: that would ask the store."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the gauges."""
        with self._lock:
            now_s = self._store.clock()
            if not 0 <= now_s - self._taken_s < FRESH_S:
                self._taken, self._taken_s = list(self._take(now_s)), now_s
            return self._taken

    def store_answers(self) -> bool:
        """Return whether the store can be read."""
        try:
            with self._store.database.read() as connection:
                connection.execute(select(1))
        except (StorageError, UnavailableError):
            return False
        return True

    def _take(self, now_s: float) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily as Gauge

        up = Gauge("umbel_store_up", "Whether the store answers.")
        try:
            found = list(self._of_store(now_s))
        except (StorageError, UnavailableError):
            found = []
        up.add_metric([], float(bool(found)))
        yield up
        yield from found
        expiry = Gauge(
            "umbel_expiry_timestamp_seconds",
            "When a certificate or signed metadata ends.",
            labels=["what"],
        )
        for what, expires_s in expiries(self._fleet):
            expiry.add_metric([what], expires_s)
        yield expiry
        memory = Gauge(
            "umbel_service_resident_bytes",
            "Resident memory of the services on this machine.",
            labels=["service"],
        )
        for service, size in sorted(resident_bytes(self._fleet.path).items()):
            memory.add_metric([service], size)
        yield memory

    def _of_store(self, now_s: float) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily as Gauge

        seen = devices.c.last_seen_s
        status = case(
            (devices.c.status != ACTIVE, "revoked"),
            (devices.c.quarantined_s.is_not(None), "quarantined"),
            (seen >= now_s - ONLINE_S, "online"),
            (seen >= now_s - STALE_S, "stale"),
            else_="offline",
        ).label("word")
        with self._store.database.read() as connection:
            counts = connection.execute(select(status, func.count()).group_by(status)).all()
            waiting, oldest_s = connection.execute(
                select(func.count(), func.min(batches.c.received_s)).where(batches.c.state == SEALED)
            ).one()
        by_status = Gauge("umbel_devices", "Devices, by status.", labels=["status"])
        found = {row.word: row[1] for row in counts}
        for word in ("online", "stale", "offline", "quarantined", "revoked"):
            by_status.add_metric([word], found.get(word, 0))
        yield by_status
        yield Gauge("umbel_batches_waiting", "Sealed batches that wait for the opener.", value=waiting)
        lag_s = 0.0 if oldest_s is None else max(now_s - oldest_s, 0.0)
        yield Gauge("umbel_opener_lag_seconds", "How long the oldest of them has waited.", value=lag_s)
        rollouts, by_state = (
            self._store.rollouts.counts(),
            Gauge("umbel_rollouts", "Rollouts.", labels=["state"]),
        )
        for state in STATES:
            by_state.add_metric([state], rollouts.get(state, 0))
        yield by_state
        alerts = Gauge("umbel_alerts", "Alerts that are not resolved.", labels=["severity", "state"])
        counted = self._store.alerts.counts()
        for severity in SEVERITIES:
            for state in OPEN:
                alerts.add_metric([severity, state], counted.get((severity, state), 0))
        yield alerts


def expiries(fleet: FleetDir) -> Iterator[tuple[str, float]]:
    """Yield each certificate and signed metadata of a service, and when it ends, Unix seconds."""
    for what, path in (("ca", fleet.ca_pem), ("server", fleet.server_pem)):
        try:
            certificate = x509.load_pem_x509_certificate(read_file(path, f"{what} certificate"))
        except (UmbelError, ValueError):
            continue  # The service that needs it says so.
        yield what, certificate.not_valid_after_utc.timestamp()
    for role in ("root", "targets", "snapshot", "timestamp"):
        expires_s = _metadata_expiry(fleet, role)
        if expires_s is not None:
            yield role, expires_s


def _metadata_expiry(fleet: FleetDir, role: str) -> float | None:
    from datetime import datetime

    files = [*(fleet.trust / "metadata").glob(f"*{role}.json")]
    try:
        newest = max(files, key=lambda path: path.stat().st_mtime_ns)
        expires = json.loads(newest.read_bytes())["signed"]["expires"]
        return datetime.fromisoformat(str(expires)).timestamp()
    except (OSError, ValueError, KeyError):
        return None
