"""Alerts over a store: found once, told once, acted on once, whoever is killed when; and what people do is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Connection

from rollout_world import ANN, DIGITS, admit
from service_fleet import ManualClock, make_fleet
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.evaluate import LEASE_S, Evaluator, rules_path
from umbel_server.monitor.alerts.state import Acknowledged, Notice, Timing
from umbel_server.store.alerts import Alert, OutdatedAlertError, Reading, Telling, fingerprint
from umbel_server.store.batches import Arrival
from umbel_server.store.store import Store, open_store

NOW_S = 1_800_000_000.0
HOT = Reading({"model": "digits", "feature": "age"}, True, 0.5, "it is hot")
COLD = Reading({"model": "digits", "feature": "age"}, False, 0.1, "it is cold")
UNKNOWN = Reading({"model": "digits", "feature": "age"}, None, None, "3 devices reported, 10 are needed")
NAME = fingerprint("heat", HOT.labels)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_S)


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    """On every database."""
    with open_store(place, clock=clock) as opened:
        yield opened


@pytest.fixture
def local(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    with open_store(tmp_path / "store.db", clock=clock) as opened:
        yield opened


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> FleetDir:
    return make_fleet(tmp_path_factory.mktemp("alerts"))


def body(kind: Notice, alerts: Sequence[Alert]) -> Mapping[str, Any]:
    return {"kind": kind.value, "alerts": [each.fingerprint for each in alerts]}


def look(
    store: Store,
    *readings: Reading,
    timing: Timing = Timing(),  # noqa: B008  # It is frozen.
    channels: Mapping[str, float] | None = None,
    does: list[str] | None = None,
) -> list[str]:
    def act(connection: Connection, alert: Alert) -> Iterator[tuple[str, str]]:
        if does is not None:
            does.append(alert.fingerprint)
            yield "roll_back", "done"

    telling = Telling({"ops": 0.0} if channels is None else channels, body)
    changed = store.alerts.look("heat", "critical", readings, timing, telling=telling, act=act)
    return [each.status for each in changed]


def told(store: Store) -> list[tuple[str, str]]:
    return [(each.channel, each.kind) for each in reversed(store.notices.recent())]


def test_what_is_found_again_is_the_same_alert_and_told_once(store: Store) -> None:
    does: list[str] = []
    assert look(store, HOT, does=does) == ["firing"]
    assert look(store, HOT, does=does) == []
    assert [each.fingerprint for each in store.alerts.all()] == [NAME] == does
    assert told(store) == [("ops", "firing")]
    assert [each.event for each in store.alerts.events(NAME)] == ["firing", "roll_back"]


def test_an_alert_ends_when_it_does_not_hold_or_is_not_there_any_more_and_not_when_it_cannot_be_told(
    store: Store, clock: ManualClock
) -> None:
    look(store, HOT)
    assert look(store, UNKNOWN) == []
    assert look(store, COLD) == ["resolved"]
    clock.advance(1)
    look(store, HOT)
    assert look(store) == ["resolved"]
    assert store.alerts.get(NAME).why == "it is hot"
    assert told(store).count(("ops", "resolved")) == 2


def test_many_alerts_of_a_rule_are_one_notice(store: Store) -> None:
    look(store, *(Reading({"feature": str(number)}, True, None, "hot") for number in range(30)))
    assert told(store) == [("ops", "firing")]
    assert len(store.notices.recent()[0].body["alerts"]) == 30


def test_a_look_that_fails_changes_nothing(store: Store) -> None:
    def act(connection: Connection, alert: Alert) -> Iterator[tuple[str, str]]:
        yield "roll_back", "done"
        raise OSError("the power is cut")

    with pytest.raises(OSError, match="power"):
        store.alerts.look("heat", "critical", [HOT], Timing(), telling=Telling({"ops": 0.0}, body), act=act)
    assert store.alerts.all() == ()
    assert told(store) == []
    assert look(store, HOT) == ["firing"]


def test_channels_that_want_it_are_reminded_until_somebody_takes_care(
    local: Store, clock: ManualClock
) -> None:
    often = {"often": 300.0, "once": 0.0}
    for _ in range(7):
        look(local, HOT, channels=often)
        clock.advance(100)
    assert told(local).count(("often", "firing")) == 3
    assert told(local).count(("once", "firing")) == 1
    local.alerts.acknowledge(NAME, actor=ANN, reason="I look at it")
    clock.advance(1000)
    look(local, HOT, channels=often)
    assert told(local).count(("often", "firing")) == 3


def test_what_people_do_is_recorded_with_who_and_why(store: Store, clock: ManualClock) -> None:
    look(store, HOT)
    store.alerts.acknowledge(NAME, actor=ANN, reason="I look at it")
    store.alerts.silence(NAME, until_s=NOW_S + 60, actor=ANN, reason="known")
    store.alerts.unsilence(NAME, actor=ANN, reason="not known")
    entries = [(each.action, each.actor, each.reason) for each in store.audit.all()]
    assert entries == [
        ("alert.acknowledge", "ann", "I look at it"),
        ("alert.silence", "ann", "known"),
        ("alert.unsilence", "ann", "not known"),
    ]
    assert [each.event for each in store.alerts.events(NAME)][1:] == ["acknowledge", "silence", "unsilence"]


def test_an_alert_is_assigned_and_whoever_saw_an_older_state_of_it_changes_nothing(store: Store) -> None:
    look(store, HOT)
    first = store.alerts.get(NAME)
    after = store.alerts.assign(NAME, to="carol", actor=ANN, reason="she knows it", revision=first.revision)
    assert isinstance(after.state, Acknowledged)
    assert (after.state.who, after.state.reason) == ("carol", "she knows it")
    newest = store.audit.newest()
    assert newest is not None
    assert (newest.action, newest.actor) == ("alert.assign", "ann")
    assert '"who":"carol"' in newest.after
    for late in (
        lambda: store.alerts.acknowledge(NAME, actor=ANN, reason="mine", revision=first.revision),
        lambda: store.alerts.silence(
            NAME, until_s=NOW_S + 60, actor=ANN, reason="x", revision=first.revision
        ),
        lambda: store.alerts.assign(NAME, to="ann", actor=ANN, reason="x", revision=first.revision),
    ):
        with pytest.raises(OutdatedAlertError, match="it is acknowledged"):
            late()
    assert store.alerts.get(NAME) == after


def test_a_silenced_alert_tells_nobody_and_does_nothing_until_the_silence_ends(
    store: Store, clock: ManualClock
) -> None:
    look(store, HOT, timing=Timing(for_s=60))
    does: list[str] = []
    store.alerts.silence(NAME, until_s=NOW_S + 600, actor=ANN, reason="known")
    clock.advance(599)
    look(store, HOT, timing=Timing(for_s=60), does=does)
    assert (told(store), does) == ([], [])
    clock.advance(1)
    look(store, HOT, timing=Timing(for_s=60), does=does)
    assert (told(store), does) == ([("ops", "firing")], [NAME])


def test_a_silence_in_the_past_and_an_alert_that_is_not_there_are_refused(store: Store) -> None:
    look(store, HOT)
    with pytest.raises(UsageError, match="ends in the future"):
        store.alerts.silence(NAME, until_s=NOW_S, actor=ANN, reason="late")
    with pytest.raises(UsageError, match="There is no alert 'nothing'"):
        store.alerts.get("nothing")
    with pytest.raises(RefusedError, match="The alert fires: to end its silence is not possible now"):
        store.alerts.unsilence(NAME, actor=ANN, reason="x")
    assert store.alerts.get(NAME[:6]).fingerprint == NAME


def test_old_ends_are_forgotten_and_nothing_else(store: Store, clock: ManualClock) -> None:
    look(store, HOT)
    look(store, COLD)
    clock.advance(1000)
    assert store.alerts.prune(before_s=NOW_S) == 0
    assert store.alerts.prune(before_s=NOW_S + 500) == 1
    assert store.alerts.events(NAME) == ()


def test_of_two_processes_one_gets_a_notice_and_of_one_killed_while_sending_the_other_sends_it_again(
    store: Store, clock: ManualClock
) -> None:
    look(store, HOT)
    first = store.notices.take(hold_s=60)
    assert first is not None
    assert store.notices.take(hold_s=60) is None
    clock.advance(60)  # The first was killed.
    second = store.notices.take(hold_s=60)
    assert second is not None
    assert (second.id, second.tries) == (first.id, 2)
    store.notices.failed(first, "it was not killed after all", again_s=NOW_S)
    assert store.notices.take(hold_s=60) is None
    store.notices.sent(second)
    assert [each.state for each in store.notices.recent()] == ["sent"]


def test_an_end_is_never_told_before_its_begin(store: Store, clock: ManualClock) -> None:
    look(store, HOT)
    look(store, COLD)
    begin = store.notices.take(hold_s=60)
    assert begin is not None
    store.notices.failed(begin, "it does not answer", again_s=NOW_S + 100)
    assert store.notices.take(hold_s=60) is None
    clock.advance(100)
    again = store.notices.take(hold_s=60)
    assert again is not None
    assert again.kind == "firing"
    store.notices.sent(again)
    end = store.notices.take(hold_s=60)
    assert end is not None
    assert end.kind == "resolved"


def test_one_evaluator_acts_at_a_time_and_the_other_one_takes_over(
    local: Store, clock: ManualClock, directory: FleetDir
) -> None:
    rules_path(directory).write_text('[[rule]]\nname = "lag"\nwhat = "opener_lag"\nthreshold = 0\n')
    admit(local, [DeviceId("rose")])
    one, other = Evaluator(directory, local), Evaluator(directory, local)
    one.run_once()
    local.batches.append(DeviceId("rose"), [Arrival(b"i" * 16, "key", b"h", b"s")])
    clock.advance(1)
    assert other.run_once() == 0
    clock.advance(LEASE_S)
    assert other.run_once() == 1
    assert [each.rule for each in local.alerts.all()] == ["lag"]


def test_alerts_of_a_rule_that_is_taken_away_end(
    local: Store, clock: ManualClock, directory: FleetDir
) -> None:
    rules_path(directory).write_text("")
    look(local, HOT)
    Evaluator(directory, local).run_once()
    assert local.alerts.get(NAME).status == "resolved"


def test_rules_that_are_edited_count_and_while_they_are_wrong_those_before_do(
    local: Store, directory: FleetDir, caplog: pytest.LogCaptureFixture
) -> None:
    rules_path(directory).write_text('[[rule]]\nname = "one"\nwhat = "opener_lag"\n')
    evaluator = Evaluator(directory, local)
    rules_path(directory).write_text('[[rule]]\nname = "another"\nwhat = "nothing"\n')
    evaluator.run_once()
    assert list(evaluator.rules.rules) == ["one"]
    assert "Rule another: what is 'nothing'" in caplog.text
    rules_path(directory).write_text('[[rule]]\nname = "third"\nwhat = "opener_lag"\n')
    evaluator.run_once()
    assert list(evaluator.rules.rules) == ["third"]


def propose(store: Store, *, rest_s: float = 0.0, accepted: bool = False) -> int | None:
    with store.database.write() as connection:
        return store.proposed_runs.propose_within(
            connection,
            ANN,
            rule="drift",
            fingerprint=NAME,
            model=DIGITS,
            plan={"model": "digits"},
            why="it drifted",
            rest_s=rest_s,
            accepted=accepted,
        )


def test_a_run_is_proposed_once_and_again_only_after_a_rest(store: Store, clock: ManualClock) -> None:
    first = propose(store)
    assert first is not None
    assert propose(store) is None  # One is open.
    store.proposed_runs.decline(first, actor=ANN, reason="not now")
    assert propose(store, rest_s=60.0) is None
    clock.advance(60)
    assert propose(store, rest_s=60.0) is not None


def test_a_proposed_run_is_decided_once_with_who_and_why(store: Store) -> None:
    number = propose(store)
    assert number is not None
    accepted = store.proposed_runs.accept(number, actor=ANN, reason="yes")
    assert (accepted.state, accepted.run, accepted.decided_by) == ("accepted", "digits-proposed-1", "ann")
    with pytest.raises(RefusedError, match="is accepted, as ann decided"):
        store.proposed_runs.decline(number, actor=ANN, reason="no")
    newest = store.audit.newest()
    assert newest is not None
    assert (newest.action, newest.actor, newest.reason) == ("proposed-run.accept", "ann", "yes")


def test_an_accepted_run_that_cannot_begin_says_why(local: Store, directory: FleetDir) -> None:
    rules_path(directory).write_text("")
    number = propose(local, accepted=True)
    assert number is not None
    Evaluator(directory, local).run_once()
    found = local.proposed_runs.get(number)
    assert found.state == "failed"
    assert "the fleet has released no such package" in found.said
