"""Batches that wait to be sent: sealed before they come here, kept until the gateway has them.

Nothing in the file can be read without the fleet's private key, so it needs no key of its own.

The spool is bounded in bytes. When a batch does not fit, the oldest ones are dropped until it
does, and counted: the newest tell most about the device as it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from umbel._fork import Lock
from umbel._home.sqlite import connect, storage_errors, transaction

MAX_BYTES = 16 * 1024 * 1024

_ADVICE = "delete it; telemetry that was not sent yet is lost."
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival
    batch_id   BLOB NOT NULL UNIQUE,               -- 16 random bytes; the gateway stores each once
    header     BLOB NOT NULL,                      -- serialized BatchHeader, as it was sealed
    ciphertext BLOB NOT NULL                       -- HPKE envelope
) STRICT;
CREATE TABLE IF NOT EXISTS facts (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
    -- sequence:  number of the last batch made
    -- dropped:   batches given up for want of room, or refused by the gateway
    -- bytes:     sum of header and ciphertext sizes in batches
    -- contact_s: when the gateway last answered, Unix seconds
    -- refused_s: since when it refuses this device; 0: it does not
) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO facts VALUES ('sequence', 0), ('dropped', 0), ('bytes', 0), ('contact_s', 0), ('refused_s', 0);
"""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A batch that only the fleet's opener can read.

    Args:
        batch_id: 16 random bytes.
        header: Serialized ``BatchHeader``.
        ciphertext: The envelope.
    """

    batch_id: bytes
    header: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes that it takes in the spool and on the wire."""
        return len(self.header) + len(self.ciphertext)


@dataclass(frozen=True, slots=True)
class Depth:
    """How full a spool is.

    Args:
        batches: Batches that wait.
        bytes: Their size.
        dropped: Batches that were given up since the device enrolled.
    """

    batches: int
    bytes: int
    dropped: int


class Spool:
    """A queue on disk that several processes may use at once.

    Commits survive the end of the process and a power cut at any moment: without the network a batch
    holds hours of counts, and is worth a flush of the flash.

    Args:
        path: The file; made if missing.
        max_bytes: Bound on the batches' size.

    Raises:
        StorageError: The file is damaged or the disk full.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._connection = connect(path, _SCHEMA, synchronous="FULL", advice=_ADVICE)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def next_sequence(self) -> int:
        """Return the number of the next batch: each is given once, and they grow."""
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            row = db.execute("UPDATE facts SET value = value + 1 WHERE name = 'sequence' RETURNING value")
            return int(row.fetchone()[0])

    def made(self) -> int:
        """Return the number of the last batch: how many were ever begun."""
        with self._lock, storage_errors(self._path, _ADVICE):
            row = self._connection.execute("SELECT value FROM facts WHERE name = 'sequence'").fetchone()
        return int(row[0])

    def oldest_made_s(self) -> int | None:
        """Return when the batch that has waited longest was sealed, Unix seconds; None: none waits, or its header is damaged."""
        from google.protobuf.message import DecodeError

        from umbel_proto.wire import telemetry_pb2 as pb

        with self._lock, storage_errors(self._path, _ADVICE):
            row = self._connection.execute("SELECT header FROM batches ORDER BY id LIMIT 1").fetchone()
        try:
            return None if row is None else pb.BatchHeader.FromString(row[0]).created_s
        except DecodeError:
            return None  # The gateway will refuse it: no reason to seal nothing meanwhile.

    def append(self, batch: Sealed) -> int:
        """Keep a batch until it is acknowledged.

        Returns:
            How many were dropped for it; a batch larger than the whole spool drops itself only.

        Raises:
            StorageError: The disk is full.
        """
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            if batch.size > self._max_bytes:
                db.execute("UPDATE facts SET value = value + 1 WHERE name = 'dropped'")
                return 1
            held = int(db.execute("SELECT value FROM facts WHERE name = 'bytes'").fetchone()[0])
            oldest: list[int] = []
            if held + batch.size > self._max_bytes:
                sizes = db.execute("SELECT id, length(header) + length(ciphertext) FROM batches ORDER BY id")
                for row, size in sizes:
                    oldest.append(row)
                    held -= size
                    if held + batch.size <= self._max_bytes:
                        break
                sizes.close()
                db.executemany("DELETE FROM batches WHERE id = ?", [(row,) for row in oldest])
                db.execute("UPDATE facts SET value = value + ? WHERE name = 'dropped'", (len(oldest),))
            db.execute(
                "INSERT INTO batches (batch_id, header, ciphertext) VALUES (?, ?, ?)",
                (batch.batch_id, batch.header, batch.ciphertext),
            )
            db.execute("UPDATE facts SET value = ? WHERE name = 'bytes'", (held + batch.size,))
            return len(oldest)

    def oldest(self, *, max_batches: int, max_bytes: int, skip: int = 0) -> list[Sealed]:
        """Return the batches that have waited longest, at least one if there is any.

        Args:
            max_batches: At most so many.
            max_bytes: At most of this size together, unless the first alone is larger.
            skip: Leave out so many that have waited even longer.
        """
        with self._lock, storage_errors(self._path, _ADVICE):
            rows = self._connection.execute(
                "SELECT batch_id, header, ciphertext FROM batches ORDER BY id LIMIT ? OFFSET ?",
                (max_batches, skip),
            )
            found: list[Sealed] = []
            for row in rows:
                batch = Sealed(*row)
                max_bytes -= batch.size
                if found and max_bytes < 0:
                    break
                found.append(batch)
            rows.close()
            return found

    def some(self, *, count: int, skip: int) -> list[Sealed]:
        """Return the newest batch, then others by chance.

        Args:
            count: At most so many.
            skip: Leave out so many that have waited longest.
        """
        query = """
        SELECT batch_id, header, ciphertext FROM batches WHERE id IN (
            SELECT id FROM (SELECT id FROM batches ORDER BY id LIMIT -1 OFFSET ?)
            ORDER BY id = (SELECT max(id) FROM batches) DESC, random() LIMIT ?
        ) ORDER BY id DESC
        """
        with self._lock, storage_errors(self._path, _ADVICE):
            return [Sealed(*row) for row in self._connection.execute(query, (skip, count)).fetchall()]

    def acknowledge(self, batch_ids: Collection[bytes], *, now_s: float) -> int:
        """Forget batches that the gateway has committed.

        Returns:
            How many of them were here; another process may have been first.
        """
        removed = self._remove(batch_ids)
        self.contacted(now_s)
        return removed

    def give_up(self, batch_id: bytes) -> None:
        """Forget a batch that the gateway will never take, and count it."""
        self._remove([batch_id], dropped=True)

    def keep(self, mine: Callable[[bytes], bool]) -> int:
        """Give up what waits, and count it, unless it is this device's.

        Args:
            mine: Tells of a header whether a batch of it is.

        Returns:
            How many were given up.
        """
        with self._lock, storage_errors(self._path, _ADVICE):
            rows = self._connection.execute("SELECT batch_id, header FROM batches").fetchall()
        foreign = [batch_id for batch_id, header in rows if not mine(header)]
        return self._remove(foreign, dropped=True)

    def contacted(self, now_s: float) -> None:
        """Note that the gateway answered, and refuses nothing."""
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            db.execute("UPDATE facts SET value = ? WHERE name = 'contact_s'", (int(now_s),))
            db.execute("UPDATE facts SET value = 0 WHERE name = 'refused_s'")

    def refused(self, now_s: float) -> None:
        """Note that the gateway refuses this device, unless that is known."""
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            db.execute(
                "UPDATE facts SET value = ? WHERE name = 'refused_s' AND value = 0", (max(int(now_s), 1),)
            )

    def refused_s(self) -> float | None:
        """Return since when the gateway refuses this device, Unix seconds; None: it does not."""
        with self._lock, storage_errors(self._path, _ADVICE):
            row = self._connection.execute("SELECT value FROM facts WHERE name = 'refused_s'").fetchone()
        return float(row[0]) or None

    def last_contact_s(self) -> float | None:
        """Return when the gateway last answered, Unix seconds; None if it never did."""
        with self._lock, storage_errors(self._path, _ADVICE):
            row = self._connection.execute("SELECT value FROM facts WHERE name = 'contact_s'").fetchone()
        return float(row[0]) or None

    def depth(self) -> Depth:
        """Return how full it is."""
        query = """SELECT (SELECT count(*) FROM batches),
                          (SELECT value FROM facts WHERE name = 'bytes'),
                          (SELECT value FROM facts WHERE name = 'dropped')"""
        with self._lock, storage_errors(self._path, _ADVICE):
            return Depth(*self._connection.execute(query).fetchone())

    def _remove(self, batch_ids: Collection[bytes], *, dropped: bool = False) -> int:
        count = 0
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            for batch_id in batch_ids:
                row = db.execute(
                    "DELETE FROM batches WHERE batch_id = ? RETURNING length(header) + length(ciphertext)",
                    (batch_id,),
                ).fetchone()
                if row is not None:
                    count += 1
                    db.execute("UPDATE facts SET value = value - ? WHERE name = 'bytes'", (row[0],))
            if dropped:
                db.execute("UPDATE facts SET value = value + ? WHERE name = 'dropped'", (count,))
        return count


def new_batch_id() -> bytes:
    """Return a name for a batch that nobody can guess or repeat."""
    return secrets.token_bytes(16)
