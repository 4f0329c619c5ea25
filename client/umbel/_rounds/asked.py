"""What this device was asked by queries, and what it said: for whoever wants to look.

Whether an answer left is not kept here but in the ledger, where it is charged under the query's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from umbel._fork import Lock
from umbel._home.sqlite import connect, storage_errors, transaction
from umbel_proto.analytics.query import Query

KEPT = 1000
"""Of refused queries: a server that asks for ever fills no disk."""
_ADVICE = "delete it: the ledger knows what was answered, and only what was asked is lost."
_SCHEMA = """
CREATE TABLE IF NOT EXISTS queries (
    id         TEXT PRIMARY KEY,        -- the query's name, and its charge's run
    kind       TEXT NOT NULL,           -- histogram, mean, quantile or fairness
    model      TEXT NOT NULL,
    version    INTEGER NOT NULL,
    field      TEXT NOT NULL,           -- what was asked about
    cohort     TEXT NOT NULL,           -- empty: none
    sentence   TEXT NOT NULL,           -- what was asked, in plain words
    per_device INTEGER NOT NULL,        -- as how many examples the device counts at most
    asked_by   TEXT NOT NULL,
    why        TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('agreed', 'refused')),
    reason     TEXT NOT NULL,           -- why it was refused; empty if it was not
    at_s       REAL NOT NULL            -- device clock, Unix seconds
) STRICT;
"""
_PUT = """
INSERT OR REPLACE INTO queries
    (id, kind, model, version, field, cohort, sentence, per_device, asked_by, why, state, reason, at_s)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_SELECT = """
SELECT id, kind, model, version, field, cohort, sentence, per_device, asked_by, why, state, reason, at_s
FROM queries ORDER BY at_s, id
"""
_PRUNE = """
DELETE FROM queries WHERE state = 'refused' AND id NOT IN (
    SELECT id FROM queries WHERE state = 'refused' ORDER BY at_s DESC LIMIT ?
)
"""


@dataclass(frozen=True, slots=True)
class AskedQuery:
    """A query that reached this device, signed by its fleet.

    Args:
        id: Its name.
        kind: ``histogram``, ``mean``, ``quantile`` or ``fairness``.
        model: Whose examples it is about.
        version: The version of its package.
        field: What it asks about.
        cohort: By which column it compares; empty: none.
        sentence: What it asks, in plain words.
        per_device: As how many examples this device counts at most.
        asked_by: Who asks.
        why: What for.
        state: ``agreed``, whether or not the round came to the device's answer; or ``refused``.
        reason: Why it was refused; empty if it was not.
        at_s: When, Unix seconds of the device's clock.
    """

    id: str
    kind: str
    model: str
    version: int
    field: str
    cohort: str
    sentence: str
    per_device: int
    asked_by: str
    why: str
    state: Literal["agreed", "refused"]
    reason: str
    at_s: float

    def to_json(self, epsilon_after: float | None) -> dict[str, Any]:
        """Return it as ``umbel privacy --json`` prints it.

        Args:
            epsilon_after: What the device had spent after it was charged for its answer; None: it gave none.
        """
        return {
            "query": self.id,
            "kind": self.kind,
            "model": self.model,
            "version": self.version,
            "field": self.field,
            "cohort": self.cohort,
            "asks": self.sentence,
            "per_device": self.per_device,
            "asked_by": self.asked_by,
            "why": self.why,
            "answered": epsilon_after is not None,
            "refused": self.reason if epsilon_after is None else "",
            "at_s": self.at_s,
            "epsilon_after": epsilon_after,
        }


class AskedQueries:
    """The queries that a device was asked.

    Args:
        path: The file; made if it is missing.

    Raises:
        StorageError: The file is damaged, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._connection = connect(path, _SCHEMA, synchronous="FULL", advice=_ADVICE)

    def __enter__(self) -> AskedQueries:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def put(self, query: Query, *, refused: str = "", at_s: float) -> None:
        """Keep that a query was asked, and what this device says to it; the newest word of a query holds.

        Raises:
            StorageError: The disk is full or the file damaged.
        """
        row = (
            query.id,
            query.kind,
            query.model,
            query.version,
            query.field,
            query.cohort,
            query.sentence,
            query.per_device,
            query.asked_by,
            query.why,
            "refused" if refused else "agreed",
            refused,
            float(at_s),
        )
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            db.execute(_PUT, row)
            db.execute(_PRUNE, (KEPT,))

    def all(self) -> tuple[AskedQuery, ...]:
        """Return every query that is kept, the oldest first.

        Raises:
            StorageError: The file is damaged.
        """
        with self._lock, storage_errors(self._path, _ADVICE):
            rows = self._connection.execute(_SELECT).fetchall()
        return tuple(AskedQuery(*row) for row in rows)
