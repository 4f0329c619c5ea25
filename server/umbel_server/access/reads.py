"""Reads that are on record: whoever takes away what is sensitive, as data, is in the audit log.

Source: docs/spec/audit.md, section 4.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from umbel_server.store.audit import Sought

if TYPE_CHECKING:
    from umbel_server.access.actor import Actor
    from umbel_server.store.store import Store

ONCE_S = 60.0
"""Within so many seconds the pages of a list that one account reads over the API are one entry."""


class Read(enum.StrEnum):
    """A read that is on record, by the action of its entry."""

    TELEMETRY_KEY = "telemetry-key.read"
    TELEMETRY = "telemetry.export"
    BACKUP = "fleet.backup"
    AUDIT = "audit.export"
    REVIEWS = "review.export"


def on_record(store: Store, actor: Actor, read: Read, *, fleet: str, paged: bool = False) -> None:
    """Keep in the audit log that somebody reads, before anything is given.

    Args:
        store: The store.
        actor: Who reads.
        read: What.
        fleet: The fleet's name.
        paged: Whether it is read page by page: an entry for each would never end, of a list that grows by it.

    Raises:
        StorageError: It cannot be kept: then nothing is given.
        UnavailableError: The store does not answer now: likewise.
    """
    last = store.audit.latest(Sought(actor.name, read.value), limit=1) if paged else ()
    if last and abs(store.clock() - last[0].time_ms / 1000) < ONCE_S:
        return
    store.audit.record(actor, action=read.value, object=f"fleet:{fleet}")
