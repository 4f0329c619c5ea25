"""A fleet with a life behind it, for the console's browser tests; a screen's owner adds what it needs to be seen."""

from __future__ import annotations

from collections.abc import Callable

from console_world import ConsoleWorld
from operations_seed import operations
from query_seed import queries
from registry_seed import registry
from review_seed import reviews
from watch_seed import joined


def devices(world: ConsoleWorld) -> None:
    for name in ("rose", "iris", "lily"):
        world.device(name)


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
