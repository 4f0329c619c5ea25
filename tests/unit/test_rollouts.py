"""Rollouts over a store: who is offered what, what decides, and that nothing happens twice; on every database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL

from rollout_world import ANN, DIGITS, HALF, World, admit
from service_fleet import ManualClock
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId
from umbel_server.rollouts.assignment import place as draw
from umbel_server.rollouts.begin import preview, propose
from umbel_server.rollouts.decider import LEASE, LEASE_S, Decider, look
from umbel_server.rollouts.gates import Outcome
from umbel_server.rollouts.plan import Gate, Kind, OnFailure, RolloutPlan, Step
from umbel_server.rollouts.state import Pause, Resume, RollBack, StopKeeping
from umbel_server.store.rollouts import OutdatedError
from umbel_server.store.store import Store, open_store

NOW_S = 1_800_000_000.0
LENIENT = replace(
    HALF,
    steps=(Step("half", 50, least_s=60.0), Step("all", 100, least_s=60.0)),
    gates=(Gate(Kind.FAILED, 0.05), Gate(Kind.ERRORS, 0.05), Gate(Kind.LATENCY, 0.10)),
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_S)


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    with open_store(tmp_path / "store.db", clock=clock) as opened:
        yield opened


@pytest.fixture
def world(store: Store, clock: ManualClock) -> World:
    return held(store, clock)


@pytest.fixture
def everywhere(place: Path | URL, clock: ManualClock) -> Iterator[World]:
    """The same on every database."""
    with open_store(place, clock=clock) as opened:
        yield held(opened, clock)


def held(store: Store, clock: ManualClock) -> World:
    """Forty devices that have digits 2, of which 3 is released and held back."""
    return World.with_candidate(store, clock)


def told(store: Store, name: str) -> list[tuple[str, str]]:
    return [(event.event, event.actor) for event in store.rollouts.events(name)]


def test_without_a_rollout_every_device_gets_the_newest(store: Store, clock: ManualClock) -> None:
    assert set(World(store, clock, devices=3).check().values()) == {3}


def test_what_is_held_reaches_nobody_until_a_rollout_begins(world: World) -> None:
    assert set(world.check().values()) == {2}
    world.start(3)
    world.check()
    assert 8 <= len(world.with_version(3)) <= 32


def test_a_dry_run_names_the_very_devices_that_are_reached(world: World) -> None:
    expected = preview(world.store, propose(world.store, DIGITS, 3, HALF))
    assert world.check() == dict.fromkeys(world.names, 2)
    world.start(3)
    world.check()
    assert world.with_version(3) == set(expected["half"])
    assert world.with_version(2) == set(expected["all"])


def test_a_good_candidate_goes_through_every_step_by_itself(everywhere: World) -> None:
    world = everywhere
    made, decider = world.start(3, LENIENT), Decider(world.store)
    world.check()
    world.report({})
    assert decider.run_once() == 0  # The step has not lasted long enough.
    world.clock.advance(61)
    assert decider.run_once() == 1
    world.check()
    assert set(world.has.values()) == {3}
    world.clock.advance(61)
    assert decider.run_once() == 1
    assert world.store.rollouts.get(made.id).status == "finished"
    assert world.store.rollouts.baselines() == {"digits": 3}
    assert told(world.store, made.id) == [
        ("start", "ann"),
        ("advance", "service:rollouts"),
        ("advance", "service:rollouts"),
    ]


@pytest.mark.parametrize(
    ("slower", "errors", "gate"), [(1.3, 0.0, "latency p95"), (1.0, 0.3, "errors")], ids=["slower", "wrong"]
)
def test_a_worse_candidate_is_taken_back_by_itself(
    world: World, slower: float, errors: float, gate: str
) -> None:
    made = world.start(3, LENIENT)
    world.check()
    reached = world.with_version(3)
    world.report({3: slower}, errors={3: errors})
    assert Decider(world.store).run_once() == 1
    after = world.store.rollouts.get(made.id)
    assert after.status == "rolled-back"
    assert f"gate {gate}: " in after.state.reason  # type: ignore[union-attr]
    last = world.store.rollouts.events(made.id)[-1]
    assert any(figure["gate"] == gate and figure["outcome"] == "fail" for figure in last.figures)
    # One check of each device, and everybody is where they were.
    assert reached
    assert set(world.check().values()) == {2}
    assert set(world.check().values()) == {2}


def test_a_failed_gate_only_pauses_where_the_plan_says_so(world: World) -> None:
    made = world.start(3, replace(LENIENT, on_failure=OnFailure.PAUSE))
    world.check()
    before = world.check()
    world.report({3: 2.0})
    Decider(world.store).run_once()
    assert world.store.rollouts.get(made.id).status == "paused"
    assert world.check() == before


def test_without_enough_reports_it_waits_or_ends_as_the_step_says(world: World) -> None:
    waits, decider = world.start(3, LENIENT), Decider(world.store)
    world.check()
    world.clock.advance(1e6)
    assert decider.run_once() == 0
    world.store.rollouts.happen(waits.id, StopKeeping("next"), actor=ANN)
    steps = (Step("half", 50, least_s=60.0, longest_s=120.0), Step("all", 100))
    ends = world.start(3, replace(LENIENT, steps=steps))
    world.clock.advance(119)
    assert decider.run_once() == 0
    world.clock.advance(1)
    assert decider.run_once() == 1
    after = world.store.rollouts.get(ends.id)
    assert after.status == "paused"
    assert "without enough to judge by" in after.state.reason  # type: ignore[union-attr]


def test_a_step_that_ended_goes_on_if_what_was_measured_is_tolerable(world: World) -> None:
    steps = (Step("half", 50, least_s=0.0, longest_s=60.0), Step("all", 100))
    unsure = (Gate(Kind.LATENCY, 0.005),)
    made = world.start(3, replace(LENIENT, steps=steps, gates=unsure))
    world.check()
    world.report({})
    verdict = look(world.store, world.store.rollouts.get(made.id), now_s=world.clock()).verdicts[0]
    assert (verdict.outcome, verdict.within) == (Outcome.OPEN, True)
    world.clock.advance(60)
    Decider(world.store).run_once()
    assert world.store.rollouts.get(made.id).state.step == 1  # type: ignore[union-attr]


def test_a_paused_rollout_reaches_nobody_new_and_goes_on_when_resumed(world: World) -> None:
    made = world.start(3)
    first, *rest = (device for device in world.names if device in preview_of(world, "half"))
    assert world.check(first)[first] == 3
    world.store.rollouts.happen(made.id, Pause("lunch"), actor=ANN)
    world.check()
    assert world.with_version(3) == {first}
    world.store.rollouts.happen(made.id, Resume(), actor=ANN)
    world.check()
    assert world.with_version(3) == {first, *rest}


def test_a_device_that_asked_just_before_a_pause_is_not_let_in_after_it(world: World) -> None:
    seen = world.start(3)
    device = sorted(preview_of(world, "half"))[0]
    world.store.rollouts.happen(seen.id, Pause("lunch"), actor=ANN)
    assert not world.store.placements.admit(seen, device)
    assert world.store.placements.members(seen) == ()


def preview_of(world: World, step: str) -> set[DeviceId]:
    found = world.store.rollouts.all()[0]
    proposal = propose(world.store, DIGITS, found.to_version, found.plan, name=found.id)
    return set(preview(world.store, proposal)[step])


def test_stopped_and_kept_devices_stay_and_no_other_gets_it(world: World) -> None:
    made = world.start(3)
    half = preview_of(world, "half")
    some = sorted(half)[:3]
    world.check(*some)
    world.store.rollouts.happen(made.id, StopKeeping("enough seen"), actor=ANN)
    world.check()
    assert world.with_version(3) == set(some)


def test_what_was_rolled_back_is_taken_back_whenever_a_device_comes(everywhere: World) -> None:
    world = everywhere
    made = world.start(3)
    world.check()
    reached = world.with_version(3)
    world.store.rollouts.happen(made.id, RollBack("smoke"), actor=ANN)
    away = sorted(reached)[0]
    world.check(*(name for name in world.names if name != away))
    assert world.with_version(3) == {away}
    # Another rollout neither waits for it nor is in its way.
    world.release(4)
    world.start(4)
    world.clock.advance(30 * 86400)
    world.check()
    assert world.with_version(3) == set()
    assert len(world.with_version(4)) + len(world.with_version(2)) == 40
    assert world.with_version(4)


def test_a_finished_rollout_can_still_be_taken_back(world: World) -> None:
    plan = RolloutPlan(steps=(Step("all", 100, least_s=0.0),), gates=())
    made = world.start(3, plan)
    world.check()
    Decider(world.store).run_once()
    assert world.store.rollouts.get(made.id).status == "finished"
    assert set(world.check().values()) == {3}
    world.store.rollouts.happen(made.id, RollBack("found later"), actor=ANN)
    assert set(world.check().values()) == {2}


def test_the_same_version_can_be_brought_again(world: World) -> None:
    first = world.start(3)
    world.check()
    world.store.rollouts.happen(first.id, RollBack("smoke"), actor=ANN)
    world.check()
    world.clock.advance(1)
    again = world.start(3)
    assert again.id == "digits-3-2"
    world.check()
    assert world.with_version(3) == preview_of(world, "half")


def test_a_candidate_that_failed_on_a_device_is_not_offered_there_again(world: World) -> None:
    made = world.start(3)
    unlucky = sorted(preview_of(world, "half"))[0]
    world.ask(unlucky)
    world.failed[unlucky] = {3}
    for _ in range(3):
        offer = world.ask(unlucky)
        assert offer is not None
        assert (offer.release.version, offer.back) == (2, False)
    assert [member.device for member in world.store.placements.members(made) if member.failed] == [unlucky]


def test_no_more_devices_are_offered_it_in_a_minute_than_the_rate_says(everywhere: World) -> None:
    world = everywhere
    world.start(3, replace(HALF, rate=4))
    world.check()
    assert len(world.with_version(3)) == 4
    world.check()
    assert len(world.with_version(3)) == 4
    world.clock.advance(61)
    world.check()
    assert len(world.with_version(3)) == 8


def test_a_pinned_device_stays_and_goes_back_for_it(world: World) -> None:
    rose = world.names[0]
    world.store.placements.pin(rose, DIGITS, 1, actor=ANN)
    world.start(3, RolloutPlan(steps=(Step("all", 100),), gates=()))
    world.check()
    assert (world.has[rose], world.with_version(3)) == (1, set(world.names[1:]))
    world.store.placements.pin(rose, DIGITS, None, actor=ANN)
    assert world.check(rose)[rose] == 3


def test_a_pin_holds_where_no_rollout_ever_was(store: Store, clock: ManualClock) -> None:
    world = World(store, clock, devices=2)
    store.placements.pin(world.names[0], DIGITS, 2, actor=ANN)
    assert list(world.check().values()) == [2, 3]


def test_only_devices_with_the_tag_are_reached(world: World) -> None:
    for name in world.names[:5]:
        world.store.placements.tag(name, ["lab"], actor=ANN)
    steps = (Step("lab", 100, frozenset({"lab"})), Step("all", 100))
    world.start(3, replace(HALF, steps=steps))
    world.check()
    assert world.with_version(3) == set(world.names[:5])


def test_a_new_device_gets_what_devices_without_the_candidate_get(world: World) -> None:
    made = world.start(3, replace(HALF, steps=(Step("few", 30), Step("all", 100))))
    names = (DeviceId(f"new-{number}") for number in range(100))
    outside = next(name for name in names if draw(made.salt, name) >= 0.3)
    admit(world.store, [outside])
    offer = world.ask(outside)
    assert offer is not None
    assert offer.release.version == 2


def test_one_rollout_of_a_model_runs_at_a_time(everywhere: World) -> None:
    world = everywhere
    world.start(3)
    world.release(4)
    with pytest.raises(RefusedError, match="Another rollout of digits is under way"):
        world.start(4)
    with pytest.raises(RefusedError, match="digits-3 of digits is under way"):
        world.hold(3)


def test_a_rollout_of_what_devices_have_or_of_nothing_is_refused(world: World) -> None:
    with pytest.raises(RefusedError, match="Devices are offered version 2"):
        world.start(2)
    with pytest.raises(UsageError, match="Version 9 of digits is not released"):
        world.start(9)
    with pytest.raises(UsageError, match="reaches 0 of 40 devices, and its gates need 5"):
        world.start(3, RolloutPlan())


def test_two_deciders_do_not_both_go_on(everywhere: World) -> None:
    world = everywhere
    made = world.start(3, LENIENT)
    world.check()
    world.report({})
    world.clock.advance(61)
    one, other = (look(world.store, world.store.rollouts.get(made.id), now_s=world.clock()) for _ in range(2))
    assert one.event is not None
    assert other.event is not None
    world.store.rollouts.happen(made.id, one.event, actor=ANN, revision=one.rollout.revision)
    with pytest.raises(OutdatedError, match="changed meanwhile"):
        world.store.rollouts.happen(made.id, other.event, actor=ANN, revision=other.rollout.revision)
    assert world.store.rollouts.get(made.id).state.step == 1  # type: ignore[union-attr]


def test_a_person_who_stops_it_wins_against_a_look_of_before(world: World) -> None:
    made = world.start(3, LENIENT)
    world.check()
    world.report({})
    world.clock.advance(61)
    seen = look(world.store, world.store.rollouts.get(made.id), now_s=world.clock())
    world.store.rollouts.happen(made.id, StopKeeping("no"), actor=ANN)
    assert Decider(world.store)._act(seen) is False
    assert world.store.rollouts.get(made.id).status == "kept"


def test_the_lease_is_one_processs_until_it_ends(everywhere: World) -> None:
    store, clock = everywhere.store, everywhere.clock
    assert store.rollouts.lease(LEASE, "one", seconds=LEASE_S)
    assert not store.rollouts.lease(LEASE, "other", seconds=LEASE_S)
    assert store.rollouts.lease(LEASE, "one", seconds=LEASE_S)
    clock.advance(LEASE_S)
    assert store.rollouts.lease(LEASE, "other", seconds=LEASE_S)
    assert not store.rollouts.lease(LEASE, "one", seconds=LEASE_S)
    store.rollouts.release(LEASE, "other")
    assert store.rollouts.lease(LEASE, "one", seconds=LEASE_S)


def test_a_decider_without_the_lease_does_nothing(world: World) -> None:
    world.start(3, LENIENT)
    world.check()
    world.report({3: 2.0})
    assert world.store.rollouts.lease(LEASE, "another", seconds=LEASE_S)
    assert Decider(world.store).run_once() == 0
    world.clock.advance(LEASE_S)
    assert Decider(world.store).run_once() == 1


def test_the_last_step_with_a_rate_lasts_until_all_had_their_turn(world: World) -> None:
    plan = RolloutPlan(steps=(Step("all", 100, least_s=0.0),), gates=(), rate=10)
    made, decider = world.start(3, plan), Decider(world.store)
    world.check()
    assert decider.run_once() == 0
    world.clock.advance(239)
    assert decider.run_once() == 0
    world.clock.advance(1)
    assert decider.run_once() == 1  # Who has not asked in four minutes is waited for no longer.
    assert world.store.rollouts.get(made.id).status == "finished"


def test_every_change_is_on_record(everywhere: World) -> None:
    world = everywhere
    made = world.start(3)
    world.store.rollouts.happen(made.id, Pause("lunch"), actor=ANN)
    world.store.placements.pin(world.names[0], DIGITS, 2, actor=ANN, reason="study")
    world.store.placements.tag(world.names[0], ["lab"], actor=ANN)
    entries = [(entry.actor, entry.action, entry.object) for entry in world.store.audit.all()]
    assert entries[-6:] == [
        ("ann", "model.hold", "model:digits"),
        ("ann", "rollout.create", "rollout:digits-3"),
        ("ann", "rollout.start", "rollout:digits-3"),
        ("ann", "rollout.pause", "rollout:digits-3"),
        ("ann", "device.pin", "device:device-000"),
        ("ann", "device.tag", "device:device-000"),
    ]


def test_what_a_device_says_of_models_that_were_never_released_is_not_kept(world: World) -> None:
    from umbel_server.rollouts.offers import Offers

    offers = Offers(world.store.releases, world.store.placements)
    offers.for_device(world.names[0], {"digits": 2, "malware": 7}, ())
    assert world.store.placements.versions("malware") == {}


def test_gates_look_at_what_was_reported_since_the_step_began(world: World) -> None:
    world.report({2: 5.0})  # Slow the day before, and no business of the candidate's.
    world.clock.advance(86400)
    made = world.start(3, LENIENT)
    world.check()
    world.report({3: 1.3})
    found = look(world.store, made, now_s=world.clock()).verdicts
    assert {verdict.gate: verdict.outcome for verdict in found}["latency p95"] is Outcome.FAIL
