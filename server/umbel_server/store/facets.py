"""What some devices are, counted, and what tells the status of each in a query."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, case

from umbel_proto.ids import ModelName
from umbel_server.store.admission import ACTIVE
from umbel_server.store.tables import devices
from umbel_server.store.wanted import ONLINE_S, STALE_S, Status


@dataclass(frozen=True, slots=True)
class Facets:
    """How many of the devices that somebody wants to see are what.

    Args:
        devices: How many they are.
        statuses: How many of them have which status, by its word.
        versions: On how many which version of which model answers: model, version, devices.
        tags: How many have which tag, by name.
    """

    devices: int
    statuses: tuple[tuple[Status, int], ...]
    versions: tuple[tuple[ModelName, int, int], ...]
    tags: tuple[tuple[str, int], ...]


def status_of(now_s: float, *, online_s: float = ONLINE_S, stale_s: float = STALE_S) -> ColumnElement[str]:
    """Return what tells a device's status in a query: what ``monitor.report.status_of`` tells of one."""
    seen = devices.c.last_seen_s
    return case(
        (devices.c.status != ACTIVE, "revoked"),
        (devices.c.quarantined_s.is_not(None), "quarantined"),
        (seen > now_s - online_s, "online"),
        (seen <= devices.c.enrolled_s, "never seen"),
        (seen > now_s - stale_s, "stale"),
        else_="offline",
    )
