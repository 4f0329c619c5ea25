"""Telemetry as it arrives: sealed, stored once, acknowledged when it is on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select, update
from sqlalchemy.dialects.sqlite import insert

from umbel_proto.ids import DeviceId
from umbel_server.clock import Clock
from umbel_server.store.database import Database
from umbel_server.store.tables import batches, devices

SEALED, OPENED, REJECTED = "sealed", "opened", "rejected"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A sealed batch on its way into the store.

    Args:
        batch_id: The device's random name for it, 16 bytes.
        key_id: The telemetry key it is sealed to.
        header: A serialized ``BatchHeader``, the bytes received.
        ciphertext: The sealed ``Batch``.
    """

    batch_id: bytes
    key_id: str
    header: bytes
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """A stored batch that nobody has opened yet.

    Args:
        id: Its number in order of arrival.
        device: Who sent it.
        key_id: The telemetry key it is sealed to.
        header: A serialized ``BatchHeader``, the bytes received.
        ciphertext: The sealed ``Batch``.
    """

    id: int
    device: DeviceId
    key_id: str
    header: bytes
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Deliveries:
    """How many batches of a device are in which state.

    Args:
        device: The device.
        sealed: Waiting for the opener.
        opened: Summed.
        rejected: Refused by the opener.
        last_received_s: When the newest arrived, Unix seconds.
    """

    device: DeviceId
    sealed: int
    opened: int
    rejected: int
    last_received_s: float


class Batches:
    """The telemetry batches of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def append(self, device: DeviceId, arrivals: Sequence[Arrival]) -> None:
        """Store batches; one that the device sent before stays as it was. On return all are on disk.

        Raises:
            DiskFullError: None of them is kept.
            StorageError: None of them is kept.
        """
        now_s = self._clock()
        rows = [
            {
                "device_id": device,
                "batch_id": arrival.batch_id,
                "key_id": arrival.key_id,
                "header": arrival.header,
                "ciphertext": arrival.ciphertext,
                "state": SEALED,
                "received_s": now_s,
            }
            for arrival in arrivals
        ]
        with self._database.write() as connection:
            if rows:
                connection.execute(
                    insert(batches).on_conflict_do_nothing(index_elements=["device_id", "batch_id"]), rows
                )
            connection.execute(update(devices).where(devices.c.id == device).values(last_seen_s=now_s))

    def sealed(self, *, limit: int) -> tuple[SealedBatch, ...]:
        """Return the oldest batches that nobody has opened yet, at most ``limit``."""
        query = (
            select(
                batches.c.id, batches.c.device_id, batches.c.key_id, batches.c.header, batches.c.ciphertext
            )
            .where(batches.c.state == SEALED)
            .order_by(batches.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return tuple(SealedBatch(row.id, DeviceId(row.device_id), *row[2:]) for row in rows)

    def deliveries(self) -> tuple[Deliveries, ...]:
        """Return how many batches each device delivered, by name; devices without any are left out."""
        count = {state: func.count().filter(batches.c.state == state) for state in (SEALED, OPENED, REJECTED)}
        query = (
            select(batches.c.device_id, *count.values(), func.max(batches.c.received_s))
            .group_by(batches.c.device_id)
            .order_by(batches.c.device_id)
        )
        with self._database.read() as connection:
            return tuple(Deliveries(*row) for row in connection.execute(query))
