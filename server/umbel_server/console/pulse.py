"""What the store looks like from afar, so that a screen knows when it is of yesterday."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, func, select

from umbel_server.store.store import Store
from umbel_server.store.tables import batches, rounds
from umbel_server.store.tables_audit import audit
from umbel_server.store.tables_rollouts import rollout_events

LOOK_S = 2.0
"""How often the store is looked at, however many screens are open."""
MAX_STREAMS, MAX_OF_ONE = 200, 10
"""Streams at one time, of all and of one user. With more, a screen asks every half minute instead."""
TIME_S = 15.0
"""Who is online changes with time alone: so often it is another matter."""

_TELEMETRY = ("telemetry",)
ABOUT: dict[str, tuple[str, ...]] = {
    "overview": ("telemetry", "rounds", "rollouts", "time"),
    "devices": ("time",),
    "models": (),
    "approvals": _TELEMETRY,
    "reviews": _TELEMETRY,
    "audit": (),
    "runs": ("rounds",),
    "queries": ("rounds",),
    "rollouts": ("rollouts", "telemetry"),
    "experiments": ("rollouts", "telemetry"),
    "drift": _TELEMETRY,
    "performance": _TELEMETRY,
    "fairness": _TELEMETRY,
    "energy": _TELEMETRY,
    "alerts": ("telemetry", "time"),
    "health": ("telemetry", "time"),
}
"""What a screen's topic looks at beside the audit log, in which every change by a person is."""


class Pulse:
    """What the store looks like from afar: short texts, another as soon as something changed.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: tuple[float, dict[str, str]] = (-LOOK_S, {})
        self._streams: Counter[str] = Counter()
        self.over = False

    def full(self, user: str) -> bool:
        """Return whether no further stream of a user can be: they have as many as one may, or all together have."""
        return self._streams[user] >= MAX_OF_ONE or self._streams.total() >= MAX_STREAMS

    @contextmanager
    def stream(self, user: str) -> Iterator[bool]:
        """Count a stream of a user while the ``with`` block runs; gives whether there is room for it.

        Streams begin and end in one thread, that of the event loop.
        """
        if self.full(user):
            yield False
            return
        self._streams[user] += 1
        try:
            yield True
        finally:
            self._streams[user] -= 1
            self._streams += Counter()  # Forgets who has none.

    def stop(self) -> None:
        """End every stream, within a moment: the service stops."""
        self.over = True

    def signs(self) -> dict[str, str]:
        """Return what each part looks like now, or did a moment ago: never as it will look later."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._seen[0] >= LOOK_S:
                self._seen = (now_s, self.look())
            return self._seen[1]

    def sign(self, about: str) -> str:
        """Return what a topic looks like, as a short text."""
        return sign_of(self.signs(), about)

    def look(self) -> dict[str, str]:
        """Return what each part looks like now."""
        with self._store.database.read() as connection:
            found = {name: repr(sign(connection)) for name, sign in _SIGNS.items()}
        return found | {"time": str(int(self._store.clock() // TIME_S))}


def sign_of(signs: dict[str, str], about: str) -> str:
    """Return what a topic looks like: all there is, where nobody said what it looks at."""
    seen = [signs[name] for name in ("audit", *ABOUT.get(about, tuple(signs)))]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


def _audit(connection: Connection) -> object:
    return connection.execute(select(func.max(audit.c.sequence))).scalar_one()


def _telemetry(connection: Connection) -> object:
    newest = connection.execute(select(func.max(batches.c.id))).scalar_one()
    waiting = connection.execute(select(func.min(batches.c.id)).where(batches.c.state == "sealed"))
    return newest, waiting.scalar_one()


def _rounds(connection: Connection) -> object:
    ended = select(func.count(), func.max(rounds.c.finished_s))
    running = select(rounds.c.run_id, rounds.c.round, rounds.c.attempt, rounds.c.phase)
    return (
        connection.execute(ended).one(),
        connection.execute(running.where(rounds.c.state == "running").limit(20)).all(),
    )


def _rollouts(connection: Connection) -> object:
    return connection.execute(select(func.count(), func.max(rollout_events.c.at_s))).one()


_SIGNS: dict[str, Callable[[Connection], object]] = {
    "audit": _audit,
    "telemetry": _telemetry,
    "rounds": _rounds,
    "rollouts": _rollouts,
}
