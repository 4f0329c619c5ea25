"""Where a version comes from and went, what devices fetch for it, and whom it waits for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from registry_world import ANNA, BEN, CARL, PIPELINE, World, make_world, package
from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.actor import Actor, Role
from umbel_server.registry.approval import Verdict
from umbel_server.registry.asking import decide, request, rules_of
from umbel_server.registry.downloads import downloads
from umbel_server.registry.lineage import Lineage, lineage
from umbel_server.registry.releasing import move, retire
from umbel_server.registry.stages import Event, Stage
from umbel_server.registry.waiting import refusal, waiting


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, tmp_path / "store.db")
    yield made
    made.store.close()


def approved(world: World, version: int) -> None:
    world.add(version)
    world.ask(version)
    world.say(BEN, version)
    world.say(CARL, version)


def kinds(of: Lineage) -> list[str]:
    return [step[0].kind for step in of.steps]


def test_a_draft_comes_of_its_contract_and_went_nowhere(world: World) -> None:
    world.add()
    found = lineage(world.store, "digits", 1)
    assert kinds(found) == ["contract", "package", "variant"]
    assert found.devices is None


def test_a_released_version_shows_each_step_on_its_way(world: World) -> None:
    approved(world, 1)
    world.publish(1)
    world.add(2)
    found = lineage(world.store, "digits", 1)
    assert kinds(found) == ["contract", "package", "variant", "request", "release", "child"]
    assert found.steps[0][0].detail == "as of version 2"
    child = lineage(world.store, "digits", 2)
    assert [(each.kind, each.id) for each in child.steps[0]] == [("contract", ""), ("parent", "1")]


def test_a_run_that_only_the_package_names_leads_nowhere(world: World) -> None:
    world.add(1)
    with world.store.database.write() as connection:
        connection.execute(text('UPDATE model_versions SET lineage = \'{"run": "elsewhere"}\''))
    step = next(step for step in lineage(world.store, "digits", 1).steps if step[0].kind == "run")
    assert step[0].id == ""
    assert "no record" in step[0].detail


def test_nobody_fetches_what_is_not_released(world: World) -> None:
    world.add()
    assert downloads(world.store, world.version()) == ()


def test_devices_fetch_the_whole_package_or_the_delta_to_what_they_have(world: World) -> None:
    for version in (1, 2):
        approved(world, version)
        world.publish(version)
    new, old = world.version(2), world.version(1)
    made = {each.base: each.bytes for each in downloads(world.store, new)}
    delta = world.store.releases.smallest_delta(new.sha256, bases=(old.sha256,))
    assert delta is not None
    assert made == {None: len(package(2)), 1: delta.size}
    assert 0 < delta.size / len(package(2)) < 0.5
    retire(world.fleet, world.store, "digits", 2, ANNA, reason="wrong")
    assert downloads(world.store, world.version(2)) == ()


def test_what_waits_longest_comes_first_and_what_has_all_it_needs_last(world: World) -> None:
    rules = rules_of(world.fleet)
    assert waiting(world.store, rules) == ()
    for version in (1, 2, 3):
        world.add(version)
        world.ask(version)
        world.clock.advance(60)
    world.say(BEN, 1)
    world.say(CARL, 1)
    world.say(BEN, 2)
    found = waiting(world.store, rules)
    assert [(each.version.version, each.missing, each.approved_by) for each in found] == [
        (2, 1, ("ben",)),
        (3, 2, ()),
        (1, 0, ("ben", "carl")),
    ]
    world.say(BEN, 3, Verdict.REJECT)
    assert [each.version.version for each in waiting(world.store, rules)] == [2, 1]


def test_whoever_may_not_decide_is_told_why(world: World) -> None:
    world.add()
    asked = world.ask()
    viewer = Actor("vera", frozenset({Role.VIEWER}))
    found = world.version()
    assert "takes the role" in str(refusal(found, asked, viewer, Verdict.APPROVE))
    assert "asked for this approval" in str(refusal(found, asked, ANNA, Verdict.APPROVE))
    assert refusal(found, asked, ANNA, Verdict.REJECT) is None
    assert refusal(found, asked, BEN, Verdict.APPROVE) is None
    pipeline = Actor(PIPELINE.name, frozenset({Role.REVIEWER}))
    assert "added this version" in str(refusal(found, asked, pipeline, Verdict.APPROVE))
    world.say(BEN)
    (again,) = world.requests()
    assert "counts once" in str(refusal(found, again, BEN, Verdict.APPROVE))


def test_a_decision_is_on_the_request_that_was_looked_at(world: World) -> None:
    world.add()
    first = world.ask()
    request(world.fleet, world.store, "digits", 1, ANNA, comment="again")

    def approve(number: int) -> None:
        decide(world.fleet, world.store, "digits", 1, BEN, Verdict.APPROVE, comment="looked", number=number)

    with pytest.raises(RefusedError, match="asked about again since you looked"):
        approve(first.number)
    approve(first.number + 1)
    assert [len(each.decisions) for each in world.requests()] == [0, 1]


def test_a_version_is_moved_from_where_it_was_seen(world: World) -> None:
    approved(world, 1)
    world.publish(1)
    move(world.store, "digits", 1, Event.DEPRECATE, ANNA, reason="old", seen=Stage.RELEASED)
    with pytest.raises(RefusedError, match="was released when you looked, and is deprecated now"):
        move(world.store, "digits", 1, Event.REINSTATE, ANNA, reason="good", seen=Stage.RELEASED)
    with pytest.raises(RefusedError, match="was released when you looked"):
        retire(world.fleet, world.store, "digits", 1, ANNA, reason="old", seen=Stage.RELEASED)
    assert world.stage() is Stage.DEPRECATED


def test_there_is_no_lineage_of_what_is_not_there(world: World) -> None:
    with pytest.raises(UsageError, match="no digits@7"):
        lineage(world.store, "digits", 7)
