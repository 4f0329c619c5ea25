"""What the console's screens ask of the store: as much of a large fleet as of a small one, and by an index where one is."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from console_world import ConsoleWorld, Visitor, console_world
from rollout_world import admit
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import local_actor
from umbel_server.console.nav import SCREENS
from umbel_server.console.pulse import Pulse
from umbel_server.console.seen.counted import OLDEST_S

SMALL, LARGE = 100, 1000
FOUND = "plant-0007"
LISTS = (
    "/devices?tag=wet",
    "/devices?model=digits",
    "/devices?model=digits&version=1",
    "/devices?q=plant-00",
    "/devices?status=online",
    "/devices?sort=seen",
    "/devices?tag=wet&sort=certificate&descending=true",
    f"/devices/{FOUND}",
)
GROWS = (
    "rollups", "device_days", "deliveries", "device_tags", "device_models", "batches", "cohort_rollups", "audit",
    "participations", "rollout_devices", "rollout_controls", "devices",
)  # fmt: skip
LOOKS_AT_EACH = re.compile(
    r"ORDER BY devices\.(last_seen_s|enrolled_s|certificate_not_after_s)"  # What changes all the time has no index.
    r"|THEN .* END AS status|GROUP BY devices\.facts"
)

CHOOSES = ("wanted_tags", "wanted_models")
"""Where a list looks for the devices that somebody wants to see."""
SCANNED = re.compile(r"SCAN (\w+)( USING .*)?")
"""A table from its first row to its last; that in the order of an index may be a page of it, or a count."""
PATHS = (*(each.path for each in SCREENS), *LISTS)
MOST = 60
Statement = tuple[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("console-reads")) as made:
        grow(made, 0, SMALL)
        yield made


@pytest.fixture(scope="module")
def visitor(world: ConsoleWorld) -> Visitor:
    return world.signed_in()


def grow(world: ConsoleWorld, begin: int, end: int) -> None:
    names = [DeviceId(f"plant-{number:04}") for number in range(begin, end)]
    admit(world.store, names)
    for name in names[:50]:
        world.store.placements.tag(name, ["wet"], actor=local_actor())
        world.store.placements.has(name, {"digits": 1})


@contextmanager
def heard(world: ConsoleWorld) -> Iterator[list[Statement]]:
    """Collect what the store is asked."""
    found: list[Statement] = []

    def hear(_connection: object, _cursor: object, statement: str, parameters: Any, *_more: object) -> None:
        found.append((statement, parameters))

    event.listen(world.store.database.engine, "before_cursor_execute", hear)
    try:
        yield found
    finally:
        event.remove(world.store.database.engine, "before_cursor_execute", hear)


def asked(world: ConsoleWorld, visitor: Visitor, path: str) -> list[Statement]:
    """Return what a screen asks that nobody has looked at for a while; but not what each asks every two seconds."""
    with heard(world) as pulse:
        Pulse(world.store).look()
    world.clock.advance(2 * OLDEST_S)
    visitor.get("/settings/roles")  # From now on the session was seen lately.
    with heard(world) as found:
        answer = visitor.get(path)
        for each in threading.enumerate():
            if each.name.endswith("(_work)"):  # What is made beside the page.
                each.join()
    assert answer.status_code == 200
    beats = {statement for statement, _ in pulse}
    return [each for each in found if each[0] not in beats]


def test_no_screen_asks_more_of_the_store_where_there_are_more_devices(
    world: ConsoleWorld, visitor: Visitor
) -> None:
    def counts() -> dict[str, int]:
        return {path: len(asked(world, visitor, path)) for path in PATHS}

    small = counts()
    grow(world, SMALL, LARGE)
    assert counts() == small
    assert max(small.values()) <= MOST, small


@pytest.mark.parametrize("path", PATHS)
def test_no_screen_looks_through_a_table_that_grows_with_the_fleet(
    world: ConsoleWorld, visitor: Visitor, path: str
) -> None:
    found = asked(world, visitor, path)
    assert found
    with world.store.database.read() as connection:
        for statement, parameters in found:
            if not statement.startswith(("SELECT", "WITH")) or LOOKS_AT_EACH.search(statement):
                continue
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
                whole = SCANNED.fullmatch(row.detail)
                looked_through = whole is not None and (
                    whole[1] in CHOOSES or (not whole[2] and whole[1] in GROWS)
                )
                assert not looked_through, (row.detail, statement)
