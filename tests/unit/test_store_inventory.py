"""What an overview counts is what a look at each device would."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, insert, update

from service_fleet import DAY_S, ManualClock, PlainDevice
from umbel_proto.ids import DeviceId
from umbel_server.monitor import report
from umbel_server.store.batches import Arrival
from umbel_server.store.inventory import Reached
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import devices
from umbel_server.store.tables_rollouts import device_models, device_tags


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        yield opened


def enroll(store: Store, name: str) -> DeviceId:
    application = PlainDevice().application(store.tokens.issue(valid_s=60), name=name)
    return store.devices.enroll(application, certificate_life_s=60).id


def test_devices_are_counted_by_when_they_were_heard_of(store: Store, clock: ManualClock) -> None:
    rng = random.Random(1)
    edges = [0.0, 1.0, report.ONLINE_S - 1, report.ONLINE_S, DAY_S - 1.0, DAY_S, 30.0 * DAY_S]
    for number in range(70):
        name = enroll(store, f"dev-{number}")
        seen_s = clock.now_s - edges[number % len(edges)]
        with store.database.write() as connection:
            values: dict[str, object] = {"last_seen_s": seen_s, "enrolled_s": seen_s - rng.choice([0, 1])}
            values.update(rng.choice([{}, {}, {}, {"status": "revoked"}, {"quarantined_s": clock.now_s}]))
            connection.execute(update(devices).where(devices.c.id == name).values(**values))
    kinds = Counter(line.status for line in report.devices(store, store.devices.all(), now_s=clock.now_s))
    reached = store.inventory.reached(online_s=report.ONLINE_S, stale_s=report.STALE_S)
    for field in dataclasses.fields(Reached):
        assert getattr(reached, field.name) == kinds[field.name.replace("_", " ")] > 0, field.name  # type: ignore[index]
    assert sum(dataclasses.astuple(reached)) == 70


def test_models_and_tags_are_counted_by_devices(store: Store) -> None:
    for number, (tag, version) in enumerate([("ward-1", 1), ("ward-1", 2), ("ward-2", 2)]):
        name = enroll(store, f"dev-{number}")
        with store.database.write() as connection:
            connection.execute(insert(device_tags).values(device_id=name, tag=tag))
            slot = {"device_id": name, "model": "digits", "version": version, "since_s": 0.0}
            connection.execute(insert(device_models).values(slot))
    assert store.inventory.tags() == (("ward-1", 2), ("ward-2", 1))
    assert store.inventory.versions() == (("digits", 1, 1), ("digits", 2, 2))


def test_what_waits_for_the_opener_is_counted_with_its_age(store: Store, clock: ManualClock) -> None:
    assert store.inventory.waiting() == (0, None)
    name, came_s = enroll(store, "rose"), clock.now_s
    for number in range(3):
        store.batches.append(name, [Arrival(bytes([number] * 16), "key", b"header", b"sealed")])
        clock.advance(10)
    assert store.inventory.waiting() == (3, came_s)
