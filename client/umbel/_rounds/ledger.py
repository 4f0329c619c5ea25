"""What this device has spent of its privacy budget.

A charge is on disk before anything computed from the device's data leaves it. A power cut
after that loses a round, never a charge.

Two lines are kept, one for each unit of privacy: what rounds gave away about the device, and what trainings
gave away about any one of its examples. They are never added to each other.
"""

from __future__ import annotations

import hmac
import math
import sqlite3
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from umbel._fork import Lock
from umbel._home.files import sync_directory
from umbel._home.sqlite import connect, storage_errors, transaction
from umbel_proto.errors import RefusedError, StorageError, UsageError
from umbel_proto.ids import RunId
from umbel_proto.privacy import examples
from umbel_proto.privacy.examples import ExampleCharge, NoisySteps
from umbel_proto.privacy.ledger import Charge, check, spent

_ADVICE = (
    "the device cannot know what it has spent, and takes part in no more rounds. Restore the newest copy, "
    "or start with new data."
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS charges (
    id       INTEGER PRIMARY KEY,
    sid      BLOB NOT NULL UNIQUE,   -- session id, 32 bytes; each is charged once
    run      TEXT NOT NULL,
    round    INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    bound_sq TEXT NOT NULL,          -- squared L2 bound of the encoded update, an integer; may pass 64 bits
    padded   INTEGER NOT NULL,       -- coordinates
    variance TEXT NOT NULL,          -- of the honest noise per coordinate, a fraction "p/q"
    at_s     REAL NOT NULL           -- device clock, Unix seconds
) STRICT;
CREATE TABLE IF NOT EXISTS trainings (
    id       INTEGER PRIMARY KEY,
    sid      BLOB NOT NULL,          -- session id, 32 bytes; a session trained twice is charged twice
    run      TEXT NOT NULL,
    round    INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    rate     REAL NOT NULL,          -- probability with which an example is drawn into a step, in (0, 1]
    steps    INTEGER NOT NULL,       -- steps taken at most
    noise    REAL NOT NULL,          -- deviation of a step's noise over the largest norm of a gradient
    at_s     REAL NOT NULL           -- device clock, Unix seconds
) STRICT;
"""
_INSERT = """
INSERT INTO charges (run, round, attempt, sid, bound_sq, padded, variance, at_s)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_SELECT = "SELECT run, round, attempt, sid, bound_sq, padded, variance, at_s FROM charges ORDER BY id"

_INSERT_TRAINING = """
INSERT INTO trainings (run, round, attempt, sid, rate, steps, noise, at_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_SELECT_TRAININGS = "SELECT run, round, attempt, sid, rate, steps, noise, at_s FROM trainings ORDER BY id"


class Ledger:
    """The privacy ledger of one device: charges are added and never taken back.

    Args:
        path: The file. It must be there: a missing ledger is a budget that nobody knows.

    Raises:
        StorageError: The file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise StorageError(f"{path} is missing: {_ADVICE}")
        if path.stat().st_size == 0:  # SQLite would take it for a new one.
            raise StorageError(f"{path} is empty: {_ADVICE}")
        self._path = path
        self._lock = Lock()
        self._connection = connect(path, _SCHEMA, synchronous="FULL", advice=_ADVICE)

    @classmethod
    def create(cls, path: Path) -> Ledger:
        """Open the ledger of a device, making it where there is none.

        Raises:
            StorageError: The disk is full, or the file is damaged.
        """
        with storage_errors(path, _ADVICE):
            if not path.exists():
                draft = path.with_name(path.name + ".new")
                for left in (draft, *path.parent.glob(draft.name + "-*")):
                    left.unlink(missing_ok=True)
                # Closed, it is one file with all its tables: whole when it gets its name.
                connect(draft, _SCHEMA, synchronous="FULL", advice=_ADVICE).close()
                draft.replace(path)
                sync_directory(path.parent)
        return cls(path)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def charge(self, charge: Charge, *, budget_epsilon: float, budget_delta: float) -> float:
        """Spend part of the budget, once for each session.

        When this returns, the charge is on disk.

        Args:
            charge: What the session releases.
            budget_epsilon: What the device may spend over its life.
            budget_delta: The delta that goes with it.

        Returns:
            Epsilon spent, with this charge.

        Raises:
            BudgetError: The budget does not cover it; nothing is charged.
            RefusedError: The session is charged already. Whoever resends the bytes of its first answer need
                not ask; a new answer, with noise drawn anew, would be a second release under one charge.
            StorageError: The disk is full or the file damaged; nothing is charged.
        """
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            charges = self._read(db)
            for old in charges:
                if hmac.compare_digest(old.sid, charge.sid):
                    raise RefusedError(
                        f"This device has answered round {charge.round} of run {charge.run} already, attempt "
                        f"{charge.attempt}: a second answer would give away more than was charged."
                    )
            epsilon = check(charges, charge, budget_epsilon=budget_epsilon, budget_delta=budget_delta)
            db.execute(_INSERT, _row(charge))
        return epsilon

    def require_room(self, charge: Charge, *, budget_epsilon: float, budget_delta: float) -> None:
        """Go on only if a query could be charged, and was not before; nothing is charged.

        Raises:
            BudgetError: The budget does not cover it.
            RefusedError: The query was answered: each is answered once, whatever sessions it is put into.
            StorageError: The file is damaged.
        """
        charges = self.charges()
        if any(old.run == charge.run for old in charges):
            raise RefusedError(f"This device has answered query {charge.run} already: each is answered once.")
        check(charges, charge, budget_epsilon=budget_epsilon, budget_delta=budget_delta)

    def inherit(self, charges: Iterable[Charge]) -> int:
        """Enter what the fleet has on record and this ledger has not, whatever the budget; return how many those are.

        A session is known by its run, round and attempt: the fleet keeps no session ids.

        Raises:
            StorageError: The disk is full or the file damaged; nothing is entered.
        """
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            known = {(each.run, each.round, each.attempt) for each in self._read(db)}
            missing = [each for each in charges if (each.run, each.round, each.attempt) not in known]
            for each in missing:
                db.execute(_INSERT, _row(each))
        return len(missing)

    def charge_training(
        self, charge: ExampleCharge, *, budget_epsilon: float = math.inf, budget_delta: float
    ) -> float:
        """Spend part of the budget of the device's examples, each time a training begins.

        When this returns, the charge is on disk.

        Args:
            charge: What the training gives away.
            budget_epsilon: What may be spent on one example over the device's life; infinite to keep count.
            budget_delta: The delta that goes with it.

        Returns:
            Epsilon spent, with this charge.

        Raises:
            BudgetError: The budget does not cover it; nothing is charged.
            StorageError: The disk is full or the file damaged; nothing is charged.
        """
        with self._lock, transaction(self._connection, self._path, _ADVICE) as db:
            epsilon = examples.check(
                self._read_trainings(db), charge, budget_epsilon=budget_epsilon, budget_delta=budget_delta
            )
            release = charge.release
            db.execute(
                _INSERT_TRAINING,
                (
                    charge.run,
                    charge.round,
                    charge.attempt,
                    charge.sid,
                    release.rate,
                    release.steps,
                    release.noise,
                    float(charge.at_s),
                ),
            )
        return epsilon

    def trainings(self) -> tuple[ExampleCharge, ...]:
        """Return every charge for training, oldest first.

        Raises:
            StorageError: The file is damaged.
        """
        with self._lock, storage_errors(self._path, _ADVICE):
            return self._read_trainings(self._connection)

    def charges(self) -> tuple[Charge, ...]:
        """Return every charge, oldest first.

        Raises:
            StorageError: The file is damaged.
        """
        with self._lock, storage_errors(self._path, _ADVICE):
            return self._read(self._connection)

    def spent(self, delta: float) -> float:
        """Return epsilon spent so far at ``delta``."""
        return spent(self.charges(), delta)

    def _read(self, db: sqlite3.Connection) -> tuple[Charge, ...]:
        rows = db.execute(_SELECT).fetchall()
        try:
            return tuple(
                Charge(RunId(run), round_, attempt, sid, int(bound_sq), padded, Fraction(variance), at_s)
                for run, round_, attempt, sid, bound_sq, padded, variance, at_s in rows
            )
        except (ValueError, ZeroDivisionError, UsageError) as exc:
            raise StorageError(f"{self._path} is damaged: {_ADVICE}") from exc

    def _read_trainings(self, db: sqlite3.Connection) -> tuple[ExampleCharge, ...]:
        rows = db.execute(_SELECT_TRAININGS).fetchall()
        try:
            return tuple(
                ExampleCharge(RunId(run), round_, attempt, sid, NoisySteps(rate, steps, noise), at_s)
                for run, round_, attempt, sid, rate, steps, noise, at_s in rows
            )
        except UsageError as exc:
            raise StorageError(f"{self._path} is damaged: {_ADVICE}") from exc


def _row(charge: Charge) -> tuple[object, ...]:
    return (
        charge.run,
        charge.round,
        charge.attempt,
        charge.sid,
        str(charge.bound_sq),
        charge.padded,
        str(charge.variance),
        float(charge.at_s),
    )
