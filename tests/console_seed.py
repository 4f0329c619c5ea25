"""A fleet with a life behind it, for the console's browser tests; a screen's owner adds what it needs to be seen."""

from __future__ import annotations

from collections.abc import Callable

from console_world import ConsoleWorld
from operations_seed import operations
from query_seed import queries
from registry_seed import registry
from review_seed import reviews
from umbel_server.access.actor import local_actor
from umbel_server.store.wanted import Wanted
from watch_seed import joined


def devices(world: ConsoleWorld) -> None:
    for name in ("rose", "iris", "lily"):
        world.device(name)
    world.store.groups.save(
        "flowers", Wanted(status="online", begins="l"), actor=local_actor(), reason="to look"
    )


SEEDS: tuple[Callable[[ConsoleWorld], None], ...] = (
    devices,
    registry,
    reviews,
    operations,
    queries,
    joined,
)
"""Each adds its own; order matters where one builds on another."""


def seed(world: ConsoleWorld) -> None:
    for each in SEEDS:
        each(world)
