"""What a device fetches to get a version: the whole package, or a delta if it has the right one already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from umbel_server.store.registry import Version
from umbel_server.store.store import Store

MAX_BASES = 10
"""Releases before it that are looked at: deltas are made to a few, and forgotten with the next release."""


@dataclass(frozen=True, slots=True)
class Download:
    """What a device fetches.

    Args:
        base: The version that it has already; None: none of the model.
        bytes: How much it fetches.
        share: Of the whole package, in 0..1.
    """

    base: int | None
    bytes: int
    share: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"base": self.base, "bytes": self.bytes, "share": self.share}


def downloads(store: Store, version: Version) -> tuple[Download, ...]:
    """Return what devices fetch to get a version, by what they have; empty: no device can fetch it."""
    if store.releases.get(version.sha256) is None:
        return ()
    found = [Download(None, version.size, 1.0)]
    for base in store.releases.before(version.model, version.version, count=MAX_BASES):
        delta = store.releases.smallest_delta(version.sha256, bases=(base.sha256,))
        if delta is not None:
            found.append(Download(base.version, delta.size, delta.size / version.size))
    return tuple(found)
