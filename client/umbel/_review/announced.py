"""Which predictions that wait were announced to the fleet, and how far that is: a table beside what waits.

An announcement is *new* until it is in the spool, then *told*; once its prediction waits no more it is *over*, until
that is in the spool too, then *closed*. Every step is on the disk before the next one: who is killed between two goes on
from there, and at most says again, under the same id, what was said.
"""

from __future__ import annotations

import secrets
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umbel._review.store import ReviewStore
    from umbel_proto.reviews import End

ID_BYTES = 16
MAX_OPEN = 100
"""As ``umbel_proto.reviews`` has them, which takes time to import: who only opens a model does not wait for it."""

KEPT_S = 60 * 86400.0
"""For longer than a fleet keeps an answer: one that comes late is not taken for another's."""
AGAIN_S = 3600.0
"""After so long an answer that is still sent means that what became of it was lost."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS announced (
    id         BLOB PRIMARY KEY,      -- 16 random bytes: what the fleet calls it
    prediction TEXT UNIQUE,           -- the prediction's id; NULL: none of this device, or withdrawn
    model      TEXT NOT NULL,         -- empty: none of this device
    state      TEXT NOT NULL CHECK (state IN ('new', 'told', 'over', 'closed')),
    how        TEXT NOT NULL,         -- what became of it, as in umbel_proto.reviews.End; empty: it waits
    at_s       REAL NOT NULL          -- when it came to this state, Unix seconds
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Due:
    """What the fleet is to be told.

    Args:
        fresh: Of each model, its predictions that wait and were not announced: ids of announcement and prediction.
        ended: What was announced and waits no more: its id, and what became of it, a word of
            ``umbel_proto.reviews.End``.
    """

    fresh: dict[str, dict[str, bytes]]
    ended: tuple[tuple[bytes, str], ...]


@dataclass(frozen=True, slots=True)
class Announcement:
    """One announcement.

    Args:
        id: The fleet's word for it.
        prediction: The prediction's id; empty: it is none of this device, or withdrawn.
        model: The model.
        waits: Whether the prediction still waits.
    """

    id: bytes
    prediction: str
    model: str
    waits: bool


@dataclass(frozen=True, slots=True)
class Announced:
    """The announcements of a device.

    Args:
        store: What waits.
    """

    store: ReviewStore

    def due(self, *, allowed: bool, now_s: float) -> Due:
        """Draw ids for what waits and was not announced, note what waits no more, and return both.

        Args:
            allowed: Whether anything may be announced; if not, what was is withdrawn.
            now_s: The time, Unix seconds.

        Raises:
            StorageError: The disk is full, or the file damaged.
        """
        with self.store.changing() as db:
            if allowed:
                gone = "state IN ('new', 'told') AND prediction NOT IN (SELECT id FROM cases)"
                _over(db, gone, "gone", now_s)
                _draw(db, now_s)
            else:
                # Also what was decided since: the fleet is to forget all that it was told.
                _over(db, "how <> 'withdrawn' AND model <> ''", "withdrawn", now_s)
            db.execute("DELETE FROM announced WHERE state = 'closed' AND at_s < ?", (now_s - KEPT_S,))
            fresh: dict[str, dict[str, bytes]] = {}
            for model, prediction, name in db.execute(
                "SELECT model, prediction, id FROM announced WHERE state = 'new'"
            ):
                fresh.setdefault(model, {})[prediction] = name
            ended = db.execute("SELECT id, how FROM announced WHERE state = 'over' LIMIT ?", (MAX_OPEN,))
            return Due(fresh, tuple(ended.fetchall()))

    def nothing(self) -> bool:
        """Return whether the fleet was never told of anything, or has been told to forget all of it."""
        with self.store.changing() as db:
            row = db.execute("SELECT 1 FROM announced WHERE how <> 'withdrawn' OR state = 'over' LIMIT 1")
            return row.fetchone() is None

    def told(self, due: Due, *, now_s: float) -> None:
        """Note that all of it is in the spool."""
        fresh = [name for each in due.fresh.values() for name in each.values()]
        with self.store.changing() as db:
            for name in fresh:
                first = db.execute(
                    "UPDATE announced SET state = 'told', at_s = ? WHERE id = ? AND state = 'new'",
                    (now_s, name),
                ).rowcount
                count(db, "announced", first)
            for ended, how in due.ended:
                # What is withdrawn may be announced anew, under another id, if the user allows that again.
                db.execute(
                    "UPDATE announced SET state = 'closed', at_s = ?, "
                    "prediction = CASE how WHEN 'withdrawn' THEN NULL ELSE prediction END "
                    "WHERE id = ? AND state = 'over' AND how = ?",
                    (now_s, ended, how),
                )

    def find(self, name: bytes, *, now_s: float) -> Announcement:
        """Return an announcement that the fleet answers; of one that is over, note to tell so again.

        Raises:
            StorageError: The disk is full, or the file damaged.
        """
        with self.store.changing() as db:
            row = db.execute(
                "SELECT prediction, model, state FROM announced WHERE id = ?", (name,)
            ).fetchone()
            if row is None:
                db.execute(
                    "INSERT INTO announced (id, model, state, how, at_s) VALUES (?, '', 'over', 'gone', ?)",
                    (name, now_s),
                )
                return Announcement(name, "", "", waits=False)
            db.execute(
                "UPDATE announced SET state = 'over' WHERE id = ? AND state = 'closed' AND at_s < ?",
                (name, now_s - AGAIN_S),
            )
            prediction, model, state = row
            return Announcement(name, prediction or "", model, waits=state in ("new", "told"))

    def end(self, name: bytes, how: End, *, now_s: float) -> None:
        """Note what became of one, unless that is known."""
        with self.store.changing() as db:
            _over(db, "state IN ('new', 'told') AND id = ?", how, now_s, name)


def decided(db: sqlite3.Connection, prediction: str, how: End, now_s: float) -> bool:
    """Note, in the transaction of a decision, that its prediction waits no more; return whether it was announced."""
    return _over(db, "state IN ('new', 'told') AND prediction = ?", how, now_s, prediction) == 1


def count(db: sqlite3.Connection, name: str, by: int) -> None:
    """Add to what is counted over the device's life."""
    db.execute(
        "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        (name, by),
    )


def _over(db: sqlite3.Connection, which: str, how: End, now_s: float, *values: str | bytes) -> int:
    query = f"UPDATE announced SET state = 'over', how = ?, at_s = ? WHERE {which}"  # noqa: S608  # Ours.
    return db.execute(query, (how, now_s, *values)).rowcount


def _draw(db: sqlite3.Connection, now_s: float) -> None:
    """Draw an id for what waits and was not announced, as many as may be open; the oldest first."""
    (open_now,) = db.execute("SELECT count(*) FROM announced WHERE state IN ('new', 'told')").fetchone()
    fresh = db.execute(
        "SELECT id, model FROM cases WHERE id NOT IN "
        "(SELECT prediction FROM announced WHERE prediction IS NOT NULL) ORDER BY number LIMIT ?",
        (max(MAX_OPEN - open_now, 0),),
    ).fetchall()
    db.executemany(
        "INSERT INTO announced (id, prediction, model, state, how, at_s) VALUES (?, ?, ?, 'new', '', ?)",
        [(secrets.token_bytes(ID_BYTES), prediction, model, now_s) for prediction, model in fresh],
    )
