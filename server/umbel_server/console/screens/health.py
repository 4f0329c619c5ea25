"""System health: what waits, what came twice, what was refused and why, what the store holds, and what comes to an end."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from sqlalchemy import text

from umbel_server.access.permissions import Permission
from umbel_server.api.service import ServiceOf
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.range import WindowOf
from umbel_server.console.screens.overview import ingest
from umbel_server.fleet.layout import FleetDir
from umbel_server.services.vitals import expiries
from umbel_server.store.store import Store

router = APIRouter(route_class=ScreenRoute)
DAY_S = 86400
WARN_S, BAD_S = 14 * DAY_S, 2 * DAY_S
_PARTS = ("packages", "runs", "superlink", "log", "metrics")
_MOST_FILES = 50_000
WORDS = {
    "ca": "certificate of the authority",
    "server": "certificate of the services, renewed by themselves",
    "root": "whom devices trust with releases",
    "targets": "lists of releases",
    "snapshot": "which lists belong together, signed anew by the gateway",
    "timestamp": "what is newest, signed anew by the gateway",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """A certificate or signed metadata.

    Args:
        what: What.
        words: What that is.
        ends_s: When it ends, Unix seconds.
        tone: How near that is, as a badge's tone.
    """

    what: str
    words: str
    ends_s: float
    tone: str


@dataclass(frozen=True, slots=True)
class Counted:
    """What the service's processes counted since they began; None: no process counts, as none runs here.

    Args:
        new: Batches that were new.
        repeated: Batches that came again: their reply was lost.
        opened: Batches that were summed.
        rejected: Batches that the opener refused.
        store_errors: Calls that failed because of the store.
    """

    new: int
    repeated: int
    opened: int
    rejected: int
    store_errors: int


def endings(fleet: FleetDir, now_s: float) -> list[Ending]:
    """Return what comes to an end, the first to end first."""
    found = [
        Ending(what, WORDS.get(what, what), ends_s, _tone(what, ends_s - now_s))
        for what, ends_s in expiries(fleet)
    ]
    return sorted(found, key=lambda each: each.ends_s)


def sizes(fleet: FleetDir, store: Store) -> list[tuple[str, int, bool]]:
    """Return what takes room: name, bytes, and whether that is all of it or only the first files."""
    found = [("store", _store_bytes(fleet, store), True)]
    for name in _PARTS:
        total, whole = _tree_bytes(fleet.path / name)
        found.append((name, total, whole))
    return found


def counted(fleet: FleetDir) -> Counted | None:
    """Return what the service's processes counted."""
    if not any(fleet.metrics.glob("*.db")):
        return None
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(fleet.metrics))  # type: ignore[no-untyped-call]
    found: dict[tuple[str, str], float] = {}
    for family in registry.collect():
        for sample in family.samples:
            key = (sample.name, sample.labels.get("outcome", ""))
            found[key] = found.get(key, 0.0) + sample.value
    gateway, opener = "umbel_gateway_batches_total", "umbel_opener_batches_total"
    return Counted(
        int(found.get((gateway, "new"), 0)),
        int(found.get((gateway, "repeated"), 0)),
        int(found.get((opener, "opened"), 0)),
        int(found.get((opener, "rejected"), 0)),
        int(found.get(("umbel_gateway_store_errors_total", ""), 0)),
    )


@router.get("/health", dependencies=[may(Permission.HEALTH_READ)])
def health(request: Request, service: ServiceOf, window: WindowOf) -> Response:
    """Show how the service is."""
    fleet, store, now_s = service.fleet, service.store, service.store.clock()
    rejected = store.placed.rejected(since_s=window.since_s)
    file = export(request, "rejected", ("reason", "batches", "devices"), rejected)
    if file is not None:
        return file
    return page(
        request,
        "health.html",
        live="health",
        window=window,
        ingest=ingest(store),
        counted=counted(fleet),
        rejected=rejected,
        endings=endings(fleet, now_s),
        sizes=sizes(fleet, store),
        database="PostgreSQL" if store.database.is_postgresql else "SQLite",
        kept_apart=store.placed.kept_apart(),
        version=importlib.metadata.version("umbel"),
    )


def _tone(what: str, left_s: float) -> str:
    # What the gateway signs anew is short-lived on purpose.
    factor = 1 / 24 if what in ("snapshot", "timestamp", "server") else 1.0
    if left_s <= BAD_S * factor:
        return "bad"
    return "warn" if left_s <= WARN_S * factor else "ok"


def _store_bytes(fleet: FleetDir, store: Store) -> int:
    if store.database.is_postgresql:
        with store.database.read() as connection:
            return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    return sum(_bytes(path) for path in fleet.path.glob("store.db*"))


def _tree_bytes(folder: Path) -> tuple[int, bool]:
    total = 0
    for number, path in enumerate(_files(folder)):
        if number >= _MOST_FILES:
            return total, False
        total += _bytes(path)
    return total, True


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in folder.rglob("*") if path.is_file())
    except OSError:
        return  # A process deletes its own while this looks.


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
