"""How long a store keeps what: to the day, in steps, and never what nobody has opened."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL

from postgresql_server import PostgresqlServer
from service_fleet import DAY_S, ManualClock, PlainDevice
from umbel_proto.errors import UnavailableError, UsageError
from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.fleet.settings import FleetSettings
from umbel_server.store import partitions, retention
from umbel_server.store.batches import Arrival, month_of
from umbel_server.store.database import Database
from umbel_server.store.retention import Expired
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.settings import RetentionPolicy
from umbel_server.store.store import Store, open_store

ROSE = DeviceId("rose")
POLICY = RetentionPolicy(raw_days=40, hours_days=50, days_days=60)
NOVEMBER_S = 1_794_000_000.0  # 6 November 2026.


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOVEMBER_S)


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        enter(opened)
        yield opened


def enter(store: Store) -> None:
    application = PlainDevice().application(store.tokens.issue(valid_s=60), name=ROSE)
    store.devices.enroll(application, certificate_life_s=60)


def arrival(created_s: float = NOVEMBER_S, batch_id: bytes | None = None) -> Arrival:
    return Arrival(batch_id or secrets.token_bytes(16), "key", b"header", b"sealed", int(created_s))


def open_all(store: Store, *, hour_s: int | None = None) -> None:
    for batch in store.batches.sealed(limit=10_000):
        rollups = () if hour_s is None else (rollup(hour_s),)
        store.rollups.absorb([Verdict(batch.id, rollups)])


def rollup(hour_s: int) -> Rollup:
    histogram = Histogram("latency_us", (10.0,), (1, 0), 5.0)
    of = (ModelName("digits"), 1, "int8", "onnx")
    return Rollup(ROSE, *of, hour_s, 1, hour_s + 60, {"predictions": 2}, {"latency_us": histogram})


def count(store: Store) -> int:
    return sum(line.sealed + line.opened + line.rejected for line in store.batches.deliveries())


def test_an_opened_batch_is_kept_for_its_days_and_not_much_longer(store: Store, clock: ManualClock) -> None:
    store.retention.expire(POLICY)
    store.batches.append(ROSE, [arrival(), arrival(created_s=0)])
    open_all(store)
    clock.advance(39 * DAY_S)
    assert store.retention.expire(POLICY) == Expired()
    clock.advance(32 * DAY_S)  # Months end whole.
    assert store.retention.expire(POLICY) == Expired(batches=2)
    assert count(store) == 0
    assert store.retention.expire(POLICY) == Expired()


def test_what_nobody_has_opened_stays_however_old(store: Store, clock: ManualClock) -> None:
    store.retention.expire(POLICY)
    store.batches.append(ROSE, [arrival(), arrival(created_s=0)])
    clock.advance(5000 * DAY_S)
    assert store.retention.expire(POLICY).batches == 0
    assert len(store.batches.sealed(limit=9)) == 2


def test_a_batch_that_came_late_keeps_its_month_as_long(store: Store, clock: ManualClock) -> None:
    store.retention.expire(POLICY)
    clock.advance(60 * DAY_S)
    store.batches.append(ROSE, [arrival(created_s=NOVEMBER_S)])
    open_all(store)
    assert store.retention.expire(POLICY).batches == 0
    clock.advance(41 * DAY_S)
    assert store.retention.expire(POLICY).batches == 1


def test_what_quarantined_devices_sent_is_kept_no_longer_than_what_others_did(
    store: Store, clock: ManualClock
) -> None:
    store.devices.quarantine(ROSE, reason="odd")
    store.batches.append(ROSE, [arrival(), arrival()])
    clock.advance(30 * DAY_S)
    store.batches.append(ROSE, [arrival()])
    clock.advance(9 * DAY_S)
    assert store.retention.expire(POLICY) == Expired()
    clock.advance(2 * DAY_S)
    assert store.retention.expire(POLICY) == Expired(batches=2)
    assert store.quarantine.counts() == {ROSE: 1}


def test_sums_by_the_hour_end_before_those_by_the_day(store: Store, clock: ManualClock) -> None:
    store.batches.append(ROSE, [arrival()])
    hour_s = int(clock.now_s) // 3600 * 3600
    open_all(store, hour_s=hour_s)
    clock.advance(49 * DAY_S)
    assert store.retention.expire(POLICY).hours == 0
    assert len(store.rollups.all()) == 1
    clock.advance(2 * DAY_S)
    expired = store.retention.expire(POLICY)
    # The device's own, by the hour and the day, and that of all devices.
    assert (expired.hours, expired.days) == (3, 0)
    assert store.rollups.all() == ()
    clock.advance(11 * DAY_S)
    assert store.retention.expire(POLICY).days == 1


def test_much_is_deleted_in_steps(store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "ROWS_PER_STEP", 3)
    store.batches.append(ROSE, [arrival(created_s=0) for _ in range(10)])
    open_all(store)
    clock.advance(41 * DAY_S)
    assert store.retention.expire(POLICY).batches == 10


def test_a_batch_is_stored_once_whatever_month_it_is_sent_again_in(store: Store, clock: ManualClock) -> None:
    store.retention.expire(POLICY)
    again = arrival()
    for _ in range(3):
        store.batches.append(ROSE, [again])
        clock.advance(31 * DAY_S)
        store.retention.expire(replace(POLICY, raw_days=1000))
    assert count(store) == 1


@pytest.mark.parametrize("created_s", [0, 1, NOVEMBER_S, 253_402_300_799, 2**63, 2**64 - 1])
def test_a_devices_clock_may_say_anything(store: Store, created_s: float) -> None:
    store.batches.append(ROSE, [arrival(created_s=int(created_s))])
    assert count(store) == 1


@pytest.mark.parametrize("days", [0, -1, 36_501])
def test_a_retention_that_is_none_is_refused(days: int) -> None:
    with pytest.raises(UsageError, match=r"raw_days of \[retention\]"):
        RetentionPolicy(raw_days=days)


def test_a_fleet_says_in_its_settings_how_long_it_keeps_what() -> None:
    text = 'name = "garden"\nhost = "h"\nlisten = "::"\n[ports]\ngateway = 1\nenrollment = 2\nsuperlink = 3\n'
    text += "control = 4\n[retention]\nraw_days = 7\n"
    assert FleetSettings.from_toml(text).retention == RetentionPolicy(raw_days=7)


def test_months_follow_each_other() -> None:
    month, seen = month_of(0), []
    while month <= 197112:
        seen.append(month)
        assert partitions.month_before(partitions.month_after(month)) == month
        month = partitions.month_after(month)
    assert seen == [*range(197001, 197013), *range(197101, 197113)]
    assert [month_of(at_s) for at_s in (NOVEMBER_S, 1_796_083_199, 1_796_083_200)] == [202611, 202611, 202612]


def test_months_are_partitions_made_ahead_and_found_again(postgresql: PostgresqlServer) -> None:
    """What came while a month had none moves into its own when that is made."""
    clock = ManualClock(NOVEMBER_S)
    url = postgresql.database()
    with open_store(url, clock=clock) as store:
        enter(store)
        store.batches.append(ROSE, [arrival(), arrival(NOVEMBER_S + 31 * DAY_S), arrival(created_s=0)])
        before = store.batches.sealed(limit=9)
        store.retention.expire(POLICY)
        assert store.batches.sealed(limit=9) == before
        lies = dict(
            postgresql.execute(
                "SELECT tableoid::regclass::text, count(*) FROM batches GROUP BY 1",
                database=str(url.database),
            )
        )
        assert lies == {"batches_202611": 1, "batches_202612": 1, "batches_other": 1}
        with store.database.read() as connection:
            assert partitions.months(connection) == [202610, 202611, 202612, 202701]
        assert partitions.make_ahead(store.database, clock.now_s) == []
    postgresql.drop(url)


def test_a_month_that_somebody_reads_is_dropped_another_time(postgresql: PostgresqlServer) -> None:
    clock = ManualClock(NOVEMBER_S)
    url = postgresql.database()
    with open_store(url, clock=clock) as store:
        enter(store)
        store.retention.expire(POLICY)
        store.batches.append(ROSE, [arrival()])
        open_all(store)
        clock.advance(100 * DAY_S)
        other = Database(url)
        with other.read() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM batches").scalar_one()
            with pytest.raises(UnavailableError, match="busy"):
                store.retention.expire(POLICY)
        other.close()
        assert store.retention.expire(POLICY).batches == 1
    postgresql.drop(url)
