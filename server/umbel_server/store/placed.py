"""What a page of devices has: tags, versions that answer, versions they stay at."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sqlalchemy import func, select

from umbel_proto.ids import DeviceId, ModelName
from umbel_server.store.database import Database, among
from umbel_server.store.tables import batches, devices
from umbel_server.store.tables_enrollment import quarantined_batches
from umbel_server.store.tables_rollouts import device_models, device_tags, pins

_MOST_FACTS = 5000
"""So many different statements of devices are read; who states something else each time is in no class."""


@dataclass(frozen=True, slots=True)
class Placed:
    """What a device has.

    Args:
        tags: Its tags, in order.
        versions: By model, the version that answers on it, by its own word.
        pins: By model, the version that it stays at.
    """

    tags: list[str] = field(default_factory=list)
    versions: dict[ModelName, int] = field(default_factory=dict)
    pins: dict[ModelName, int] = field(default_factory=dict)


class PlacedDevices:
    """What the devices of a store have.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, names: Collection[DeviceId]) -> Mapping[DeviceId, Placed]:
        """Return what some devices have, a page of them."""
        found = {name: Placed() for name in names}
        with self._database.read() as connection:
            for table in (device_models, pins):
                rows = connection.execute(
                    select(table.c.device_id, table.c.model, table.c.version)
                    .where(among(connection, table.c.device_id, names))
                    .order_by(table.c.model)
                )
                for device, model, version in rows:
                    placed = found[DeviceId(device)]
                    (placed.versions if table is device_models else placed.pins)[ModelName(model)] = version
            of_them = among(connection, device_tags.c.device_id, names)
            tagged = select(device_tags).where(of_them).order_by(device_tags.c.tag)
            for row in connection.execute(tagged):
                found[DeviceId(row.device_id)].tags.append(row.tag)
        return found

    def stated(self) -> list[tuple[str | None, int]]:
        """Return what active devices state that they are, JSON, and how many state it, the most usual first."""
        count = func.count()
        query = (
            select(devices.c.facts, count)
            .where(devices.c.status == "active")
            .group_by(devices.c.facts)
            .order_by(count.desc())
            .limit(_MOST_FACTS)
        )
        with self._database.read() as connection:
            return [(row[0], row[1]) for row in connection.execute(query)]

    def rejected(self, *, since_s: float) -> list[tuple[str, int, int]]:
        """Return why the opener refused batches that came since: reason, batches, devices; the most usual first."""
        count = func.count()
        query = (
            select(batches.c.reason, count, func.count(batches.c.device_id.distinct()))
            .where(batches.c.state == "rejected", batches.c.received_s >= since_s)
            .group_by(batches.c.reason)
            .order_by(count.desc())
            .limit(100)
        )
        with self._database.read() as connection:
            return [(row[0] or "", row[1], row[2]) for row in connection.execute(query)]

    def kept_apart(self) -> int:
        """Return how many batches of quarantined devices are kept and never opened."""
        with self._database.read() as connection:
            return connection.execute(select(func.count()).select_from(quarantined_batches)).scalar_one()

    def arrived(self, *, since_s: float) -> int:
        """Return how many batches came since."""
        query = select(func.count()).where(batches.c.received_s >= since_s)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()


def facts_of(stated: str | None) -> dict[str, str | int]:
    """Return what a device states that it is, of the JSON that is kept."""
    return {} if stated is None else dict(json.loads(stated))
