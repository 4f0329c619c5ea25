"""What quarantined devices send: kept apart, never opened, and no more of it than fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, func, select

from umbel_proto.ids import DeviceId
from umbel_server.store.database import Database, insert
from umbel_server.store.tables_enrollment import quarantined_batches

if TYPE_CHECKING:
    from umbel_server.store.batches import Arrival

KEPT_BATCHES = 10_000
"""Of each device, about; of more the oldest go. A device that is odd may also be loud."""


class Quarantine:
    """The batches of a store that are kept apart."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def counts(self) -> dict[DeviceId, int]:
        """Return how many batches are kept apart, by device."""
        query = select(quarantined_batches.c.device_id, func.count()).group_by(
            quarantined_batches.c.device_id
        )
        with self._database.read() as connection:
            return {DeviceId(device): count for device, count in connection.execute(query)}


def keep_apart(
    connection: Connection, device: DeviceId, arrivals: Sequence[Arrival], *, received_s: float
) -> None:
    """Keep a quarantined device's batches, each once, in the transaction that found it to be so.

    Args:
        connection: That of ``database.write()``.
        device: Who sent them.
        arrivals: The batches.
        received_s: When they came, Unix seconds.
    """
    rows = [
        {
            "device_id": device,
            "batch_id": arrival.batch_id,
            "key_id": arrival.key_id,
            "header": arrival.header,
            "ciphertext": arrival.ciphertext,
            "received_s": received_s,
        }
        for arrival in arrivals
    ]
    if not rows:
        return
    connection.execute(insert(connection, quarantined_batches).on_conflict_do_nothing(), rows)
    mine, received = quarantined_batches.c.device_id == device, quarantined_batches.c.received_s
    newest = select(received).where(mine).order_by(received.desc())
    oldest = connection.execute(newest.offset(KEPT_BATCHES).limit(1)).scalar()
    if oldest is not None:
        connection.execute(delete(quarantined_batches).where(mine, received <= oldest))
