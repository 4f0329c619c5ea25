"""Predictions that wait for a person, and what people decided, on disk: encrypted, each row bound to its place.

What may be read without the key: how many rows there are of which model, how large and how old they are.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from umbel._fork import Lock
from umbel._home.sqlite import connect, storage_errors, transaction
from umbel._review import announced
from umbel_proto.encoding import digest
from umbel_proto.errors import StorageError, VerificationError

if TYPE_CHECKING:
    from umbel._home.cipher import Cipher

MAX_CASES = 1000
"""Of all models together: the oldest to arrive go, counted, as with the bytes below. No clock has a say in it."""
MAX_BYTES = 64 * 1024 * 1024
MAX_RECORDS = 10_000

_ADVICE = "restore a copy of it, or delete it with its key: what waits for review is lost."
_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS cases (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival
    id     TEXT NOT NULL UNIQUE,               -- the prediction's
    model  TEXT NOT NULL,
    at_s   REAL NOT NULL,                      -- device clock, Unix seconds
    sealed BLOB NOT NULL                       -- AES-256-GCM: what the model said, and the input
) STRICT;
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id     TEXT NOT NULL,                      -- the prediction's; it may be decided on again
    model  TEXT NOT NULL,
    at_s   REAL NOT NULL,
    sealed BLOB NOT NULL                       -- AES-256-GCM: what was decided, by whom and why
) STRICT;
CREATE TABLE IF NOT EXISTS facts (
    name  TEXT PRIMARY KEY,
    value ANY NOT NULL
    -- key:       id of the key that every row is sealed with, 8 bytes
    -- announced: how many predictions that waited the fleet was told of
    -- answered:  how many of them were decided from there
) STRICT, WITHOUT ROWID;
"""
    + announced.SCHEMA
)

Row = tuple[str, float, bytes]
"""A prediction's id, when it came, Unix seconds, and what the row says."""


class ReviewStore:
    """The file of a device's reviews. Several processes may use it at once.

    Args:
        path: The file; made when it is first needed.
        key_file: Its key; made with the first row.
    """

    def __init__(self, path: Path, key_file: Path) -> None:
        self._path = path
        self._key_file = key_file
        self._lock = Lock()
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the file; it is opened again if it is needed again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def add(self, model: str, rows: Sequence[Row]) -> int:
        """Keep cases; return how many of any model went for want of room.

        Raises:
            StorageError: The disk is full, the file damaged, or its key missing; none is kept.
        """
        with self._writing() as (db, cipher):
            for name, at_s, plain in rows:
                sealed = cipher.seal(plain, _place("case", model, name))
                db.execute("INSERT OR IGNORE INTO cases (id, model, at_s, sealed) VALUES (?, ?, ?, ?)",
                           (name, model, at_s, sealed))  # fmt: skip
            over = """
            DELETE FROM cases WHERE number <= (
                SELECT max(number) FROM (
                    SELECT number, row_number() OVER newest AS place, sum(length(sealed)) OVER newest AS held
                    FROM cases WINDOW newest AS (ORDER BY number DESC)
                ) WHERE place > ? OR held > ?
            )
            """
            return db.execute(over, (MAX_CASES, MAX_BYTES)).rowcount

    def decide(self, model: str, name: str, plain: bytes, *, at_s: float, answering: bool = False) -> bool:
        """Record a decision; return whether the prediction was waiting for it. It does not wait any more.

        Args:
            model: The model.
            name: The prediction's id.
            plain: What was decided.
            at_s: When, Unix seconds.
            answering: Whether the fleet decides: then only on what was announced and waits, and nothing is
                recorded otherwise.

        Raises:
            StorageError: The disk is full, the file damaged, or its key missing; nothing is recorded.
        """
        with self._writing() as (db, cipher):
            if answering and not _waits(db, name, model):
                return False
            told = announced.decided(db, name, "answered" if answering else "here", at_s)
            if answering and not told:
                return False
            waited = db.execute("DELETE FROM cases WHERE id = ? AND model = ?", (name, model)).rowcount
            if answering:
                announced.count(db, "answered", 1)
            sealed = cipher.seal(plain, _place("record", model, name))
            db.execute("INSERT INTO records (id, model, at_s, sealed) VALUES (?, ?, ?, ?)",
                       (name, model, at_s, sealed))  # fmt: skip
            db.execute(
                "DELETE FROM records WHERE number <= (SELECT max(number) FROM records) - ?", (MAX_RECORDS,)
            )
            return waited == 1

    def clear(self, model: str) -> int:
        """Delete what waits for a model; return how many there were."""
        with self._lock, transaction(self._db(), self._path, _ADVICE) as db:
            return db.execute("DELETE FROM cases WHERE model = ?", (model,)).rowcount

    def cases(self, model: str, name: str | None = None) -> list[Row]:
        """Return what waits for a model, oldest first; or only the prediction ``name``, if it waits.

        Raises:
            StorageError: The file is damaged, or its key missing or another one.
        """
        query = "SELECT id, at_s, sealed FROM cases WHERE model = ? AND coalesce(?, id) = id ORDER BY number"
        return self._opened("case", query, model, name)

    def records(self, model: str) -> list[Row]:
        """Return what was decided on a model's predictions, oldest first.

        Raises:
            StorageError: The file is damaged, or its key missing or another one.
        """
        return self._opened(
            "record", "SELECT id, at_s, sealed FROM records WHERE model = ? ORDER BY number", model
        )

    def waiting(self) -> dict[str, int]:
        """Return how many predictions of each model wait; it takes no key to know."""
        query = "SELECT model, count(*) FROM cases GROUP BY model ORDER BY model"
        with self._lock, storage_errors(self._path, _ADVICE):
            return dict(self._db().execute(query).fetchall())

    def models(self) -> list[str]:
        """Return the models of which a prediction waits or was decided on; it takes no key to know."""
        query = "SELECT model FROM cases UNION SELECT model FROM records ORDER BY model"
        with self._lock, storage_errors(self._path, _ADVICE):
            return [model for (model,) in self._db().execute(query)]

    def shared(self) -> tuple[int, int]:
        """Return how many predictions the fleet was ever told of, and how many of them were decided from there."""
        with self._lock, storage_errors(self._path, _ADVICE):
            held = dict(self._db().execute("SELECT name, value FROM facts WHERE name <> 'key'").fetchall())
        return int(held.get("announced", 0)), int(held.get("answered", 0))

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Give the file for a change that needs no key: all of it, or nothing.

        Raises:
            StorageError: The disk is full, or the file damaged.
        """
        with self._lock, transaction(self._db(), self._path, _ADVICE) as db:
            yield db

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(
                self._path, _SCHEMA, synchronous="FULL", advice=_ADVICE, pragmas=("secure_delete = ON",)
            )
        return self._connection

    def _opened(self, kind: str, query: str, model: str, *values: str | None) -> list[Row]:
        with self._lock, storage_errors(self._path, _ADVICE):
            found = self._db().execute(query, (model, *values)).fetchall()
            cipher = self._cipher(self._db()) if found else None
        if cipher is None:
            return []
        try:
            return [
                (name, at_s, cipher.open(sealed, _place(kind, model, name))) for name, at_s, sealed in found
            ]
        except VerificationError as exc:
            raise StorageError(f"{self._path} is damaged: {_ADVICE}") from exc

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, Cipher]]:
        from umbel._home.cipher import load_cipher, new_cipher

        with self._lock, transaction(self._db(), self._path, _ADVICE) as db:
            cipher = self._cipher(db)
            if cipher is None:
                # In the transaction, so that no two processes make one each.
                cipher = load_cipher(self._key_file) or new_cipher(self._key_file)
                db.execute("INSERT OR REPLACE INTO facts VALUES ('key', ?)", (cipher.id,))
            yield db, cipher

    def _cipher(self, db: sqlite3.Connection) -> Cipher | None:
        row = db.execute("SELECT value FROM facts WHERE name = 'key'").fetchone()
        if row is None:
            return None
        from umbel._home.cipher import load_cipher

        cipher = load_cipher(self._key_file)
        if cipher is None or cipher.id != row[0]:
            raise StorageError(f"{self._key_file} is not the key to {self._path}: {_ADVICE}")
        return cipher


def _waits(db: sqlite3.Connection, name: str, model: str) -> bool:
    row = db.execute("SELECT 1 FROM cases WHERE id = ? AND model = ?", (name, model)).fetchone()
    return row is not None


def _place(kind: str, model: str, name: str) -> bytes:
    """Return what a row is bound to: its table, its model and its prediction."""
    return digest("umbel/1/local-review", kind, model, name)
