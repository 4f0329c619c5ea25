"""Groups of devices: a saved filter holds for whoever fulfills it at the time; on every database there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from rollout_world import ANN, DIGITS, World
from service_fleet import ManualClock
from umbel_proto.errors import RefusedError, UsageError
from umbel_server.rollouts.plan import RolloutPlan, Step
from umbel_server.rollouts.state import RollBack
from umbel_server.store.groups import MOST, filter_of
from umbel_server.store.store import Store, open_store
from umbel_server.store.wanted import Wanted

FIRST = Wanted(begins="device-00")
ROOM = RolloutPlan(
    steps=(Step("room", 100, frozenset({"first"})), Step("all", 100)), gates=(), least_devices=2
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as made:
        yield made


@pytest.fixture
def world(store: Store, clock: ManualClock) -> World:
    return World.with_candidate(store, clock)


def test_a_group_is_of_whoever_fulfills_its_filter_now(world: World, clock: ManualClock) -> None:
    store, names = world.store, world.names
    online = store.groups.save(
        "here", Wanted(status="online", begins="device-0"), actor=ANN, reason="to look"
    )
    assert store.groups.count(online) == 0
    clock.advance(60)
    store.devices.seen(dict.fromkeys(names[:3], clock()))
    assert store.groups.count(online) == 3
    assert store.groups.members("here") == frozenset(names[:3])
    clock.advance(3600)
    assert store.groups.members("here") == frozenset()


def test_the_list_of_devices_takes_a_group_or_a_tag_by_its_name_with_other_filters(world: World) -> None:
    store, names = world.store, world.names
    store.groups.save("first", FIRST, actor=ANN)
    store.placements.tag(names[4], ["odd"], actor=ANN)
    store.placements.tag(names[14], ["odd"], actor=ANN)

    def found(wanted: Wanted) -> list[str]:
        return [each.id for each in store.device_list.page(wanted, limit=100)]

    assert found(Wanted(group="first")) == names[:10]
    assert found(Wanted(group="odd")) == [names[4], names[14]]
    assert found(Wanted(group="first", tag="odd")) == [names[4]]
    assert found(Wanted(group="nowhere")) == []
    assert store.device_list.facets(Wanted(group="first")).devices == 10


def test_each_change_of_a_group_is_in_the_audit_log(world: World) -> None:
    groups, audit = world.store.groups, world.store.audit
    groups.save("first", FIRST, actor=ANN, reason="a room")
    groups.save("first", Wanted(model=DIGITS, version=2), actor=ANN, reason="another")
    assert groups.get("first").filter == {"model": "digits", "version": 2}
    groups.remove("first", actor=ANN, reason="torn down")
    told = [each for each in audit.all() if each.object == "group:first"]
    assert [(each.action, each.actor, each.reason) for each in told] == [
        ("group.save", "ann", "a room"),
        ("group.save", "ann", "another"),
        ("group.remove", "ann", "torn down"),
    ]
    assert groups.all() == ()
    with pytest.raises(UsageError, match="There is no group 'first'"):
        groups.remove("first", actor=ANN)


def test_a_name_is_of_a_group_or_of_a_tag(world: World) -> None:
    store = world.store
    store.placements.tag(world.names[0], ["odd"], actor=ANN)
    with pytest.raises(RefusedError, match="have the tag odd"):
        store.groups.save("odd", FIRST, actor=ANN)
    store.groups.save("first", FIRST, actor=ANN)
    with pytest.raises(RefusedError, match="first is a group"):
        store.placements.tag(world.names[0], ["odd", "first"], actor=ANN)
    assert store.placed.of(world.names[:1])[world.names[0]].tags == ["odd"]


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("all", Wanted(), "devices that a filter finds"),
        ("more", Wanted(group="first", tag="odd"), "by something else than a group"),
        ("two", Wanted(version=2), "name both"),
        ("A b", FIRST, "is not a name"),
    ],
)
def test_a_filter_that_says_nothing_is_no_group(store: Store, name: str, wanted: Wanted, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        store.groups.save(name, wanted, actor=ANN)


def test_there_are_so_many_groups_and_no_more(store: Store) -> None:
    for number in range(MOST):
        store.groups.save(f"group-{number}", FIRST, actor=ANN)
    store.groups.save("group-0", Wanted(tag="odd"), actor=ANN)
    with pytest.raises(RefusedError, match="remove one first"):
        store.groups.save("one-more", FIRST, actor=ANN)


def test_a_rollout_for_a_group_reaches_its_devices_and_no_other(world: World, clock: ManualClock) -> None:
    store = world.store
    store.groups.save("first", FIRST, actor=ANN)
    rollout = world.start(3, ROOM)
    world.check()
    assert world.with_version(3) == set(world.names[:10])
    with pytest.raises(RefusedError, match=f"Rollout {rollout.id} is for group first"):
        store.groups.remove("first", actor=ANN)
    # Who was reached stays, and who comes to fulfill the filter is reached.
    store.groups.save("first", Wanted(begins="device-01"), actor=ANN)
    clock.advance(60)
    world.check()
    assert world.with_version(3) == set(world.names[:20])
    store.rollouts.happen(rollout.id, RollBack("done"), actor=ANN)
    store.groups.remove("first", actor=ANN)


def test_a_filter_is_kept_without_what_it_leaves_open() -> None:
    assert filter_of(Wanted(status="never seen", version=0, model="digits")) == {
        "status": "never seen",
        "model": "digits",
        "version": 0,
    }
