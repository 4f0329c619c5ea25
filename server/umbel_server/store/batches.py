"""Telemetry as it arrives: sealed, stored once, acknowledged when it is on disk."""

from __future__ import annotations

import datetime
import functools
import hmac
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from sqlalchemy import Connection, func, select, update
from sqlalchemy.engine.interfaces import DBAPICursor

from umbel_proto.errors import RefusedError
from umbel_proto.ids import DeviceId
from umbel_server.clock import Clock
from umbel_server.store import arrays
from umbel_server.store.admission import another_key, require_active
from umbel_server.store.database import Database
from umbel_server.store.quarantine import keep_apart
from umbel_server.store.tables import batches, devices
from umbel_server.store.together import Together

SEALED, OPENED, REJECTED = "sealed", "opened", "rejected"
SEEN_EVERY_S = 5.0
"""How old the note may be of when a device was last heard of: a busy one is not written down with each batch."""
UPLOADS_PER_COMMIT = 256
_DAY_S = 86_400
_LATEST_S = 253_402_300_800  # The year 10000: what a device's clock says must fit a date.
# One statement and seven arrays, however many rows.
_INSERT_ARRAYS = """
    INSERT INTO batches (device_id, batch_id, key_id, header, ciphertext, month, received_s, state)
    SELECT device_id, batch_id, key_id, header, ciphertext, month, received_s, 'sealed'
    FROM unnest(%b::text[], %b::bytea[], %b::text[], %b::bytea[], %b::bytea[], %b::int[], %b::float8[])
        WITH ORDINALITY AS arrived
            (device_id, batch_id, key_id, header, ciphertext, month, received_s, place)
    ORDER BY place ON CONFLICT DO NOTHING
"""

# SQLite's driver lets go of Python at each statement, and has to wait for its turn again among all who call: so few
# statements, of as many rows each. The driver keeps 128 that it has prepared, twice as many as these.
_MOST_ROWS = 64
_INSERT_ROWS = {
    size: """
        INSERT INTO batches (device_id, batch_id, key_id, header, ciphertext, month, received_s, state)
        VALUES ROWS ON CONFLICT DO NOTHING
    """.replace("ROWS", ", ".join(["(?, ?, ?, ?, ?, ?, ?, 'sealed')"] * size))
    for size in range(1, _MOST_ROWS + 1)
}
_Row: TypeAlias = tuple[DeviceId, bytes, str, bytes, bytes, int, float]


class _Known(NamedTuple):
    id: str
    status: str
    enrolled_key: bytes
    last_seen_s: float
    quarantined_s: float | None


# One text however many devices: what SQLAlchemy would write anew for each number of them takes longer than to ask.
_KNOWN_OF = {
    "postgresql": """
        SELECT id, status, enrolled_key, last_seen_s, quarantined_s FROM devices WHERE id = ANY(%b::text[])
    """,
    "sqlite": """
        SELECT id, status, enrolled_key, last_seen_s, quarantined_s FROM devices
        WHERE id IN (SELECT value FROM json_each(?))
    """,
}


@dataclass(slots=True)  # Not frozen: that makes one for each batch three times as dear.
class Arrival:
    """A sealed batch on its way into the store.

    Args:
        batch_id: The device's random name for it, 16 bytes.
        key_id: The telemetry key it is sealed to.
        header: A serialized ``BatchHeader``, the bytes received.
        ciphertext: The sealed ``Batch``.
        created_s: When it was made, Unix seconds by the device's clock, as its header says: the same however
            often it is sent.
    """

    batch_id: bytes
    key_id: str
    header: bytes
    ciphertext: bytes = field(repr=False)
    created_s: int = 0


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


@dataclass(slots=True)
class _Upload:
    device: DeviceId
    arrivals: Sequence[Arrival]
    received_s: float
    key_hash: bytes | None
    refusal: RefusedError | None = None


class Batches:
    """The telemetry batches of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._together = Together(self._commit, most=UPLOADS_PER_COMMIT)
        self.committed: Callable[[int, int], None] = lambda new, repeated: None
        """Told of each commit: how many batches were new, and how many were there."""

    def append(self, device: DeviceId, arrivals: Sequence[Arrival], *, key_hash: bytes | None = None) -> None:
        """Store batches; one that the device sent before stays as it was. On return all are on disk.

        Calls of several threads at once are one transaction.

        Args:
            device: Who sends them.
            arrivals: The batches.
            key_hash: SHA-256 of the TLS key (SubjectPublicKeyInfo) that the caller showed. With it the transaction
                also asks whether the device may send, for all calls at once: alone, that costs as much as storing.

        Raises:
            RefusedError: The device is unknown or revoked, or has another key by now.
            DiskFullError: None of them is kept.
            StorageError: None of them is kept.
            UnavailableError: Send them again: they may be kept or not.
        """
        upload = _Upload(device, arrivals, self._clock(), key_hash)
        self._together.add(upload)
        if upload.refusal is not None:
            raise upload.refusal

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

    def _commit(self, uploads: Sequence[_Upload]) -> None:
        sent, new = self._database.write_again(lambda connection: _store(connection, uploads))
        self.committed(new, sent - new)


def month_of(created_s: float) -> int:
    """Return the month of a time, as a number: 202611 is November 2026."""
    return _month(int(min(max(created_s, 0), _LATEST_S - 1)) // _DAY_S)


@functools.lru_cache(maxsize=64)
def _month(day: int) -> int:
    date = datetime.datetime.fromtimestamp(day * _DAY_S, datetime.UTC)
    return date.year * 100 + date.month


def _store(connection: Connection, uploads: Sequence[_Upload]) -> tuple[int, int]:
    """Store uploads; return how many batches they are, and how many of these are new."""
    seen = {upload.device: upload.received_s for upload in uploads}
    # The driver's own cursor: for statements that are texts SQLAlchemy adds nothing, and takes longer than SQLite.
    cursor = connection.connection.cursor()
    known = {row.id: row for row in _known(connection.dialect.name, cursor, list(seen))}
    for upload in uploads:
        upload.refusal = None if upload.key_hash is None else _refusal(upload, known.get(upload.device))
    taken = [upload for upload in uploads if upload.refusal is None]
    apart = {name for name, row in known.items() if row.quarantined_s is not None}
    for upload in taken:
        if upload.device in apart:
            keep_apart(connection, upload.device, upload.arrivals, received_s=upload.received_s)
    rows = [
        (
            upload.device,
            arrival.batch_id,
            arrival.key_id,
            arrival.header,
            arrival.ciphertext,
            month_of(arrival.created_s),
            upload.received_s,
        )
        for upload in taken
        if upload.device not in apart
        for arrival in upload.arrivals
    ]
    new = 0
    if rows and connection.dialect.name == "postgresql":
        cursor.execute(_INSERT_ARRAYS, _arrays(rows))
        new = cursor.rowcount
    else:
        for begin in range(0, len(rows), _MOST_ROWS):
            some = rows[begin : begin + _MOST_ROWS]
            cursor.execute(_INSERT_ROWS[len(some)], tuple(itertools.chain.from_iterable(some)))
            new += cursor.rowcount
    stale = {
        name: seen_s
        for name, seen_s in seen.items()
        if name in known and known[name].last_seen_s < seen_s - SEEN_EVERY_S
    }
    if stale:
        note_seen(connection, stale)
    return len(rows), new


def _arrays(rows: Sequence[_Row]) -> tuple[arrays.Array, ...]:
    """Return rows by column."""
    names, ids, keys, headers, ciphertexts, months, received = zip(*rows, strict=True)
    return (
        arrays.of_texts(names),
        arrays.of_bytes(ids),
        arrays.of_texts(keys),
        arrays.of_bytes(headers),
        arrays.of_bytes(ciphertexts),
        arrays.of_integers(months),
        arrays.of_floats(received),
    )


def _known(kind: str, cursor: DBAPICursor, names: list[DeviceId]) -> list[_Known]:
    """Return what the store says of devices, of those that it knows."""
    listed = names if kind == "postgresql" else json.dumps(names)
    cursor.execute(_KNOWN_OF[kind], (listed,))
    return [_Known._make(row) for row in cursor.fetchall()]


def _refusal(upload: _Upload, row: _Known | None) -> RefusedError | None:
    try:
        require_active(upload.device, None if row is None else row.status)
    except RefusedError as exc:
        return exc
    assert row is not None
    assert upload.key_hash is not None
    if not hmac.compare_digest(row.enrolled_key, upload.key_hash):
        return another_key(upload.device)
    return None


def note_seen(connection: Connection, seen: dict[DeviceId, float]) -> None:
    """Keep when devices were heard of, Unix seconds, where the note is older than ``SEEN_EVERY_S``."""
    now_s = max(seen.values())
    stale = (
        select(devices.c.id)
        .where(devices.c.id.in_(seen), devices.c.last_seen_s < now_s - SEEN_EVERY_S)
        .order_by(
            devices.c.id
        )  # Two transactions that lock rows in one order never wait for each other in a ring.
        .with_for_update(key_share=True)
    )
    found = connection.execute(stale).scalars().all()
    if found:
        connection.execute(update(devices).where(devices.c.id.in_(found)).values(last_seen_s=now_s))
