"""How far rollouts are and who took part in runs, as the database counts it; on every database there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from sqlalchemy import URL

from rollout_world import ANN, DIGITS, World
from service_fleet import ManualClock
from umbel_proto.ids import DeviceId, RunId
from umbel_server.rollouts.shown import counts_of
from umbel_server.rollouts.state import RollBack, StopKeeping
from umbel_server.store.became import BECAME
from umbel_server.store.participants import Lost, Part, Turnout
from umbel_server.store.progress import BUCKETS, Reach
from umbel_server.store.runs import Participation, RoundRecord
from umbel_server.store.store import Store, open_store

RUN = RunId("run-1")
FERN, ROSE, LILY = map(DeviceId, ("fern", "rose", "lily"))


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


def test_counts_of_the_database_are_those_of_the_devices_one_by_one(world: World) -> None:
    rollout = world.start(3)
    progress = world.store.progress
    assert progress.reach(rollout) == Reach()
    assert progress.course(rollout) == ()
    # Some install it, on one it fails, one was offered it and is not heard of again.
    reached = sorted(
        device for device in world.names if (offer := world.ask(device)) and offer.release.version == 3
    )
    for device in reached[2:]:
        world.check(device)
    world.failed[reached[0]] = {3}
    world.check(reached[0])
    found = progress.reach(rollout)
    counts = counts_of(world.store.placements.members(rollout))
    assert counts == asdict(found)
    assert (found.offered, found.failed, found.waiting) == (len(reached), 1, 1)
    by_fate = {fate: progress.devices(rollout, limit=100, fate=fate) for fate in BECAME}
    assert [each.device for each in by_fate["failed"]] == reached[:1]
    assert [each.device for each in by_fate["waiting"]] == reached[1:2]
    assert [each.device for each in by_fate["running"]] == reached[2:]
    assert progress.eligible() == world.devices


def test_devices_of_a_rolled_back_rollout_went_back_or_run_another_version_or_were_not_heard_of(
    world: World, clock: ManualClock
) -> None:
    rollout = world.start(3)
    reached = sorted(
        device for device in world.names if (offer := world.ask(device)) and offer.release.version == 3
    )
    clock.advance(60)
    home, never, gone, still = reached[:2], reached[2], reached[3], reached[4:]
    world.check(*home, *still)
    heard(world, *home, *still, never)
    clock.advance(60)
    before = world.store.progress.reach(rollout)
    assert before == Reach(len(reached), running=len(reached) - 2, other=1, waiting=1)

    rollout = world.store.rollouts.happen(rollout.id, RollBack("slow"), actor=ANN)
    assert world.store.progress.reach(rollout) == Reach(len(reached), running=len(reached) - 2, waiting=2), (
        "nobody was heard of since it was rolled back"
    )
    clock.advance(60)
    world.check(*home)
    heard(world, *home, never)
    found = world.store.progress.reach(rollout)
    assert found == Reach(len(reached), running=len(still), back=2, other=1, waiting=1)
    assert counts_of(world.store.placements.members(rollout)) == asdict(found)
    by_fate = {fate: world.store.progress.devices(rollout, limit=100, fate=fate) for fate in BECAME}
    assert {fate: [each.device for each in some] for fate, some in by_fate.items()} == {
        "running": still,
        "failed": [],
        "back": home,
        "other": [never],
        "waiting": [gone],
    }


def test_devices_that_went_on_to_a_later_version_are_heard_of(world: World, clock: ManualClock) -> None:
    first = world.start(3)
    world.check()
    reached = len(world.with_version(3))
    world.store.rollouts.happen(first.id, StopKeeping("enough"), actor=ANN)
    first = world.store.rollouts.get(first.id)
    clock.advance(60)
    world.release(4)
    world.store.rollouts.hold(DIGITS, 4, actor=ANN)
    world.check()
    heard(world, *world.names)
    assert world.store.progress.reach(first) == Reach(reached, other=reached)


def heard(world: World, *which: DeviceId) -> None:
    """Note that devices called now, as the gateway does."""
    world.store.devices.seen(dict.fromkeys(which, world.clock()))


def test_pages_of_devices_neither_repeat_nor_skip_one(world: World) -> None:
    rollout = world.start(3)
    world.check()
    everyone = [each.device for each in world.store.placements.members(rollout)]
    pages, last = [], ""
    while page := world.store.progress.devices(rollout, limit=7, after=last):
        pages += [each.device for each in page]
        last = page[-1].device
    assert pages == everyone


def test_the_course_ends_with_all_that_were_offered_however_long_it_took(world: World) -> None:
    rollout = world.start(3)
    for device in world.names:
        world.check(device)
        world.clock.advance(7200)
    course = world.store.progress.course(rollout)
    offered = [each.offered for each in course]
    assert offered == sorted(offered)
    assert offered[-1] == world.store.progress.reach(rollout).offered > 1
    assert 1 < len(course) <= BUCKETS


def test_failures_are_counted_by_what_devices_say_they_are(world: World) -> None:
    rollout = world.start(3)
    reached = [
        device for device in world.names if (offer := world.ask(device)) and offer.release.version == 3
    ]
    world.store.placements.state_facts(reached[0], '{"arch": "aarch64"}')
    for device in reached[:3]:
        world.failed[device] = {3}
        world.check(device)
    assert sorted(world.store.progress.failures(rollout), key=lambda each: each[2]) == [
        ("failed", '{"arch": "aarch64"}', 1),
        ("failed", None, 2),
    ]


def test_pins_come_with_what_answers_there(world: World) -> None:
    first, second = world.names[:2]
    for device, version in ((first, 1), (second, 2)):
        world.store.placements.pin(device, DIGITS, version, actor=ANN)
    pins = world.store.progress.pins(limit=10)
    assert [(each.device, each.version, each.has) for each in pins] == [(first, 1, 2), (second, 2, 2)]
    assert world.store.progress.pins(limit=10, after=(DIGITS, first)) == pins[1:]
    assert world.store.progress.pins(limit=10, model="letters") == ()
    assert world.store.progress.pinned(["digits", "letters"]) == {"digits": 2}


def test_who_took_part_is_counted_by_outcome_and_by_reason(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    late = "no answer while masking"
    keep(
        store,
        1,
        Participation(FERN, "summed"),
        Participation(ROSE, "charged", late),
        Participation(LILY, "dropped", "gone"),
    )
    keep(store, 2, Participation(FERN, "summed"), Participation(LILY, "charged", late))
    turnout = store.participants.turnout(RUN)
    assert turnout == {(1, 1): Turnout(1, 1, 1, 1), (2, 1): Turnout(1, 1, 0, 1)}
    assert turnout[1, 1].asked == 3
    assert store.participants.turnout(RUN, since=2) == {(2, 1): turnout[2, 1]}
    assert store.participants.lost(RUN) == (Lost("charged", late, 2, 2), Lost("dropped", "gone", 1, 1))
    everyone = store.participants.parts(RUN, limit=10)
    assert everyone[3:] == store.participants.parts(RUN, limit=10, of=(2, 1))
    assert everyone[2:] == store.participants.parts(RUN, limit=10, after=(1, 1, "lily"))
    assert store.participants.parts(RUN, limit=10, outcome="dropped") == (
        Part(1, 1, LILY, "dropped", "gone"),
    )
    assert [each.round for each in store.participants.parts(RUN, limit=10, device=FERN)] == [1, 2]
    assert store.participants.rounds_done() == {RUN: 2}


def keep(store: Store, number: int, *parts: Participation) -> None:
    store.runs.begin_round(RUN, number, 1)
    parts = tuple(sorted(parts, key=lambda each: each.device))
    store.runs.end_round(RoundRecord(RUN, number, 1, "opened", 1.0, 2.0, participations=parts))
