"""What devices told of a model, read all at once where it is little and device by device where it is much: the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from monitor_world import DAY_S, Reporters
from rollout_world import DIGITS
from service_fleet import ManualClock, PlainDevice
from umbel_proto.histogram import Histogram
from umbel_server.access.actor import local_actor
from umbel_server.store import reports
from umbel_server.store.reports import Reports
from umbel_server.store.store import open_store

NOW_S = 1_800_000_000.0
EDGES = (1.0, 2.0, 4.0)


@pytest.fixture
def world(place: Path | URL) -> Iterator[Reporters]:
    clock = ManualClock(NOW_S)
    with open_store(place, clock=clock) as store:
        found = Reporters(store, clock, count=30)
        for number, name in enumerate(found.names):
            for day in range(number % 4):
                sizes = Histogram.empty("size", EDGES).observe([float(number), float(day)])
                told = {"predictions": number + day}
                found.tell(name, sizes, ago_s=day * DAY_S + 7200, counters=told)
        found.tell(found.names[5], counters={"started": 1}, model="")
        found.arrive()
        found.tag("ward-1", found.names[:9])
        yield found


def week(world: Reporters, model: str = DIGITS, version: int = 1) -> tuple[Reports, dict[int, Reports]]:
    span = {"since_s": NOW_S - 7 * DAY_S, "until_s": NOW_S}
    return world.store.reports.of(model, version, **span), world.store.reports.by_day(model, version, **span)


def test_what_is_read_at_once_is_what_is_read_device_by_device(
    world: Reporters, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = week(world), week(world, "", 0), week(world, DIGITS, 2)
    monkeypatch.setattr(reports, "_FEW", 1)
    for chunk in (1, 7, 100):
        monkeypatch.setattr(reports, "_CHUNK", chunk)
        assert (week(world), week(world, "", 0), week(world, DIGITS, 2)) == at_once
    (whole, by_day), (own, _), (other, no_days) = at_once
    told = {name: number for number, name in enumerate(world.names) if number % 4}
    assert {each.device: each.counters["predictions"] for each in whole.devices} == {
        name: sum(number + day for day in range(number % 4)) for name, number in told.items()
    }
    assert {each.device: sum(each.histograms["size"].counts) for each in whole.devices} == {
        name: 2 * (number % 4) for name, number in told.items()
    }
    assert {each.device for each in whole.devices if each.tags} == set(told) & set(world.names[:9])
    assert [len(day.devices) for _, day in sorted(by_day.items())] == [7, 14, 22]
    assert [each.device for each in own.devices] == [world.names[5]]
    assert (other.devices, other.asked, other.trusted, no_days) == ((), 30, 30, {})


def test_whose_standing_changed_since_the_last_look_counts_as_it_is_now(world: Reporters) -> None:
    def counted() -> tuple[int, int]:
        found, _ = week(world)
        return len(found.devices), found.trusted

    assert counted() == (22, 30)
    world.store.devices.quarantine(world.names[1], reason="odd", actor=local_actor())
    assert counted() == (21, 29)
    world.store.devices.revoke(world.names[2], actor=local_actor())
    assert counted() == (20, 28)
    world.store.devices.release(world.names[1], actor=local_actor())
    assert counted() == (21, 29)
    application = PlainDevice().application(world.store.tokens.issue(valid_s=60), name="late")
    world.store.devices.enroll(application, certificate_life_s=60)
    assert counted() == (21, 30)


def test_devices_are_asked_until_so_many_rows_are_read(
    world: Reporters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_CHUNK", 4)
    span = {"since_s": NOW_S - 7 * DAY_S, "until_s": NOW_S}
    some = world.store.reports.of(DIGITS, 1, **span, rows=6)
    again = world.store.reports.of(DIGITS, 1, **span, rows=6)
    assert some == again
    assert 0 < len(some.devices) <= some.asked < some.trusted == 30
