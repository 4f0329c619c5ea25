"""What a rule is looked at with: the fleet, its store, and the time."""

from __future__ import annotations

from dataclasses import dataclass

from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

MAX_READINGS = 1000
"""Of one look at a rule: a rule that finds more is too wide."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a rule is looked at with.

    Args:
        fleet: The fleet, for certificates and packages.
        store: Its store.
        now_s: The time, Unix seconds.
    """

    fleet: FleetDir
    store: Store
    now_s: float


def percent(share: float) -> str:
    """Return a share as people read it."""
    return f"{100 * share:.3g} %"


def points(share: float) -> str:
    """Return a difference of shares as people read it."""
    return f"{100 * share:.3g} points"
