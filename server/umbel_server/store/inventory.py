"""What an overview of a fleet counts, in the database: no device is read for it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sqlalchemy import func, literal_column, select

from umbel_proto.ids import ModelName
from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.facets import status_of
from umbel_server.store.tables import batches
from umbel_server.store.tables_rollouts import device_models, device_tags


@dataclass(frozen=True, slots=True)
class Reached:
    """How many devices were heard of when.

    Args:
        online: Lately.
        stale: Not lately, but not long ago.
        offline: Long ago.
        never_seen: Not since they enrolled.
        quarantined: Kept apart, whenever.
        revoked: Refused, whenever.
    """

    online: int
    stale: int
    offline: int
    never_seen: int
    quarantined: int
    revoked: int


class Inventory:
    """Counts over the devices of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def reached(self, *, online_s: float, stale_s: float) -> Reached:
        """Return how many devices were heard of within so many seconds, and how many were not."""
        status = status_of(self._clock(), online_s=online_s, stale_s=stale_s).label("status")
        query = select(status, func.count()).group_by(status)
        with self._database.read() as connection:
            found = {row[0].replace(" ", "_"): row[1] for row in connection.execute(query)}
        return Reached(**{each.name: found.get(each.name, 0) for each in fields(Reached)})

    def versions(self) -> tuple[tuple[ModelName, int, int], ...]:
        """Return on how many devices which version of which model answers: model, version, devices."""
        key = (device_models.c.model, device_models.c.version)
        query = select(*key, func.count()).group_by(*key).order_by(*key)
        with self._database.read() as connection:
            return tuple((ModelName(row[0]), row[1], row[2]) for row in connection.execute(query))

    def answering(self, model: str, version: int) -> int:
        """Return on how many devices a version answers."""
        of = device_models.c
        query = select(func.count()).where(of.model == model, of.version == version)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def tags(self) -> tuple[tuple[str, int], ...]:
        """Return how many devices have which tag, by name."""
        query = (
            select(device_tags.c.tag, func.count()).group_by(device_tags.c.tag).order_by(device_tags.c.tag)
        )
        with self._database.read() as connection:
            return tuple((row[0], row[1]) for row in connection.execute(query))

    def waiting(self) -> tuple[int, float | None]:
        """Return how many batches wait for the opener, and when the oldest of them came, Unix seconds."""
        query = select(func.count(), func.min(batches.c.received_s)).where(
            batches.c.state == literal_column("'sealed'")
        )
        with self._database.read() as connection:
            count, oldest_s = connection.execute(query).one()
        return count, oldest_s
