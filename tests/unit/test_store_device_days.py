"""What each device delivered, by the day: it is what its hours and batches say, and costs no look at them."""

from __future__ import annotations

import functools
import importlib
import random
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import URL, select, text

from service_fleet import DAY_S, ManualClock, PlainDevice
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.rollouts.gates import Reported
from umbel_server.store.batches import Arrival
from umbel_server.store.device_days import DeviceSum
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.settings import RetentionPolicy
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables_devices import deliveries

NAMES = [DeviceId(f"device-{number}") for number in range(4)]
SILENT = DeviceId("silent")
NOW_S = 1_800_000_000.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_S)


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        for name in (*NAMES, SILENT):
            token = opened.tokens.issue(valid_s=1e6)
            opened.devices.enroll(PlainDevice().application(token, name=name), certificate_life_s=60)
        tell(opened, clock, random.Random(7))
        yield opened


def tell(store: Store, clock: ManualClock, chance: random.Random) -> None:
    """Let devices report for three days: some of it is sealed still, rejected, or of another umbel."""
    for _ in range(25):
        for _ in range(chance.randrange(1, 5)):
            sent = [Arrival(secrets.token_bytes(16), "key", b"h", b"sealed", int(clock.now_s))]
            store.batches.append(chance.choice(NAMES), sent)
        waiting = store.batches.sealed(limit=chance.randrange(4))
        verdicts = [
            Verdict(each.id, reason="odd")
            if chance.random() < 0.2
            else Verdict(each.id, tuple(rollup(each.device, clock.now_s, chance) for _ in range(2)))
            for each in waiting
        ]
        store.rollups.absorb([*verdicts, *verdicts])
        clock.advance(3 * 3600.0)


def rollup(device: DeviceId, now_s: float, chance: random.Random) -> Rollup:
    hour_s = int(now_s) // 3600 * 3600 - 3600 * chance.randrange(3)
    model, version = chance.choice([("digits", 1), ("digits", 2), ("", 0)])
    shapes = [
        Histogram.empty("latency_us", LATENCY_US).observe([chance.uniform(1, 1e6)]),
        # Another umbel has other edges, from some hour on.
        Histogram.empty("c", CONFIDENCE if hour_s % DAY_S < DAY_S / 2 else (0.5,)).observe([chance.random()]),
    ]
    counters = {"predictions": chance.randrange(9), f"label.{chance.randrange(3)}": 1}
    of = (ModelName(model), version, "int8", "onnx", hour_s)
    return Rollup(device, *of, 1, hour_s + 60, counters, {each.name: each for each in shapes})


def brute(rows: list[Rollup]) -> dict[object, tuple[int, Counter[str], Counter[object]]]:
    """Return by device, model and version what rollups are, one by one: windows, counters, cells."""
    found: dict[object, tuple[int, Counter[str], Counter[object]]] = {}
    for row in rows:
        windows, counters, cells = found.setdefault(
            (row.device, row.model, row.version), (0, Counter(), Counter())
        )
        counters.update(row.counters)
        for each in row.histograms.values():
            cells.update({(each.name, each.edges, cell): count for cell, count in enumerate(each.counts)})
        found[row.device, row.model, row.version] = (windows + row.windows, counters, cells)
    return found


def test_the_days_of_devices_are_the_sums_of_their_hours(store: Store, clock: ManualClock) -> None:
    hours = store.rollups.all()
    for since_s in (0, NOW_S // DAY_S * DAY_S + DAY_S):
        found = {
            (each.device, each.model, each.version): (
                each.windows,
                Counter(dict(each.counters)),
                Counter(
                    {
                        (shape.name, shape.edges, cell): count
                        for shape in each.histograms
                        for cell, count in enumerate(shape.counts)
                    }
                ),
            )
            for each in store.device_days.totals(NAMES[1:], since_s=since_s)
        }
        assert found == brute([row for row in hours if row.hour_s >= since_s and row.device != NAMES[0]])
        assert found
    days = store.device_days.days(NAMES[2], wanted=("latency_us",))
    assert {each.since_s % DAY_S for each in days} == {0}
    assert sum(each.windows for each in days) == sum(row.windows for row in hours if row.device == NAMES[2])
    assert {shape.name for each in days for shape in each.histograms} == {"latency_us"}


def test_what_a_gate_reads_by_the_day_is_what_the_hours_say(store: Store) -> None:
    """Whether a step began with a day or within one, and where a name's edges differ: what most was counted in."""
    for late_h in (0, 1, 7.5, 23.9, 24, 40, 48):
        since_s = NOW_S - 3600 + late_h * 3600
        for model, version in (("digits", 1), ("digits", 2), ("", 0)):
            rows = [
                row
                for name in NAMES
                for row in store.rollups.of(name, since_s=since_s // 3600 * 3600)
                if (row.model, row.version) == (model, version)
            ]
            found = store.placements.reported(
                NAMES, model=model, version=version, since_s=since_s, wanted={"latency_us", "c"}
            )
            assert found.keys() == {row.device for row in rows} != set()
            for device, told in found.items():
                _check(told, [row for row in rows if row.device == device])


def _check(told: Reported, rows: list[Rollup]) -> None:
    """Check sums against hours, one by one."""
    counters: Counter[str] = Counter()
    kinds: dict[tuple[str, tuple[float, ...]], list[Histogram]] = {}
    for row in rows:
        counters.update(row.counters)
        for shape in row.histograms.values():
            kinds.setdefault((shape.name, shape.edges), []).append(shape)
    assert Counter(dict(told.counters)) == counters
    sizes = {kind: sum(sum(each.counts) for each in some) for kind, some in kinds.items()}
    assert told.histograms.keys() == {name for name, _ in kinds}
    for name, shape in told.histograms.items():
        assert sizes[name, shape.edges] == max(size for kind, size in sizes.items() if kind[0] == name)
        summed = functools.reduce(Histogram.merge, kinds[name, shape.edges])
        assert (shape.counts, shape.sum) == (summed.counts, pytest.approx(summed.sum))


def test_deliveries_are_those_that_a_count_of_all_batches_finds(store: Store) -> None:
    counted = {each.device: each for each in store.batches.deliveries()}
    assert store.delivered.of([*NAMES, SILENT]) == counted
    assert {name for name, each in counted.items() if each.sealed and each.opened and each.rejected}
    assert store.delivered.of(NAMES[:1]) == {NAMES[0]: counted[NAMES[0]]}


def test_a_devices_days_end_with_its_hours_and_its_deliveries_stay(store: Store, clock: ManualClock) -> None:
    before = store.delivered.of(NAMES)
    clock.advance(60 * DAY_S)
    store.retention.expire(RetentionPolicy(raw_days=40, hours_days=50))
    assert (store.rollups.all(), store.device_days.totals(NAMES)) == ((), ())
    after = store.delivered.of(NAMES)
    assert [each.opened for each in after.values()] == [before[name].opened for name in after]


def test_a_store_of_before_has_its_hours_summed_when_it_is_brought_up_to_date(store: Store) -> None:
    migration = importlib.import_module("umbel_server.store.migrations.versions.0012_device_days")
    counted = select(deliveries).order_by(deliveries.c.device_id)
    days = store.device_days.totals(NAMES)
    with store.database.write() as connection:
        before = connection.execute(counted).all()
        for what in ("TABLE device_days", "TABLE deliveries", "INDEX batches_rejected", "INDEX audit_action",
                     "INDEX audit_time", "INDEX rollout_devices_device"):  # fmt: skip
            connection.execute(text(f"DROP {what}"))
        with Operations.context(MigrationContext.configure(connection)):
            migration.upgrade()
        assert connection.execute(counted).all() == before
    assert [_plain(each) for each in store.device_days.totals(NAMES)] == [_plain(each) for each in days]


def _plain(each: DeviceSum) -> object:
    shapes = sorted((shape.name, shape.edges, shape.counts) for shape in each.histograms)
    return each.device, each.model, each.version, each.windows, each.until_s, dict(each.counters), shapes
