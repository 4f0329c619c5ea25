"""Runs that begin by themselves: when they are due, once each, and what happens to those that nobody drives."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_packages import RELEASE, first
from service_fleet import ManualClock, PlainDevice, make_fleet
from umbel_proto.errors import RefusedError, UnavailableError, UsageError
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_server.access.actor import local_actor
from umbel_server.control import Control
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.learning.begin import pin, take_up
from umbel_server.learning.keeper import END_S, LABELS_S, START_S, Keeper
from umbel_server.learning.lock import driving
from umbel_server.learning.schedule import (
    DAY_S,
    LEAST_S,
    caught_up,
    following,
    parse_duration,
    parse_time_of_day,
)
from umbel_server.store.audit import Sought
from umbel_server.store.batches import Arrival
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.runs import RunRecord
from umbel_server.store.schedules import Schedule
from umbel_server.store.store import Store

PLAN: dict[str, Any] = {
    "model": "digits",
    "rounds": 2,
    "devices": 8,
    "privacy": {"clip": 1.0, "noise_multiplier": 4.0, "delta": 1e-6},
}
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
ME = local_actor()

times = st.floats(1e9, 3e9)
days = st.integers(1, 60)
at = st.integers(0, DAY_S - 60)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1m", 60), ("90m", 5400), ("1.5h", 5400), ("7d", 604_800), ("2w", 1_209_600)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1e3h", "59", "0.5m", "367d", "7 d", "nand"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["24:00", "2:30", "02:60", "0230", "noon"])
def test_what_is_no_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_time_of_day(text)


def test_a_run_at_a_time_of_day_is_due_at_the_next_such_time() -> None:
    half_past_two = parse_time_of_day("02:30")
    due = following(NOON, DAY_S, half_past_two)
    assert datetime.fromtimestamp(due, UTC) == datetime(2026, 11, 22, 2, 30, tzinfo=UTC)
    weekly = following(due, 7 * DAY_S, half_past_two)
    assert datetime.fromtimestamp(weekly, UTC) == datetime(2026, 11, 29, 2, 30, tzinfo=UTC)


@given(times, days, at)
def test_what_is_due_at_a_time_of_day_is_later_on_that_second_and_within_its_days(
    now_s: float, every: int, at_s: int
) -> None:
    due = following(now_s, every * DAY_S, at_s)
    assert due % DAY_S == at_s
    assert (every - 1) * DAY_S < due - now_s <= every * DAY_S


@given(times, st.floats(0, 1e7), st.floats(LEAST_S, 60 * DAY_S))
def test_a_missed_run_is_not_made_up_for(due_s: float, late_s: float, every_s: float) -> None:
    now_s = due_s + late_s
    next_s = caught_up(due_s, now_s, every_s, None)
    assert now_s < next_s or math.isclose(now_s, next_s)
    assert next_s - now_s <= every_s * (1 + 1e-6)
    steps = (next_s - due_s) / every_s
    assert steps == pytest.approx(round(steps), abs=1e-3)


@given(times, st.floats(0, 1e7), days, at)
def test_a_missed_time_of_day_is_not_made_up_for(due_s: float, late_s: float, every: int, at_s: int) -> None:
    due_s = following(due_s, DAY_S, at_s)
    now_s = due_s + late_s
    next_s = caught_up(due_s, now_s, every * DAY_S, at_s)
    assert now_s < next_s <= now_s + every * DAY_S
    assert (next_s - due_s) % (every * DAY_S) == 0


class PlayedSuperLink:
    """Flower's side of the Control API, in memory."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.down = False

    def register(self, device: str, node_key: bytes) -> int:
        if self.down:
            raise UnavailableError("The SuperLink does not answer.")
        return 1

    def start(self, fleet: FleetDir, run: str) -> int:
        if self.down:
            raise UnavailableError("The SuperLink does not answer.")
        self.started.append(run)
        return len(self.started)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    made = make_fleet(tmp_path / "garden")
    made.release_pub.write_bytes(RELEASE.public.raw)
    return made


@pytest.fixture
def store(fleet: FleetDir, clock: ManualClock) -> Iterator[Store]:
    with fleet.open_store(clock=clock) as opened:
        publish(fleet, opened, first())
        yield opened


@pytest.fixture
def superlink() -> PlayedSuperLink:
    return PlayedSuperLink()


@pytest.fixture
def keeper(fleet: FleetDir, store: Store, superlink: PlayedSuperLink, clock: ManualClock) -> Keeper:
    return Keeper(fleet, store, cast(Control, superlink), clock=clock)


def a_schedule(**changes: Any) -> Schedule:
    plain = Schedule(
        name="weekly",
        model=ModelName("digits"),
        plan=PLAN,
        every_s=7 * DAY_S,
        at_s=None,
        labels=0,
        state="active",
        next_s=NOON + 60,
        since_s=NOON,
    )
    return replace(plain, **changes)


def only(store: Store) -> Schedule:
    (found,) = store.schedules.all()
    return found


def end(store: Store, run: str) -> None:
    store.runs.finish(RunId(run), "finished", "")


def test_a_scheduled_run_begins_when_it_is_due_and_not_again_until_its_time(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock
) -> None:
    store.schedules.add(a_schedule(), ME)
    keeper.turn()
    assert superlink.started == []
    clock.advance(61)
    keeper.turn()
    keeper.turn()
    assert superlink.started == ["weekly-1"]
    assert (only(store).last_run, only(store).said) == ("weekly-1", "begun: weekly-1")
    end(store, "weekly-1")
    clock.advance(7 * DAY_S - 2)
    keeper.turn()
    assert superlink.started == ["weekly-1"]
    clock.advance(2)
    keeper.turn()
    assert superlink.started == ["weekly-1", "weekly-2"]


def test_two_keepers_that_read_the_same_begin_one_run(store: Store, clock: ManualClock) -> None:
    """Law: of those who turn the same state of a schedule, one is told that it did."""
    store.schedules.add(a_schedule(), ME)
    read = only(store)
    turns = [store.schedules.turn(read, next_s=NOON + 9, said="begun", run=RunId("weekly-1")) for _ in "ab"]
    assert turns == [True, False]


def test_a_schedule_waits_for_its_last_run(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock, fleet: FleetDir
) -> None:
    store.schedules.add(a_schedule(every_s=3600.0), ME)
    clock.advance(61)
    keeper.turn()
    with driving(fleet.runs / "weekly-1"):
        clock.advance(3601)
        keeper.turn()
    assert superlink.started == ["weekly-1"]
    assert only(store).said == "not begun: weekly-1 still runs"


def test_a_run_that_the_budget_does_not_cover_is_not_begun_and_the_schedule_says_why(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock
) -> None:
    store.schedules.add(a_schedule(plan={**PLAN, "rounds": 100_000}), ME)
    clock.advance(61)
    keeper.turn()
    assert superlink.started == []
    assert store.runs.all() == ()
    assert only(store).said.startswith("not begun: 100000 rounds would cost a device epsilon")


def test_a_paused_schedule_begins_nothing(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock
) -> None:
    store.schedules.add(a_schedule(), ME)
    store.schedules.set_state("weekly", "paused", ME)
    clock.advance(DAY_S)
    keeper.turn()
    assert superlink.started == []
    store.schedules.set_state("weekly", "active", ME)
    keeper.turn()
    assert superlink.started == ["weekly-1"]


def test_a_hastened_schedule_begins_now_and_keeps_its_distance(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock
) -> None:
    store.schedules.add(a_schedule(next_s=NOON + 5 * DAY_S), ME)
    store.schedules.hasten("weekly", ME, reason="the data is in")
    told = store.audit.newest()
    assert told is not None
    assert (told.action, told.reason) == ("schedule.hasten", "the data is in")
    keeper.turn()
    assert superlink.started == ["weekly-1"]
    assert only(store).next_s == clock.now_s + 7 * DAY_S
    store.schedules.set_state("weekly", "paused", ME)
    with pytest.raises(RefusedError, match="Schedule weekly is paused"):
        store.schedules.hasten("weekly", ME)
    with pytest.raises(UsageError, match="no schedule"):
        store.schedules.hasten("daily", ME)


def reported(store: Store, hour_s: float, *, by: DeviceId | None = None, **counters: int) -> None:
    """Let a device's report of an hour arrive and be opened: the first one's, unless it is said whose."""
    device = by or store.devices.all()[0].id
    named = {name.replace("__", "."): count for name, count in counters.items()}
    hour = int(hour_s)
    window = Rollup(device, ModelName("digits"), 1, "fp32", "onnx", hour, 1, hour + 60, named, {})
    store.batches.append(device, [Arrival(secrets.token_bytes(16), "key", b"header", b"sealed")])
    (batch,) = store.batches.sealed(limit=9)
    store.rollups.absorb([Verdict(batch.id, (window,))])


def test_a_run_that_waits_for_labels_begins_when_so_many_new_ones_are_reported(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock
) -> None:
    application = PlainDevice().application(store.tokens.issue(valid_s=60), name="rose")
    store.devices.enroll(application, certificate_life_s=60)
    assert NOON % 3600 == 0
    reported(store, NOON - 3600, feedback=1000)
    store.schedules.add(a_schedule(labels=30), ME)
    reported(store, NOON + 3600, feedback=20, review__resolved=9, predictions=5000)
    clock.advance(7200)
    keeper.turn()
    assert superlink.started == []
    reported(store, NOON + 3600, feedback=1)
    clock.advance(LABELS_S)
    keeper.turn()
    assert superlink.started == ["weekly-1"]
    # Those were for that run: the next one waits for others.
    end(store, "weekly-1")
    clock.advance(8 * DAY_S)
    keeper.turn()
    assert superlink.started == ["weekly-1"]


def test_no_device_alone_begins_a_run_by_the_labels_that_it_claims(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock
) -> None:
    rose, tulip, liar, banned = (
        store.devices.enroll(
            PlainDevice().application(store.tokens.issue(valid_s=60)), certificate_life_s=60
        ).id
        for _ in range(4)
    )
    store.schedules.add(a_schedule(labels=71), ME)
    for device, count in ((rose, 10), (tulip, 10), (liar, 10**9), (banned, 10)):
        reported(store, NOON + 3600, by=device, feedback=count)
    reported(store, NOON + 9 * 3600, by=rose, feedback=10**6)  # Of the future.
    store.devices.quarantine(banned, reason="it lies")
    clock.advance(7200)
    assert store.schedules.labels_since(ModelName("digits"), NOON) == 10 + 10 + 5 * 10
    keeper.turn()
    assert superlink.started == []


def test_a_run_is_driven_on_when_its_server_process_is_lost(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock, fleet: FleetDir
) -> None:
    store.schedules.add(a_schedule(), ME)
    clock.advance(61)
    keeper.turn()
    clock.advance(START_S - 1)
    keeper.turn()
    with driving(fleet.runs / "weekly-1"):
        clock.advance(START_S)
        keeper.turn()
    assert superlink.started == ["weekly-1"]
    keeper.turn()
    clock.advance(END_S + 1)
    keeper.turn()
    assert superlink.started == ["weekly-1", "weekly-1"]
    # Its new process has as long as the first one had.
    clock.advance(START_S - 1)
    keeper.turn()
    assert superlink.started == ["weekly-1", "weekly-1"]


def test_a_keeper_that_starts_gives_a_run_the_time_to_be_driven(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock
) -> None:
    plan = pin(dict(PLAN), store)
    store.runs.create(RunId("by-hand"), plan.model, plan.to_json())
    keeper.turn()
    clock.advance(START_S - 1)
    keeper.turn()
    assert superlink.started == []
    clock.advance(2)
    keeper.turn()
    assert superlink.started == ["by-hand"]


def test_a_superlink_that_is_down_is_waited_for(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock
) -> None:
    store.schedules.add(a_schedule(), ME)
    superlink.down = True
    clock.advance(61)
    keeper.turn()
    superlink.down = False
    clock.advance(START_S + 1)
    keeper.turn()
    assert superlink.started == ["weekly-1"]
    assert [run.state for run in store.runs.all()] == ["running"]


def by_hand(store: Store) -> RunRecord:
    plan = pin(dict(PLAN), store)
    return store.runs.create(RunId("by-hand"), plan.model, plan.to_json())


def test_a_schedule_waits_for_a_run_of_it_that_is_paused(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock
) -> None:
    store.schedules.add(a_schedule(every_s=3600.0), ME)
    clock.advance(61)
    keeper.turn()
    store.pauses.begin(RunId("weekly-1"), actor=ME, reason="lunch")
    clock.advance(3601)
    keeper.turn()
    assert superlink.started == ["weekly-1"]
    assert only(store).said == "not begun: weekly-1 is paused"
    store.runs.finish(RunId("weekly-1"), "stopped", "enough")
    clock.advance(3601)
    keeper.turn()
    assert superlink.started == ["weekly-1", "weekly-2"]


def test_a_superlink_that_is_away_is_told_of_once_and_then_every_few_minutes(
    store: Store,
    fleet: FleetDir,
    superlink: PlayedSuperLink,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody could read a log with a line a second; and one line a week ago is none either."""
    caplog.set_level(logging.INFO, "umbel_server.learning.keeper")
    application = PlainDevice().application(store.tokens.issue(valid_s=60), name="rose")
    store.devices.enroll(application, certificate_life_s=60)
    for name in ("by-hand", "another"):
        store.runs.create(RunId(name), ModelName("digits"), pin(dict(PLAN), store).to_json())
    keeper = Keeper(fleet, store, cast(Control, superlink), clock=clock)
    superlink.down = True

    def said(seconds: int) -> list[str]:
        caplog.clear()
        for _ in range(seconds // 5):
            keeper.turn()
            clock.advance(5)
        return [each.getMessage() for each in caplog.records]

    assert said(290) == ["The SuperLink does not answer. It is tried again."]
    assert said(1800) == ["The SuperLink does not answer. It is tried again."] * 6
    superlink.down = False
    told = said(int(START_S))
    assert sorted(superlink.started) == ["another", "by-hand"]
    assert sorted(each.split()[1] for each in told) == ["another", "by-hand"]


def test_a_paused_run_is_not_driven_on_and_others_are(
    store: Store, superlink: PlayedSuperLink, clock: ManualClock, fleet: FleetDir
) -> None:
    by_hand(store)
    other = store.runs.create(RunId("other"), ModelName("digits"), pin(dict(PLAN), store).to_json())
    store.pauses.begin(RunId("by-hand"), actor=ME, reason="lunch")
    for _ in range(2):  # A keeper that is started again keeps to it, too.
        keeper = Keeper(fleet, store, cast(Control, superlink), clock=clock)
        keeper.turn()
        clock.advance(START_S + 1)
        keeper.turn()
    assert set(superlink.started) == {other.id}


def test_a_run_that_is_resumed_has_the_time_to_be_driven_that_a_new_one_has(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, clock: ManualClock, fleet: FleetDir
) -> None:
    by_hand(store)
    keeper.turn()
    store.pauses.begin(RunId("by-hand"), actor=ME, reason="lunch")
    clock.advance(DAY_S)
    keeper.turn()
    found = store.runs.get(RunId("by-hand"))
    assert found is not None
    take_up(fleet, store, cast(Control, superlink), found, actor=ME, reason="fed", since_s=found.paused_s)
    assert superlink.started == ["by-hand"]
    keeper.turn()
    clock.advance(START_S - 1)
    keeper.turn()
    assert superlink.started == ["by-hand"]
    clock.advance(2)
    keeper.turn()
    assert superlink.started == ["by-hand", "by-hand"]


def test_a_run_that_is_resumed_in_the_round_it_was_paused_in_goes_on_where_it_is_driven(
    store: Store, superlink: PlayedSuperLink, fleet: FleetDir
) -> None:
    run = by_hand(store).id
    store.pauses.begin(run, actor=ME, reason="lunch")
    paused = store.runs.get(run)
    assert paused is not None
    (fleet.runs / run).mkdir()
    control = cast(Control, superlink)
    with driving(fleet.runs / run):
        take_up(fleet, store, control, paused, actor=ME, reason="fed")
        assert superlink.started == []
        resumed = store.runs.get(run)
        assert resumed is not None
        assert resumed.state == "running"
        # Of two who resume it the second is told, whatever they saw.
        with pytest.raises(RefusedError, match="running already"):
            take_up(fleet, store, control, paused, actor=ME, reason="fed")
        with pytest.raises(UsageError, match="driven by process"):
            take_up(fleet, store, control, resumed, actor=ME, reason="fed")
    take_up(fleet, store, control, resumed, actor=ME, reason="its server is lost")
    assert superlink.started == ["by-hand"]
    told = [(each.action, each.reason) for each in store.audit.all(Sought(object=f"run:{run}"))]
    assert told[1:] == [("run.pause", "lunch"), ("run.resume", "fed"), ("run.resume", "its server is lost")]


@pytest.mark.parametrize("what", ["paused", "stopped"])
def test_the_attempt_that_a_lost_server_left_of_a_run_that_is_not_driven_on_is_given_up(
    store: Store, keeper: Keeper, superlink: PlayedSuperLink, fleet: FleetDir, what: str
) -> None:
    run = by_hand(store).id
    (fleet.runs / run).mkdir()
    store.runs.begin_round(run, 1, 1)
    if what == "paused":
        store.pauses.begin(run, actor=ME, reason="lunch")
    else:
        store.runs.finish(run, "stopped", "enough")
    with driving(fleet.runs / run):
        keeper.turn()  # It is coming to its end.
    assert store.runs.running_attempt(run) is not None
    keeper.turn()
    (left,) = store.runs.rounds(run)
    assert (left.state, left.reason) == ("aborted", "the server was stopped in phase train")
    assert superlink.started == []
