"""Approvals, whatever people do and in whatever order: what is released was approved by enough others, just so."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from registry_world import World, governed, make_world
from umbel_proto.errors import RefusedError
from umbel_server.access.actor import Actor, Role
from umbel_server.registry.approval import Verdict
from umbel_server.registry.stages import Stage

DAY_S = 86400
DAYS = 30
# Everybody may do everything, so that roles stop nobody: what is left is who did what.
PEOPLE = [Actor(name, frozenset(Role)) for name in ("anna", "ben", "carl", "dora", "local:ben", "local:root")]
ACTIONS = ("add", "replace", "ask", "approve", "approve", "approve", "reject", "wait", "publish")
steps = st.lists(st.tuples(st.sampled_from(PEOPLE), st.sampled_from(ACTIONS)), max_size=14)
ANNA, BEN, CARL, DORA, LOCAL_BEN, _ = PEOPLE
GOOD = [(ANNA, "add"), (ANNA, "ask"), (BEN, "approve"), (CARL, "approve"), (ANNA, "publish")]


@dataclasses.dataclass
class Book:
    """What a clerk would write down who knows the rules, and none of the code."""

    package: str = ""
    brought_by: str = ""
    asked_by: str = ""
    asked_about: str = ""
    asked_day: float = 0.0
    said_yes: frozenset[str] = frozenset()
    out: bool = False

    def may_go_out(self, needed: int, today: float) -> bool:
        involved = {self.asked_by.removeprefix("local:"), self.brought_by.removeprefix("local:")}
        accounts = {name for name in self.said_yes if ":" not in name}
        fresh = today - self.asked_day < DAYS
        same = bool(self.package) and self.asked_about == self.package
        return self.out or (same and fresh and len(accounts - involved) >= needed)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        made = make_world(Path(directory), Path(directory) / "store.db", days=DAYS)
        yield made
        made.store.close()


used = iter(range(1, 10_000))


@settings(max_examples=60)
@given(steps=steps, needed=st.integers(1, 3))
@example(steps=GOOD, needed=2)
@example(steps=[*GOOD[:3], (BEN, "approve"), (LOCAL_BEN, "approve"), *GOOD[4:]], needed=2)
@example(steps=[*GOOD[:4], (DORA, "replace"), *GOOD[4:]], needed=2)
@example(steps=[*GOOD[:4], (DORA, "wait"), (DORA, "wait"), *GOOD[4:]], needed=2)
@example(steps=[*GOOD[:4], (DORA, "reject"), (ANNA, "ask"), (DORA, "approve"), *GOOD[4:]], needed=2)
@example(steps=[*GOOD[:4], (ANNA, "publish"), (DORA, "replace"), (ANNA, "publish")], needed=2)
def test_nothing_is_released_that_enough_others_have_not_approved_and_what_they_have_is(
    world: World, steps: list[tuple[Actor, str]], needed: int
) -> None:
    world.fleet = governed(world.fleet, needed, DAYS)
    version, book = next(used), Book()
    for actor, action in steps:
        today = world.clock.now_s / DAY_S
        done = attempt(world, version, actor, action, book)
        if action == "publish":
            note = "" if book.package != "another" else "another"
            assert done == book.may_go_out(needed, today), (actor.name, note)
            book.out = book.out or done
        elif done:
            write_down(book, actor.name, action, today)
    if book.package:
        assert (world.stage(version) is Stage.RELEASED) == book.out


def attempt(world: World, version: int, actor: Actor, action: str, book: Book) -> bool:
    """Do something, and say whether it was let."""
    if action == "wait":
        world.clock.advance(DAYS / 2 * DAY_S)
        return True
    if not book.package and action not in ("add", "replace", "publish"):
        return False
    try:
        if action == "add":
            world.add(version, actor)
        elif action == "replace":
            world.add(version, actor, note="another")
        elif action == "ask":
            world.ask(version, actor)
        elif action == "approve":
            world.say(actor, version)
        elif action == "reject":
            world.say(actor, version, Verdict.REJECT)
        else:
            world.publish(version, actor, note="another" if book.package == "another" else "")
    except RefusedError:
        return False
    return True


def write_down(book: Book, name: str, action: str, today: float) -> None:
    brought = {"add": "first", "replace": "another"}
    if action in brought and brought[action] != book.package:
        book.package, book.brought_by = brought[action], name
        book.asked_about = ""
    elif action == "ask":
        book.asked_by, book.asked_about, book.asked_day = name, book.package, today
        book.said_yes = frozenset()
    elif action == "approve":
        book.said_yes |= {name}
    elif action == "reject":
        book.asked_about = ""
