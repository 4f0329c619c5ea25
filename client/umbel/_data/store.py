"""Examples on disk: every row encrypted and bound to its place, within bounds of age, number and size.

What may be read without the key: how many rows there are of which model, how large and how old they are, and
nothing that an example or its label says.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from umbel._data.rows import Held, NewRow, Retention, Row
from umbel._fork import Lock
from umbel._home.cipher import Cipher, destroy_key, load_cipher, new_cipher
from umbel._home.files import storage_error
from umbel._home.sqlite import connect, storage_errors, transaction
from umbel_proto.encoding import digest
from umbel_proto.errors import StorageError, UsageError, VerificationError

JUMP_S = 7 * 86400.0
"""A clock that is further ahead than this since it was last seen is not believed at once.."""
BELIEVE_S = 86400.0
"""..but after it went on from there for so long: rows do not age by a clock that is wrong for an hour."""

MAX_LABELS = 32
"""Of one example: the oldest go."""

_ADVICE = "restore a copy of it, or begin anew with  umbel data delete --all"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS examples (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival
    name    BLOB NOT NULL UNIQUE,               -- 8 random bytes; sealed with the row, so that no row is there twice
    model   TEXT NOT NULL,
    schema  BLOB NOT NULL,                      -- digest of what the model takes and answers, 32 bytes
    exact   BLOB NOT NULL,                      -- keyed mark of the input, 16 bytes
    near    BLOB NOT NULL,                      -- keyed mark of the input, rounded
    shifted BLOB NOT NULL,                      -- the same, rounded on a grid that lies half a step away
    added_s REAL NOT NULL,                      -- device clock, Unix seconds
    sealed  BLOB NOT NULL                       -- AES-256-GCM: where it is from, and the input
) STRICT;
CREATE INDEX IF NOT EXISTS examples_of_model ON examples (model, id);
CREATE INDEX IF NOT EXISTS examples_by_age ON examples (model, added_s);
CREATE TABLE IF NOT EXISTS labels (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    example INTEGER NOT NULL REFERENCES examples ON DELETE CASCADE,
    name    BLOB NOT NULL UNIQUE,               -- 8 random bytes, sealed with the row
    added_s REAL NOT NULL,                      -- device clock, Unix seconds
    sealed  BLOB NOT NULL                       -- AES-256-GCM: the label, where it is from, and who gave it
) STRICT;
CREATE INDEX IF NOT EXISTS labels_of_example ON labels (example);
CREATE TABLE IF NOT EXISTS totals (             -- of examples, so that no change has to count them
    model TEXT PRIMARY KEY,
    rows  INTEGER NOT NULL,
    bytes INTEGER NOT NULL                      -- sum of length(sealed)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS example_came AFTER INSERT ON examples BEGIN
    INSERT OR IGNORE INTO totals VALUES (new.model, 0, 0);
    UPDATE totals SET rows = rows + 1, bytes = bytes + length(new.sealed) WHERE model = new.model;
END;
CREATE TRIGGER IF NOT EXISTS example_went AFTER DELETE ON examples BEGIN
    UPDATE totals SET rows = rows - 1, bytes = bytes - length(old.sealed) WHERE model = old.model;
END;
CREATE TABLE IF NOT EXISTS bounds (
    model     TEXT PRIMARY KEY,
    max_age_s REAL NOT NULL,
    max_rows  INTEGER NOT NULL,
    max_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gone (
    model   TEXT PRIMARY KEY,
    expired INTEGER NOT NULL,                   -- rows deleted because of their age
    crowded INTEGER NOT NULL                    -- rows deleted for want of room
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (
    name  TEXT PRIMARY KEY,
    value ANY NOT NULL
    -- key:       id of the key that every row is sealed with, 8 bytes
    -- latest_s:  the latest time that was believed, Unix seconds
    -- doubted_s: the time at which the clock was found far ahead of that; 0 while it is believed
) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO facts VALUES ('latest_s', 0.0), ('doubted_s', 0.0);
"""


class Store:
    """The file of a device's examples. Several processes may use it at once.

    Args:
        path: The file; made if missing.
        key_file: Its key; made with the first row.

    Raises:
        StorageError: The file is damaged or the disk full.
    """

    def __init__(self, path: Path, key_file: Path) -> None:
        self._path = path
        self._key_file = key_file
        self._lock = Lock()
        self._connection = connect(
            path,
            _SCHEMA,
            synchronous="FULL",
            advice=_ADVICE,
            pragmas=("foreign_keys = ON", "secure_delete = ON"),
        )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """A block whose changes are kept all or not at all; one writer at a time.

        Raises:
            StorageError: The disk is full, the file damaged, or its key missing.
            UnavailableError: Another process held the file for too long.
        """
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            yield Writer(db, self._path, self._key_file)

    def held(self) -> tuple[Held, ...]:
        """Return how much there is of every model.

        Raises:
            StorageError: The file is damaged.
        """
        query = """
        SELECT model, rows, bytes, coalesce(expired, 0), coalesce(crowded, 0)
        FROM totals LEFT JOIN gone USING (model) ORDER BY model
        """
        with self._lock, storage_errors(self._path, _ADVICE):
            return tuple(Held(*row) for row in self._connection.execute(query))

    def retention(self, model: str) -> Retention:
        """Return how long a model's examples are kept."""
        with self._lock, storage_errors(self._path, _ADVICE):
            return _retention(self._connection, model)

    def rows(self, model: str) -> list[Row]:
        """Return a model's examples, oldest first.

        Raises:
            StorageError: The file is damaged, or its key missing or another one.
        """
        with self._lock, storage_errors(self._path, _ADVICE):
            db = self._connection
            # One transaction: labels and examples of one moment, and of one key.
            db.execute("BEGIN")
            try:
                found = db.execute(
                    "SELECT id, name, schema, exact, near, shifted, added_s, sealed FROM examples "
                    "WHERE model = ? ORDER BY id",
                    (model,),
                ).fetchall()
                labels = db.execute(
                    "SELECT labels.example, labels.name, labels.added_s, labels.sealed FROM labels "
                    "JOIN examples ON examples.id = labels.example WHERE model = ? ORDER BY labels.id",
                    (model,),
                ).fetchall()
                cipher = _cipher(db, self._path, self._key_file) if found else None
            finally:
                db.execute("COMMIT")
        if cipher is None:
            return []
        try:
            return _opened(cipher, model, found, labels)
        except VerificationError as exc:
            raise StorageError(f"{self._path} is damaged: {_ADVICE}") from exc


class Writer:
    """What may be done to a store in one transaction."""

    def __init__(self, db: sqlite3.Connection, path: Path, key_file: Path) -> None:
        self._db = db
        self._path = path
        self._key_file = key_file

    def cipher(self) -> Cipher:
        """Return what seals rows, with a new key if there is no row yet.

        Raises:
            StorageError: The key is missing, another one, or open to others.
        """
        return _cipher(self._db, self._path, self._key_file) or self._renewed()

    def add(self, model: str, schema: bytes, rows: Sequence[NewRow], *, now_s: float) -> list[str]:
        """Keep examples, and delete what is then over a bound; return their names."""
        cipher = self.cipher()
        names = []
        for row in rows:
            name = os.urandom(8)
            added = self._db.execute(
                "INSERT INTO examples (name, model, schema, exact, near, shifted, added_s, sealed) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    name,
                    model,
                    schema,
                    *row.marks,
                    now_s,
                    cipher.seal(row.content, _place(model, schema, row.marks, name)),
                ),
            )
            if row.label is not None:
                assert added.lastrowid is not None
                self._add_label(cipher, added.lastrowid, name, row.label, now_s)
            names.append(name.hex())
        self.expire(model, now_s=now_s)
        return names

    def label(self, model: str, name: str, content: bytes, *, now_s: float) -> None:
        """Add a label to an example.

        Raises:
            UsageError: There is no such example.
        """
        raw = _raw(name)
        found = self._db.execute(
            "SELECT id FROM examples WHERE name = ? AND model = ?", (raw, model)
        ).fetchone()
        if found is None:
            raise UsageError(f"Model {model} has no example {name!r} here: it may have been deleted.")
        self._add_label(self.cipher(), found[0], raw, content, now_s)

    def remove(self, model: str, names: Sequence[str]) -> int:
        """Delete examples, and return how many of them were here."""
        return sum(
            self._db.execute(
                "DELETE FROM examples WHERE name = ? AND model = ?", (_raw(name), model)
            ).rowcount
            for name in names
        )

    def clear(self, model: str) -> int:
        """Delete all examples of a model, and return how many there were."""
        return self._db.execute("DELETE FROM examples WHERE model = ?", (model,)).rowcount

    def retain(self, model: str, retention: Retention) -> None:
        """Keep a model's examples within other bounds from now on."""
        self._db.execute(
            "INSERT OR REPLACE INTO bounds VALUES (?, ?, ?, ?)",
            (model, retention.max_age_s, retention.max_rows, retention.max_bytes),
        )

    def expire(self, model: str, *, now_s: float) -> None:
        """Delete what is over a bound of a model, and count it."""
        bounds = _retention(self._db, model)
        believed_s = self._believed(now_s)
        expired = 0
        if believed_s is not None:
            expired = self._db.execute(
                "DELETE FROM examples WHERE model = ? AND added_s < ?", (model, believed_s - bounds.max_age_s)
            ).rowcount
        crowded = self._drop_oldest(model, bounds)
        if expired or crowded:
            self._db.execute(
                "INSERT INTO gone VALUES (?, ?, ?) ON CONFLICT (model) DO UPDATE "
                "SET expired = expired + excluded.expired, crowded = crowded + excluded.crowded",
                (model, expired, crowded),
            )

    def _drop_oldest(self, model: str, bounds: Retention) -> int:
        """Delete the oldest examples until the rest is within bounds, and return how many went."""
        row = self._db.execute("SELECT rows, bytes FROM totals WHERE model = ?", (model,)).fetchone()
        rows, held = row or (0, 0)
        last = 0
        if rows > bounds.max_rows or held > bounds.max_bytes:
            oldest = self._db.execute(
                "SELECT id, length(sealed) FROM examples WHERE model = ? ORDER BY id", (model,)
            )
            for number, size in oldest:
                last, rows, held = number, rows - 1, held - size
                if rows <= bounds.max_rows and held <= bounds.max_bytes:
                    break
            oldest.close()
        return self._db.execute("DELETE FROM examples WHERE model = ? AND id <= ?", (model, last)).rowcount

    def _believed(self, now_s: float) -> float | None:
        """Return the time to tell ages by, or None while the clock may be wrong."""
        latest_s, doubted_s = _fact(self._db, "latest_s"), _fact(self._db, "doubted_s")
        if latest_s and now_s - latest_s > JUMP_S:
            if not 0 < doubted_s <= now_s:
                self._set("doubted_s", now_s)
                return None
            if now_s - doubted_s < BELIEVE_S:
                return None
        self._set("doubted_s", 0.0)
        self._set("latest_s", max(latest_s, now_s))
        return max(latest_s, now_s)

    def _set(self, name: str, value: float) -> None:
        self._db.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))

    def _add_label(self, cipher: Cipher, example: int, of: bytes, content: bytes, now_s: float) -> None:
        name = os.urandom(8)
        self._db.execute(
            "INSERT INTO labels (example, name, added_s, sealed) VALUES (?, ?, ?, ?)",
            (example, name, now_s, cipher.seal(content, _label_place(of, name))),
        )
        self._db.execute(
            "DELETE FROM labels WHERE example = ?1 AND id <= "
            "(SELECT id FROM labels WHERE example = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            (example, MAX_LABELS),
        )

    def _renewed(self) -> Cipher:
        # In the transaction, so that no two processes make one each; a key without rows harms nobody.
        cipher = load_cipher(self._key_file) or new_cipher(self._key_file)
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('key', ?)", (cipher.id,))
        return cipher


def erase(path: Path, key_file: Path) -> int:
    """Delete every example, and destroy the key first, so that copies of the file say nothing either.

    Returns:
        How many examples there were; 0 where a damaged file could not tell.

    Raises:
        StorageError: The disk cannot be written.
        UnavailableError: Another process holds the file; the key is gone by then.
    """
    destroy_key(key_file)
    if not path.exists():
        return 0
    try:
        connection = connect(path, _SCHEMA, synchronous="FULL", advice=_ADVICE)
    except StorageError:
        _delete_files(path)
        return 0
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        with transaction(connection, path, _ADVICE) as db:
            count = db.execute("DELETE FROM examples").rowcount
            db.execute("DELETE FROM totals")
            db.execute("DELETE FROM facts WHERE name = 'key'")
            destroy_key(key_file)  # Made again by one who was just adding.
        with storage_errors(path, _ADVICE):
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    return count


def _delete_files(path: Path) -> None:
    try:
        for each in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            each.unlink(missing_ok=True)
    except OSError as exc:
        raise storage_error(exc, path) from exc


def _cipher(db: sqlite3.Connection, path: Path, key_file: Path) -> Cipher | None:
    """Return the cipher of the rows that are there; None where no key was ever needed.

    Raises:
        StorageError: Its key is missing, another one, or open to others.
    """
    row = db.execute("SELECT value FROM facts WHERE name = 'key'").fetchone()
    if row is None:
        return None
    cipher = load_cipher(key_file)
    if cipher is None:
        if db.execute("SELECT 1 FROM examples").fetchone() is None:
            return None
        raise StorageError(
            f"{key_file} is missing, the key to {path}: restore it, or begin anew with  umbel data delete --all"
        )
    if cipher.id != row[0]:
        if db.execute("SELECT 1 FROM examples").fetchone() is None:
            return None
        raise StorageError(
            f"{key_file} is not the key to {path}: restore the right one, or begin anew with  umbel data delete --all"
        )
    return cipher


def _opened(
    cipher: Cipher,
    model: str,
    found: Sequence[tuple[int, bytes, bytes, bytes, bytes, bytes, float, bytes]],
    labels: Sequence[tuple[int, bytes, float, bytes]],
) -> list[Row]:
    names = {number: name for number, name, *_ in found}
    said: dict[int, list[tuple[float, bytes]]] = {number: [] for number in names}
    for number, name, added_s, sealed in labels:
        said[number].append((added_s, cipher.open(sealed, _label_place(names[number], name))))
    rows = []
    for number, name, schema, exact, near, shifted, added_s, sealed in found:
        marks = (exact, near, shifted)
        content = cipher.open(sealed, _place(model, schema, marks, name))
        rows.append(Row(name.hex(), schema, marks, added_s, content, tuple(said[number])))
    return rows


def _place(model: str, schema: bytes, marks: tuple[bytes, bytes, bytes], name: bytes) -> bytes:
    """Return what an example is bound to: its model, what that takes, its marks, and its own name."""
    return digest("umbel/1/local-example", model, schema, *marks, name)


def _label_place(example: bytes, name: bytes) -> bytes:
    return digest("umbel/1/local-label", example, name)


def _retention(db: sqlite3.Connection, model: str) -> Retention:
    row = db.execute("SELECT max_age_s, max_rows, max_bytes FROM bounds WHERE model = ?", (model,)).fetchone()
    return Retention() if row is None else Retention(*row)


def _fact(db: sqlite3.Connection, name: str) -> float:
    return float(db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0])


def _raw(name: str) -> bytes:
    try:
        return bytes.fromhex(name)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"{name!r} names no example: names have 16 hexadecimal digits.") from exc
