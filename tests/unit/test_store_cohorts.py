"""Sums by cohort: they are those of the devices, and no device spoils another's."""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, insert

from service_fleet import ManualClock, PlainDevice
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, MAX_COUNT, Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.store import cohorts, sums
from umbel_server.store.batches import Arrival
from umbel_server.store.cohorts import CohortSum
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables_rollouts import device_tags

DIGITS = ModelName("digits")
ROSE, LILY = DeviceId("rose"), DeviceId("lily")
FOREVER_S = 1 << 40


@pytest.fixture
def store(place: Path | URL) -> Iterator[Store]:
    with open_store(place, clock=ManualClock(1_800_000_000.0)) as opened:
        for name in (ROSE, LILY):
            token = opened.tokens.issue(valid_s=60)
            opened.devices.enroll(PlainDevice().application(token, name=name), certificate_life_s=60)
        yield opened


def tag(store: Store, device: DeviceId, *tags: str) -> None:
    with store.database.write() as connection:
        connection.execute(insert(device_tags), [{"device_id": device, "tag": each} for each in tags])


def tell(store: Store, *rollups: Rollup) -> Verdict:
    store.batches.append(rollups[0].device, [Arrival(secrets.token_bytes(16), "key", b"h", b"sealed")])
    verdict = Verdict(store.batches.sealed(limit=1)[0].id, rollups)
    store.rollups.absorb([verdict])
    return verdict


def rollup(
    device: DeviceId = ROSE,
    *histograms: Histogram,
    hour_s: int = 7200,
    version: int = 1,
    counters: dict[str, int] | None = None,
) -> Rollup:
    names = {each.name: each for each in histograms}
    told = {"predictions": 1} if counters is None else counters
    return Rollup(device, DIGITS, version, "int8", "onnx", hour_s, 1, hour_s + 60, told, names)


def series(store: Store, cohort: str = "", span: cohorts.Span = "hour") -> tuple[CohortSum, ...]:
    return store.cohorts.series(DIGITS, span=span, since_s=0, until_s=FOREVER_S, cohort=cohort)


def counts(sums: tuple[CohortSum, ...]) -> list[tuple[int, int]]:
    return [(each.start_s, each.counters["predictions"]) for each in sums]


def test_the_sums_of_all_devices_are_the_sums_over_the_devices(store: Store) -> None:
    rng = random.Random(1)
    for _ in range(40):
        values = [rng.lognormvariate(7, 2) for _ in range(rng.randrange(5))]
        told = Histogram.empty("latency_us", LATENCY_US).observe(values)
        hour_s = 3600 * rng.randrange(60)
        told_of = rollup(rng.choice([ROSE, LILY]), told, hour_s=hour_s, counters={"predictions": len(values)})
        tell(store, told_of)
    for span, length_s in cohorts.SPANS.items():
        sums: Counter[int] = Counter()
        cells: dict[int, Histogram] = {}
        for each in store.rollups.all():
            start_s = each.hour_s // length_s * length_s
            sums[start_s] += each.counters["predictions"]
            own = each.histograms["latency_us"]
            cells[start_s] = cells[start_s].merge(own) if start_s in cells else own
        kept = series(store, span=span)  # type: ignore[arg-type]
        assert counts(kept) == sorted(sums.items())
        for each_sum in kept:
            histogram = each_sum.histogram("latency_us")
            assert histogram is not None
            assert histogram.counts == cells[each_sum.start_s].counts
            assert histogram.sum == pytest.approx(cells[each_sum.start_s].sum)


def test_a_cohort_has_the_devices_that_have_its_tag(store: Store) -> None:
    tag(store, ROSE, "ward-3", "tablet")
    tag(store, LILY, "tablet")
    for device in (ROSE, LILY):
        tell(store, rollup(device))
    assert store.cohorts.names() == ("", "tablet", "ward-3")
    assert [counts(series(store, name)) for name in store.cohorts.names()] == [
        [(7200, 2)],
        [(7200, 2)],
        [(7200, 1)],
    ]
    assert series(store, "ward-4") == ()


def test_a_window_stays_in_the_cohorts_that_it_was_counted_in(store: Store) -> None:
    tell(store, rollup())
    tag(store, ROSE, "ward-3")
    tell(store, rollup())
    assert (counts(series(store)), counts(series(store, "ward-3"))) == ([(7200, 2)], [(7200, 1)])


def test_a_batch_counts_once_in_its_cohorts_too(store: Store) -> None:
    verdict = tell(store, rollup())
    store.rollups.absorb([verdict, verdict])
    assert counts(series(store)) == [(7200, 1)]


def test_a_rejected_batch_is_in_no_cohort(store: Store) -> None:
    tell(store, rollup(ROSE, Histogram("h", (1.0,), (1, 0), 0.0)))
    tell(store, rollup(ROSE, Histogram("h", (2.0,), (1, 0), 0.0)))
    assert counts(series(store)) == [(7200, 1)]


def test_totals_are_the_series_summed_by_version(store: Store) -> None:
    for hour_s, version in ((0, 1), (3600, 2), (7200, 2), (90_000, 2)):
        tell(store, rollup(hour_s=hour_s, version=version))
    totals = store.cohorts.totals(DIGITS, span="hour", since_s=0, until_s=7201)
    assert [(each.version, each.counters["predictions"]) for each in totals] == [(1, 1), (2, 2)]
    (only,) = store.cohorts.totals(DIGITS, span="day", since_s=0, until_s=FOREVER_S, version=2)
    assert only.counters == {"predictions": 3}
    assert store.cohorts.models() == ((DIGITS, 1), (DIGITS, 2))


def test_totals_of_several_cohorts_are_those_of_each(store: Store) -> None:
    tag(store, ROSE, "tablet", "ward-3")
    tag(store, LILY, "tablet")
    tell(store, rollup(ROSE))
    tell(store, rollup(LILY, hour_s=10_800))
    names = ("", "tablet", "ward-3")
    together = store.cohorts.totals(DIGITS, span="hour", since_s=0, until_s=FOREVER_S, cohorts=names)
    apart = [
        store.cohorts.totals(DIGITS, span="hour", since_s=0, until_s=FOREVER_S, cohorts=[name])
        for name in names
    ]
    assert list(together) == [each for some in apart for each in some]
    assert [(each.cohort, each.counters["predictions"]) for each in together] == list(
        zip(names, (2, 2, 1), strict=True)
    )


def test_only_the_histograms_that_are_wanted_are_read(store: Store) -> None:
    first, second = Histogram("a", (1.0,), (1, 0), 0.0), Histogram("b", (1.0,), (0, 1), 0.0)
    tell(store, rollup(ROSE, first, second))
    for wanted, names in ((None, ["a", "b"]), (["b", "c"], ["b"]), ([], [])):
        (line,) = store.cohorts.series(DIGITS, span="hour", since_s=0, until_s=FOREVER_S, wanted=wanted)
        assert [each.name for each in line.histograms] == names
        assert line.counters == {"predictions": 1}


def test_devices_of_two_umbels_whose_edges_differ_spoil_nothing(store: Store) -> None:
    old, new = Histogram("score", (5.0,), (1, 1), 6.0), Histogram.empty("score", CONFIDENCE).observe([0.5])
    tell(store, rollup(ROSE, old))
    tell(store, rollup(LILY, new))
    tell(store, rollup(LILY, new))
    (line,) = series(store)
    assert sorted(sum(each.counts) for each in line.histograms) == [2, 2]
    assert (line.counters["predictions"], line.left_out) == (3, 0)


def test_what_would_fill_the_store_is_left_out_and_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "MAX_COUNTERS", 3)
    for number in range(5):
        kind = Histogram("h", (float(number + 1),), (1, 0), 0.0)
        tell(store, rollup(ROSE, kind, hour_s=0, version=number + 1, counters={f"c{number}": 1}))
        tell(store, rollup(ROSE, kind, hour_s=3600 * number, counters={f"c{number}": 1, "predictions": 1}))
    day = next(each for each in series(store, span="day") if each.version == 1)
    assert len(day.counters) == 3
    assert day.counters["predictions"] == 5
    assert len(day.histograms) == sums.MAX_KINDS
    assert day.left_out == 4  # c2, c3, c4 and the last kind; c0 was told twice.


def test_a_device_that_counts_too_far_stops_at_the_most(store: Store) -> None:
    for device in (ROSE, LILY):
        huge = Histogram("h", (1.0,), (MAX_COUNT, 0), 1.7e308)
        tell(store, rollup(device, huge, counters={"predictions": MAX_COUNT}))
    (line,) = series(store)
    assert line.counters == {"predictions": MAX_COUNT}
    assert line.histograms == (Histogram("h", (1.0,), (MAX_COUNT, 0), 0.0),)


def test_a_randomized_histogram_stays_apart_from_one_that_is_not(store: Store) -> None:
    for epsilon in (None, 1.0):
        tell(store, rollup(ROSE if epsilon else LILY, Histogram("h", (1.0,), (1, 2), 0.0, epsilon)))
    (line,) = series(store)
    assert {each.epsilon for each in line.histograms} == {None, 1.0}
