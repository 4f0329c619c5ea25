"""Batches and rollups in the store: everything counts once."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from service_fleet import ManualClock, PlainDevice
from umbel_proto.errors import UsageError
from umbel_proto.histogram import MAX_COUNT, Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.store.batches import Arrival, Deliveries
from umbel_server.store.rollups import MAX_COUNTERS, MAX_HISTOGRAMS, Rollup, Verdict
from umbel_server.store.store import Store, open_store

ROSE = DeviceId("rose")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        application = PlainDevice().application(opened.tokens.issue(valid_s=60), name=ROSE)
        opened.devices.enroll(application, certificate_life_s=60)
        yield opened


def arrival(batch_id: bytes | None = None, ciphertext: bytes = b"sealed") -> Arrival:
    return Arrival(batch_id or secrets.token_bytes(16), "key", b"header", ciphertext)


def one(store: Store) -> int:
    """Store a batch and return its number."""
    store.batches.append(ROSE, [arrival()])
    return store.batches.sealed(limit=1000)[-1].id


def rollup(**fields: object) -> Rollup:
    right = Rollup(
        device=ROSE,
        model=ModelName("digits"),
        version=1,
        variant="int8",
        engine="onnx",
        hour_s=7200,
        windows=1,
        until_s=7260,
        counters={"predictions": 2},
        histograms={"latency_us": Histogram("latency_us", (10.0, 100.0), (1, 1, 0), 60.5)},
    )
    return replace(right, **fields)  # type: ignore[arg-type]


def test_batches_come_out_oldest_first_as_they_went_in(store: Store) -> None:
    store.batches.append(ROSE, [arrival(ciphertext=b"1"), arrival(ciphertext=b"2")])
    store.batches.append(ROSE, [arrival(ciphertext=b"3")])
    sealed = store.batches.sealed(limit=2)
    assert [batch.ciphertext for batch in sealed] == [b"1", b"2"]
    assert {(batch.device, batch.key_id, batch.header) for batch in sealed} == {(ROSE, "key", b"header")}


def test_a_batch_that_is_sent_again_stays_as_it_was(store: Store) -> None:
    store.batches.append(ROSE, [arrival(bytes(16), b"first")])
    store.batches.append(ROSE, [arrival(bytes(16), b"second"), arrival(ciphertext=b"new")])
    assert [batch.ciphertext for batch in store.batches.sealed(limit=9)] == [b"first", b"new"]


def test_a_batch_that_is_twice_in_one_upload_is_stored_once(store: Store) -> None:
    store.batches.append(ROSE, [arrival(bytes(16)), arrival(bytes(16))])
    assert len(store.batches.sealed(limit=9)) == 1


@pytest.mark.parametrize("count", [1, 3, 4, 5, 21, 63, 64, 85, 149])
def test_however_many_arrive_together_each_is_stored_once_in_order_and_told_from_repeats(
    store: Store, count: int
) -> None:
    told: list[tuple[int, int]] = []
    store.batches.committed = lambda new, repeated: told.append((new, repeated))
    arrivals = [arrival(ciphertext=b"%d" % number) for number in range(count)]
    store.batches.append(ROSE, arrivals[::2])
    store.batches.append(ROSE, arrivals)
    evens = (count + 1) // 2
    assert told == [(evens, 0), (count - evens, evens)]
    expected = [each.ciphertext for each in arrivals[::2] + arrivals[1::2]]
    assert [each.ciphertext for each in store.batches.sealed(limit=1000)] == expected


def test_two_devices_may_use_the_same_batch_id(store: Store) -> None:
    application = PlainDevice().application(store.tokens.issue(valid_s=60), name="lily")
    lily = store.devices.enroll(application, certificate_life_s=60).id
    for device in (ROSE, lily):
        store.batches.append(device, [arrival(bytes(16))])
    assert [batch.device for batch in store.batches.sealed(limit=9)] == [ROSE, lily]


def test_a_batch_that_was_opened_is_not_taken_in_again(store: Store) -> None:
    store.batches.append(ROSE, [arrival(bytes(16))])
    (batch,) = store.batches.sealed(limit=9)
    store.rollups.absorb([Verdict(batch.id, (rollup(),))])
    store.batches.append(ROSE, [arrival(bytes(16))])
    assert store.batches.sealed(limit=9) == ()
    assert [line.windows for line in store.rollups.all()] == [1]


def test_an_upload_tells_when_the_device_was_seen_even_with_nothing_in_it(
    store: Store, clock: ManualClock
) -> None:
    clock.advance(30)
    store.batches.append(ROSE, [])
    found = store.devices.get(ROSE)
    assert found is not None
    assert found.last_seen_s == clock.now_s


def test_windows_of_one_hour_add_and_those_of_another_stay_apart(store: Store) -> None:
    later = rollup(hour_s=10800, until_s=10860)
    store.rollups.absorb([Verdict(one(store), (rollup(), rollup(until_s=7300), later))])
    store.rollups.absorb([Verdict(one(store), (rollup(),))])
    first, second = store.rollups.all()
    assert second == later
    assert (first.windows, first.until_s, first.counters) == (3, 7300, {"predictions": 6})
    assert first.histograms["latency_us"] == Histogram("latency_us", (10.0, 100.0), (3, 3, 0), 181.5)


@pytest.mark.parametrize("other", ["model", "version", "variant", "engine"])
def test_what_differs_in_its_key_does_not_add(store: Store, other: str) -> None:
    value: object = 2 if other == "version" else "other"
    store.rollups.absorb([Verdict(one(store), (rollup(), rollup(**{other: value})))])
    assert [line.windows for line in store.rollups.all()] == [1, 1]


def test_an_opened_batch_keeps_its_sums_and_loses_its_bytes(store: Store) -> None:
    number = one(store)
    assert store.rollups.absorb([Verdict(number, (rollup(),))]) == 1
    with store.database.read() as connection:
        row = connection.exec_driver_sql("SELECT state, ciphertext, reason FROM batches").one()
    assert tuple(row) == ("opened", None, None)


def test_a_batch_counts_once_however_often_it_is_absorbed(store: Store) -> None:
    verdict = Verdict(one(store), (rollup(),))
    assert [store.rollups.absorb([verdict, verdict]), store.rollups.absorb([verdict])] == [1, 0]
    assert [line.windows for line in store.rollups.all()] == [1]


def test_a_rejected_batch_adds_nothing_and_says_why(store: Store) -> None:
    store.rollups.absorb([Verdict(one(store), reason="It does not open.")])
    assert store.rollups.all() == ()
    with store.database.read() as connection:
        row = connection.exec_driver_sql("SELECT state, reason FROM batches").one()
    assert tuple(row) == ("rejected", "It does not open.")


def test_a_batch_that_does_not_add_up_is_rejected_whole_and_the_others_count(store: Store) -> None:
    odd = rollup(histograms={"latency_us": Histogram("latency_us", (5.0,), (1, 1), 0.0)})
    numbers = [one(store), one(store), one(store)]
    store.rollups.absorb(
        [
            Verdict(numbers[0], (rollup(),)),
            Verdict(numbers[1], (rollup(version=2), odd)),
            Verdict(numbers[2], (rollup(),)),
        ]
    )
    assert [(line.version, line.windows) for line in store.rollups.all()] == [(1, 2)]
    (line,) = store.batches.deliveries()
    assert (line.opened, line.rejected) == (2, 1)


def test_deliveries_count_batches_by_state(store: Store, clock: ManualClock) -> None:
    numbers = [one(store) for _ in range(4)]
    clock.advance(5)
    one(store)
    store.rollups.absorb([Verdict(numbers[0], (rollup(),)), Verdict(numbers[1], reason="odd")])
    assert store.batches.deliveries() == (Deliveries(ROSE, 3, 1, 1, clock.now_s),)


def test_a_rollup_refuses_what_would_fill_the_store() -> None:
    histogram = Histogram("h", (1.0,), (0, 0))
    with pytest.raises(UsageError, match="counters"):
        rollup(counters={f"c{n}": 1 for n in range(MAX_COUNTERS + 1)})
    with pytest.raises(UsageError, match="histograms"):
        rollup(histograms={f"h{n}": histogram for n in range(MAX_HISTOGRAMS + 1)})
    with pytest.raises(UsageError, match=r"2\*\*63"):
        rollup(counters={"predictions": MAX_COUNT}).merge(rollup())


counters = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 1000))


lists = st.lists(counters, min_size=1, max_size=6)


@given(lists.flatmap(lambda parts: st.tuples(st.just(parts), st.permutations(parts))))
def test_the_order_of_arrival_does_not_change_the_sums(
    orders: tuple[list[dict[str, int]], list[dict[str, int]]],
) -> None:
    parts, shuffled = orders

    def total(order: list[dict[str, int]]) -> Rollup:
        first, *rest = (rollup(counters=part) for part in order)
        for part in rest:
            first = first.merge(part)
        return first

    assert total(parts) == total(shuffled)
    assert sum(total(parts).counters.values()) == sum(sum(part.values()) for part in parts)
