"""Pauses of runs, in a SQLite file and in PostgreSQL: a paused run begins no round, and nothing else of it changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL, insert

from older_store import older_store
from service_fleet import ManualClock
from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_server.access.actor import Actor, Role
from umbel_server.store.audit import Sought
from umbel_server.store.runs import NotRunningError, Participation, RoundRecord, RunRecord
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables_queries import queries

RUN, DIGITS, ROSE = RunId("run-1"), ModelName("digits"), DeviceId("rose")
ANN, BEN = (Actor(name, frozenset({Role.OPERATOR})) for name in ("ann", "ben"))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        opened.runs.create(RUN, DIGITS, "{}", actor=ANN)
        yield opened


def now(store: Store, run: RunId = RUN) -> RunRecord:
    found = store.runs.get(run)
    assert found is not None
    return found


def test_a_paused_run_begins_no_round_and_charges_nobody_until_it_is_resumed(store: Store) -> None:
    store.pauses.begin(RUN, actor=ANN, reason="the backbone is slow")
    for _ in range(2):
        with pytest.raises(NotRunningError, match="Run run-1 is paused: it begins no round"):
            store.runs.begin_round(RUN, 1, 1)
        with pytest.raises(NotRunningError):
            store.runs.require_running(RUN)
    assert store.runs.running_attempt(RUN) is None
    assert store.runs.ledger() == ()
    store.pauses.end(RUN, actor=BEN, reason="it is fast again")
    store.runs.require_running(RUN)
    store.runs.begin_round(RUN, 1, 1)


def test_the_round_that_a_run_is_paused_in_goes_on_to_its_end(store: Store) -> None:
    store.runs.begin_round(RUN, 1, 1)
    store.pauses.begin(RUN, actor=ANN, reason="lunch")
    store.runs.enter_phase(RUN, 1, 1, "mask", [ROSE])
    ended = RoundRecord(RUN, 1, 1, "opened", 1.0, 2.0, participations=(Participation(ROSE, "summed"),))
    store.runs.end_round(ended)
    assert store.runs.rounds(RUN) == (ended,)
    with pytest.raises(NotRunningError):
        store.runs.begin_round(RUN, 2, 1)


def test_a_pause_says_since_when_and_why_and_its_end_leaves_the_run_as_it_was(
    store: Store, clock: ManualClock
) -> None:
    before = now(store)
    clock.advance(60)
    store.pauses.begin(RUN, actor=ANN, reason="the backbone is slow")
    paused = now(store)
    assert (paused.state, paused.reason, paused.paused_s) == ("paused", "the backbone is slow", clock.now_s)
    assert paused.finished_s is None
    assert store.pauses.all() == (RUN,)
    assert store.runs.all() == store.runs.page() == (paused,)
    store.pauses.end(RUN, actor=BEN, reason="it is fast again")
    assert now(store) == before
    assert store.pauses.all() == ()
    told = [(each.action, each.actor, each.reason, each.before, each.after)
            for each in store.audit.all(Sought(object="run:run-1"))][1:]  # fmt: skip
    running, still = '{"state":"running"}', '{"state":"paused"}'
    assert told == [
        ("run.pause", "ann", "the backbone is slow", running, still),
        ("run.resume", "ben", "it is fast again", still, running),
    ]


def test_a_pause_outlives_whoever_made_it(place: Path | URL, store: Store) -> None:
    store.pauses.begin(RUN, actor=ANN, reason="lunch")
    with open_store(place) as other:
        assert now(other) == now(store)
        with pytest.raises(NotRunningError):
            other.runs.begin_round(RUN, 1, 1)


def test_only_a_run_that_trains_and_runs_is_paused_and_only_a_paused_one_goes_on(store: Store) -> None:
    for name in ("over", "asks"):
        store.runs.create(RunId(name), DIGITS, "{}")
    store.runs.finish(RunId("over"), "finished", "")
    with store.database.write() as connection:
        row = {"id": "asks", "kind": "mean", "asked_by": "ann", "why": "to know", "signed": b"signed"}
        connection.execute(insert(queries).values(**row))
    before = store.audit.newest()
    with pytest.raises(RefusedError, match="Run run-1 is running already: only one that is paused can go on"):
        store.pauses.end(RUN, actor=ANN, reason="on")
    for change in (store.pauses.begin, store.pauses.end):
        with pytest.raises(RefusedError, match="Run over is finished already"):
            change(RunId("over"), actor=ANN, reason="why")
        for name in ("asks", "nobody"):
            with pytest.raises(UsageError, match=f"There is no run {name}"):
                change(RunId(name), actor=ANN, reason="why")
    assert store.audit.newest() == before


def test_of_many_who_pause_a_run_at_once_one_does_and_the_others_are_told(place: Path | URL) -> None:
    with open_store(place) as store:
        store.runs.create(RUN, DIGITS, "{}")
        start = threading.Barrier(4)

        def pause(number: int) -> str:
            with open_store(place) as own:
                start.wait()
                try:
                    own.pauses.begin(RUN, actor=ANN, reason=f"by {number}")
                except UmbelError as exc:
                    return str(exc)
                return ""

        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(pause, range(4)))
        winner = now(store).reason
        assert sorted(said)[0] == ""
        assert set(said) == {"", f"Run run-1 is paused already ({winner}): only one that runs can be paused."}
        assert said.count("") == 1
        assert len(list(store.audit.all(Sought(action="run.pause")))) == 1


def test_who_resumes_a_run_that_was_paused_anew_meanwhile_does_not_undo_what_they_have_not_seen(
    store: Store, clock: ManualClock
) -> None:
    store.pauses.begin(RUN, actor=ANN, reason="lunch")
    seen = now(store).paused_s
    store.pauses.end(RUN, actor=BEN, reason="fed")
    clock.advance(1)
    store.pauses.begin(RUN, actor=BEN, reason="the labels are wrong")
    with pytest.raises(RefusedError, match=r"paused anew meanwhile \(the labels are wrong\)"):
        store.pauses.end(RUN, actor=ANN, reason="fed", since_s=seen)
    assert now(store).state == "paused"
    store.pauses.end(RUN, actor=ANN, reason="they are right", since_s=now(store).paused_s)
    assert now(store).state == "running"


def test_a_paused_run_can_be_stopped_and_is_paused_no_more(store: Store, clock: ManualClock) -> None:
    store.pauses.begin(RUN, actor=ANN, reason="lunch")
    store.runs.finish(RUN, "stopped", "enough", actor=BEN)
    ended = now(store)
    assert (ended.state, ended.reason, ended.paused_s) == ("stopped", "enough", None)
    assert ended.finished_s == clock.now_s
    assert store.pauses.all() == ()
    (entry,) = store.audit.all(Sought(action="run.stop"))
    assert (entry.before, entry.after) == ('{"state":"paused"}', '{"state":"stopped"}')
    with pytest.raises(RefusedError, match="stopped already"):
        store.pauses.end(RUN, actor=ANN, reason="on")


def test_what_is_paused_wants_no_server_process_and_an_attempt_that_it_left_is_found(store: Store) -> None:
    other, stopped = RunId("other"), RunId("stopped")
    for run in (other, stopped):
        store.runs.create(run, DIGITS, "{}")
    for run in (RUN, other, stopped):
        store.runs.begin_round(run, 1, 1)
    assert store.pauses.left_behind() == ()
    store.pauses.begin(RUN, actor=ANN, reason="lunch")
    store.runs.finish(stopped, "stopped", "enough")
    assert store.runs.driven() == (other,)
    assert store.pauses.left_behind() == (RUN, stopped)
    store.runs.abandon(RUN, "the server was stopped")
    assert store.pauses.left_behind() == (stopped,)


def test_runs_of_before_there_were_pauses_are_not_paused_and_can_be(empty_place: Path | URL) -> None:
    database = older_store(empty_place, "0020")
    columns = "id, model, plan, state, reason, created_s, finished_s"
    with database.write() as connection:
        for row in (
            "'run-1', 'digits', '{}', 'running', '', 1.0, NULL",
            "'run-0', 'digits', '{}', 'failed', 'x', 0.0, 9.0",
        ):
            connection.exec_driver_sql(f"INSERT INTO runs ({columns}) VALUES ({row})")
    database.close()
    with open_store(empty_place) as store:
        assert [(each.id, each.state, each.paused_s) for each in store.runs.all()] == [
            ("run-0", "failed", None),
            (RUN, "running", None),
        ]
        store.pauses.begin(RUN, actor=ANN, reason="lunch")
        assert now(store).state == "paused"
