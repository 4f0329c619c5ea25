"""Runs and releases in the store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL
from sqlalchemy.exc import IntegrityError

from older_store import older_store
from service_fleet import ManualClock
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_server.store.runs import LedgerLine, Participation, Phase, RoundRecord, RunningAttempt, RunRecord
from umbel_server.store.store import Store, open_store

RUN, DIGITS = RunId("run-1"), ModelName("digits")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        yield opened


def a_round(number: int, attempt: int = 1, *parts: Participation, **fields: object) -> RoundRecord:
    right: dict[str, object] = {"state": "opened", "started_s": 10.0, "finished_s": 12.5}
    return RoundRecord(RUN, number, attempt, **{**right, **fields}, participations=parts)  # type: ignore[arg-type]


def keep(store: Store, record: RoundRecord) -> None:
    """Put an attempt on record from its beginning to its end."""
    store.runs.begin_round(record.run, record.round, record.attempt)
    store.runs.end_round(record)


def summed(name: str) -> Participation:
    return Participation(DeviceId(name), "summed")


def test_a_run_is_running_until_it_ends_with_a_reason(store: Store, clock: ManualClock) -> None:
    created = store.runs.create(RUN, DIGITS, '{"rounds": 3}')
    expected = RunRecord(RUN, DIGITS, '{"rounds": 3}', "running", "", clock.now_s, None)
    assert created == store.runs.get(RUN) == expected
    clock.advance(60)
    store.runs.finish(RUN, "failed", "too few devices")
    ended = store.runs.get(RUN)
    assert ended is not None
    assert (ended.state, ended.reason, ended.finished_s) == ("failed", "too few devices", clock.now_s)


def test_a_run_that_is_not_running_cannot_end(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    store.runs.finish(RUN, "finished", "")
    for run in (RUN, RunId("other")):
        with pytest.raises(UsageError, match="no running run"):
            store.runs.finish(run, "stopped", "again")


def test_a_name_of_a_run_is_used_once(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    with pytest.raises(UsageError, match="already a run run-1"):
        store.runs.create(RUN, DIGITS, "{}")
    with pytest.raises(UsageError, match="not a name"):
        store.runs.create(RunId("../run"), DIGITS, "{}")


def test_runs_are_listed_oldest_first(store: Store, clock: ManualClock) -> None:
    for name in ("zinnia", "aster"):
        store.runs.create(RunId(name), DIGITS, "{}")
        clock.advance(1)
    assert [run.id for run in store.runs.all()] == ["zinnia", "aster"]
    assert store.runs.get(RunId("lily")) is None


def test_rounds_come_back_as_they_were_kept(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    aborted = a_round(
        2,
        1,
        Participation(DeviceId("fern"), "dropped", "gone"),
        Participation(DeviceId("rose"), "charged", "round aborted"),
        state="aborted",
        reason="1 device left of 3",
    )
    opened = a_round(
        1, 1, summed("fern"), summed("rose"), figures={"loss": 0.25, "bytes": [1, 2], "note": "x"}
    )
    for record in (aborted, opened, again := a_round(2, 2, summed("rose"))):
        keep(store, record)
    assert store.runs.rounds(RUN) == (opened, aborted, again)
    assert store.runs.rounds(RunId("other")) == ()


def test_an_attempt_is_kept_once_and_a_refused_end_changes_nothing(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    keep(store, kept := a_round(1, 1, summed("rose")))
    with pytest.raises(UsageError, match="Attempt 1 at round 1 of run run-1 cannot begin"):
        store.runs.begin_round(RUN, 1, 1)
    with pytest.raises(UsageError, match="Attempt 1 at round 1 of run run-1 is not running"):
        store.runs.end_round(a_round(1, 1, summed("fern")))
    store.runs.begin_round(RUN, 2, 1)
    store.runs.enter_phase(RUN, 2, 1, "mask", [DeviceId("rose")])
    before = store.runs.running_attempt(RUN)
    with pytest.raises(UsageError, match="a device is in it twice"):
        store.runs.end_round(a_round(2, 1, summed("rose"), summed("rose")))
    assert store.runs.rounds(RUN) == (kept,)
    assert store.runs.running_attempt(RUN) == before


def test_a_round_of_an_unknown_run_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="run is unknown"):
        store.runs.begin_round(RUN, 1, 1)


def test_a_running_attempt_says_how_far_it_is_and_whom_it_charged(store: Store, clock: ManualClock) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    assert store.runs.running_attempt(RUN) is None
    store.runs.begin_round(RUN, 3, 2)
    began = clock.now_s
    before: tuple[Phase, ...] = ("train", "share")
    for phase in before:
        store.runs.enter_phase(RUN, 3, 2, phase)
        assert store.runs.running_attempt(RUN) == RunningAttempt(RUN, 3, 2, phase, began, ())
    asked = (DeviceId("fern"), DeviceId("rose"))
    store.runs.enter_phase(RUN, 3, 2, "mask", reversed(asked))
    clock.advance(5)
    after: tuple[Phase, ...] = ("confirm", "unmask")
    for phase in after:
        store.runs.enter_phase(RUN, 3, 2, phase)
        assert store.runs.running_attempt(RUN) == RunningAttempt(RUN, 3, 2, phase, began, asked)
    assert store.runs.rounds(RUN) == ()


def test_only_one_attempt_of_a_run_runs_at_a_time(store: Store) -> None:
    for run in (RUN, RunId("other")):
        store.runs.create(run, DIGITS, "{}")
        store.runs.begin_round(run, 1, 1)
    with pytest.raises(UsageError, match="another attempt is running"):
        store.runs.begin_round(RUN, 1, 2)


def test_devices_asked_for_their_updates_are_on_the_ledger_before_the_round_ends(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    store.runs.begin_round(RUN, 1, 1)
    store.runs.enter_phase(RUN, 1, 1, "share")
    assert store.runs.ledger() == ()
    store.runs.enter_phase(RUN, 1, 1, "mask", [DeviceId("rose")])
    assert store.runs.ledger() == (LedgerLine(DeviceId("rose"), RUN, summed=0, charged=1, dropped=0),)
    store.runs.end_round(a_round(1, 1, summed("rose")))
    assert store.runs.ledger() == (LedgerLine(DeviceId("rose"), RUN, summed=1, charged=0, dropped=0),)


def test_an_attempt_left_behind_is_aborted_with_its_phase_and_stays_charged(
    store: Store, clock: ManualClock
) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    keep(store, whole := a_round(1, 1, summed("rose")))
    began = clock.now_s
    store.runs.begin_round(RUN, 2, 1)
    store.runs.enter_phase(RUN, 2, 1, "mask", [DeviceId("rose")])
    clock.advance(60)
    store.runs.abandon(RUN, "the server was stopped")
    part = Participation(DeviceId("rose"), "charged", "the round never ended")
    why = "the server was stopped in phase mask"
    left = RoundRecord(RUN, 2, 1, "aborted", began, clock.now_s, why, {}, (part,))
    assert store.runs.rounds(RUN) == (whole, left)
    assert store.runs.running_attempt(RUN) is None


def test_a_run_without_a_running_attempt_has_none_to_abandon(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    keep(store, whole := a_round(1, 1, summed("rose")))
    store.runs.abandon(RUN, "the server was stopped")
    assert store.runs.rounds(RUN) == (whole,)


def test_the_attempt_of_a_run_that_was_stopped_may_still_end(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    store.runs.begin_round(RUN, 1, 1)
    store.runs.finish(RUN, "stopped", "enough")
    store.runs.end_round(last := a_round(1, 1, summed("rose")))
    assert store.runs.rounds(RUN) == (last,)


def test_a_phase_of_an_attempt_that_does_not_run_is_refused(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    with pytest.raises(UsageError, match="Attempt 1 at round 1 of run run-1 is not running"):
        store.runs.enter_phase(RUN, 1, 1, "mask", [DeviceId("rose")])
    assert store.runs.ledger() == ()


def test_rounds_kept_by_the_first_schema_are_kept_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    database = older_store(path, "0001")
    with database.write() as connection:
        for statement in (
            "INSERT INTO runs VALUES ('run-1', 'digits', '{}', 'running', '', 1.0, NULL)",
            "INSERT INTO rounds VALUES ('run-1', 1, 1, 'aborted', 'too few', '{}', 10.0, 12.5)",
            "INSERT INTO rounds VALUES ('run-1', 1, 2, 'opened', '', '{\"loss\": 0.25}', 20.0, 22.5)",
            "INSERT INTO participations VALUES ('run-1', 1, 2, 'rose', 'summed', '')",
        ):
            connection.exec_driver_sql(statement)
    database.close()
    with open_store(path) as store:
        assert store.runs.rounds(RUN) == (
            RoundRecord(RUN, 1, 1, "aborted", 10.0, 12.5, "too few"),
            RoundRecord(RUN, 1, 2, "opened", 20.0, 22.5, "", {"loss": 0.25}, (summed("rose"),)),
        )
        keep(store, a_round(2, 1, summed("rose")))
        with store.database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        with store.database.write() as connection, pytest.raises(IntegrityError):
            connection.exec_driver_sql("DELETE FROM rounds")


def test_a_figure_that_is_no_finite_number_comes_back_as_none(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    keep(store, a_round(1, figures={"epsilon": math.inf, "by_device": {"rose": [math.nan, 1.0]}}))
    (kept,) = store.runs.rounds(RUN)
    assert kept.figures == {"epsilon": None, "by_device": {"rose": [None, 1.0]}}


def test_the_ledger_counts_what_each_device_took_part_in(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    keep(store, a_round(1, 1, summed("rose"), summed("fern")))
    keep(store, a_round(2, 1, Participation(DeviceId("fern"), "charged", "lost"), summed("rose")))
    keep(store, a_round(3, 1, Participation(DeviceId("fern"), "dropped", "slow"), summed("rose")))
    assert store.runs.ledger() == (
        LedgerLine(DeviceId("fern"), RUN, summed=1, charged=1, dropped=1),
        LedgerLine(DeviceId("rose"), RUN, summed=3, charged=0, dropped=0),
    )


def test_devices_are_offered_the_highest_version_whatever_was_released_last(store: Store) -> None:
    for model, version in (("digits", 2), ("digits", 10), ("digits", 3), ("activity", 1)):
        store.releases.publish(ModelName(model), version, sha256=bytes([version] * 32), size=version)
    assert [(release.model, release.version) for release in store.releases.newest()] == [
        ("activity", 1),
        ("digits", 10),
    ]


def test_the_same_release_again_is_no_error_and_other_content_is_one(
    store: Store, clock: ManualClock
) -> None:
    first = store.releases.publish(DIGITS, 1, sha256=bytes(32), size=5)
    clock.advance(10)
    assert store.releases.publish(DIGITS, 1, sha256=bytes(32), size=5) == first
    with pytest.raises(RefusedError, match="Version 1 of digits is released already"):
        store.releases.publish(DIGITS, 1, sha256=bytes([1] * 32), size=5)
    assert store.releases.all() == (first,)
    assert store.releases.get(bytes(32)) == first
    assert store.releases.get(bytes([1] * 32)) is None
