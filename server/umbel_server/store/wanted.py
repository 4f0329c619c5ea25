"""Which devices somebody wants to see, and in the words for how lately they were heard of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["online", "stale", "offline", "never seen", "quarantined", "revoked"]
Sort = Literal["name", "seen", "enrolled", "certificate"]
ONLINE_S = 120
STALE_S = 86400  # What has not called for so long has no valid certificate left.


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which devices somebody wants to see; None: any.

    Args:
        status: Those of which this is true.
        tag: Those that have a tag.
        model: Those on which a model answers, by their own word.
        version: Those on which this version of it does.
        begins: Those whose name begins so.
        group: Those that are in a group, or have the tag of that name.
    """

    status: Status | None = None
    tag: str | None = None
    model: str | None = None
    version: int | None = None
    begins: str | None = None
    group: str | None = None


ANY = Wanted()
