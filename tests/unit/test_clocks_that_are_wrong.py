"""Devices whose clocks are wrong: what they date in the future, or long ago, counts nowhere and does not stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, func, select

from monitor_world import DAY_S, HOUR_S, Reporters
from rollout_world import DIGITS
from service_fleet import ManualClock
from umbel_proto.histogram import LATENCY_US, Histogram
from umbel_proto.ids import DeviceId
from umbel_server.console.screens.device import slots
from umbel_server.store.settings import RetentionPolicy
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import cohort_rollups, rollups
from umbel_server.store.tables_devices import device_days

YEAR_S = 365 * DAY_S
NOW_S = 1_794_000_000.0 // DAY_S * DAY_S + 9.5 * HOUR_S
"""Within an hour, and within a day."""
WRONG = {"ahead by two days": -2 * DAY_S, "ahead by years": -400 * YEAR_S, "of 1970": NOW_S - HOUR_S}
POLICY = RetentionPolicy()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_S)


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        yield opened


def tell(store: Store, clock: ManualClock, *wrong_s: float) -> tuple[DeviceId, DeviceId]:
    """Let one device report truly, and another the same of other times."""
    reporters = Reporters(store, clock, count=2)
    right, off = reporters.names
    latency = Histogram.empty("latency_us", LATENCY_US).observe([900.0] * 7)
    for device, ago_s in ((right, HOUR_S), *((off, each) for each in wrong_s)):
        reporters.tell(device, latency, ago_s=ago_s, counters={"predictions": 7, "contract.age.above": 3})
    reporters.arrive()
    return right, off


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_wrong_clock_dates_counts_in_no_gate_no_page_and_no_sum(
    store: Store, clock: ManualClock, wrong: str
) -> None:
    right, off = tell(store, clock, WRONG[wrong])
    since_s = clock() - 3 * DAY_S
    for begun_s in (since_s, clock() - 2 * HOUR_S):
        told = store.placements.reported(
            [right, off], model=DIGITS, version=1, since_s=begun_s, wanted={"latency_us"}
        )
        assert set(told) == {right}
        assert told[right].counters["predictions"] == 7
    assert [each.predictions for each in slots(store, right, {}, since_s=since_s)] == [7]
    assert slots(store, off, {}, since_s=since_s) == []
    for span in ("hour", "day"):
        (total,) = store.cohorts.totals(DIGITS, span=span, since_s=since_s - DAY_S, until_s=1 << 40)
        assert total.counters["predictions"] == 7


def test_a_model_that_only_wrong_clocks_tell_of_is_not_listed(store: Store, clock: ManualClock) -> None:
    reporters = Reporters(store, clock, count=1)
    reporters.tell(reporters.names[0], ago_s=-2 * DAY_S, counters={"predictions": 1}, version=9)
    reporters.arrive()
    assert store.cohorts.models() == ()
    assert store.cohorts.names() == ()
    assert store.cohorts.windows(since_s=0, lately_s=0, until_s=1 << 40) == {}


def test_what_wrong_clocks_date_does_not_stay(store: Store, clock: ManualClock) -> None:
    right, _ = tell(store, clock, *WRONG.values())
    store.retention.expire(POLICY)
    with store.database.read() as connection:
        assert {row.device_id for row in connection.execute(select(rollups))} == {right}
        assert {row.device_id for row in connection.execute(select(device_days))} == {right}
        sums = select(func.min(cohort_rollups.c.start_s), func.max(cohort_rollups.c.start_s))
        first_s, last_s = connection.execute(sums.where(cohort_rollups.c.span == "hour")).one()
        assert first_s == last_s <= clock()
        oldest_s, newest_s = connection.execute(sums.where(cohort_rollups.c.span == "day")).one()
        assert clock() - POLICY.days_days * DAY_S <= oldest_s <= newest_s <= clock()


def test_a_clock_that_is_some_hours_ahead_counts_once_its_time_has_come(
    store: Store, clock: ManualClock
) -> None:
    _, ahead = tell(store, clock, -20 * HOUR_S)
    since_s = clock() - HOUR_S

    def counted() -> bool:
        told = store.placements.reported([ahead], model=DIGITS, version=1, since_s=since_s, wanted=())
        return ahead in told

    store.retention.expire(POLICY)
    assert not counted()
    clock.advance(20 * HOUR_S)
    assert counted()
