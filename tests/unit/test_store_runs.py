"""Runs and releases in the store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from service_fleet import ManualClock
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_server.store.runs import LedgerLine, Participation, RoundRecord, RunRecord
from umbel_server.store.store import Store, open_store

RUN, DIGITS = RunId("run-1"), ModelName("digits")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    with open_store(tmp_path / "store.db", clock=clock) as opened:
        yield opened


def a_round(number: int, attempt: int = 1, *parts: Participation, **fields: object) -> RoundRecord:
    right: dict[str, object] = {"state": "opened", "started_s": 10.0, "finished_s": 12.5}
    return RoundRecord(RUN, number, attempt, **{**right, **fields}, participations=parts)  # type: ignore[arg-type]


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
        store.runs.append_round(record)
    assert store.runs.rounds(RUN) == (opened, aborted, again)
    assert store.runs.rounds(RunId("other")) == ()


def test_an_attempt_is_kept_once_and_a_refused_one_leaves_nothing(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    store.runs.append_round(kept := a_round(1, 1, summed("rose")))
    with pytest.raises(UsageError, match="Attempt 1 at round 1 of run run-1"):
        store.runs.append_round(a_round(1, 1, summed("fern")))
    with pytest.raises(UsageError, match="Attempt 1 at round 2"):
        store.runs.append_round(a_round(2, 1, summed("rose"), summed("rose")))
    assert store.runs.rounds(RUN) == (kept,)


def test_a_round_of_an_unknown_run_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="run is unknown"):
        store.runs.append_round(a_round(1))


def test_a_figure_that_is_no_finite_number_comes_back_as_none(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    store.runs.append_round(a_round(1, figures={"epsilon": math.inf, "by_device": {"rose": [math.nan, 1.0]}}))
    (kept,) = store.runs.rounds(RUN)
    assert kept.figures == {"epsilon": None, "by_device": {"rose": [None, 1.0]}}


def test_the_ledger_counts_what_each_device_took_part_in(store: Store) -> None:
    store.runs.create(RUN, DIGITS, "{}")
    store.runs.append_round(a_round(1, 1, summed("rose"), summed("fern")))
    store.runs.append_round(a_round(2, 1, Participation(DeviceId("fern"), "charged", "lost"), summed("rose")))
    store.runs.append_round(a_round(3, 1, Participation(DeviceId("fern"), "dropped", "slow"), summed("rose")))
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
