"""A list of devices, page by page: what is asked for and no other, each once, and counted as a look at each would."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from sqlalchemy import URL, insert, update

from service_fleet import DAY_S, ManualClock, PlainDevice
from umbel_server.access.actor import local_actor
from umbel_server.monitor.report import status_of
from umbel_server.store import census
from umbel_server.store.devices import Device
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import devices
from umbel_server.store.tables_rollouts import device_models, device_tags
from umbel_server.store.wanted import ANY, Sort, Status, Wanted

KEYS = {
    "name": lambda each: each.id,
    "seen": lambda each: (each.last_seen_s, each.id),
    "enrolled": lambda each: (each.enrolled_s, each.id),
    "certificate": lambda each: (each.certificate_not_after_s, each.id),
}
SOUGHT = [
    ANY,
    *(Wanted(status=each) for each in get_args(Status)),
    Wanted(tag="ward-1"),
    Wanted(model="digits"),
    Wanted(model="digits", version=2),
    Wanted(status="online", tag="ward-0", model="digits", version=1),
    Wanted(status="stale", tag="ward-1"),
    Wanted(begins="device-1"),
    Wanted(begins="device-1", tag="ward-2", model="faults"),
    Wanted(tag="nowhere"),
]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    chance = random.Random(3)
    with open_store(place, clock=clock) as opened:
        for number in range(40):
            token = opened.tokens.issue(valid_s=60)
            application = PlainDevice().application(token, name=f"device-{number:02}")
            name = opened.devices.enroll(application, certificate_life_s=60).id
            seen_s = clock.now_s - chance.choice([0.0, 119.0, 500.0, 500.0, 40 * DAY_S])
            with opened.database.write() as connection:
                values: dict[str, object] = {
                    "last_seen_s": seen_s,
                    "enrolled_s": seen_s - chance.choice([0, 9]),
                }
                values |= chance.choice([{}, {}, {}, {"status": "revoked"}, {"quarantined_s": 1.0}])
                connection.execute(update(devices).where(devices.c.id == name).values(values))
                for tag in chance.sample(["ward-0", "ward-1", "ward-2"], chance.randrange(3)):
                    connection.execute(insert(device_tags).values(device_id=name, tag=tag))
                slot = {"device_id": name, "version": chance.choice([1, 2]), "since_s": 0.0}
                model = chance.choice(["digits", "faults"])
                connection.execute(insert(device_models).values(model=model, **slot))
        yield opened


def sought(store: Store, wanted: Wanted, now_s: float) -> list[Device]:
    """Return the devices that are wanted, by a look at each."""
    found = []
    for device in store.devices.all():
        situation = store.placements.situation(device.id)
        tags = store.placements.tags().get(device.id, frozenset())
        if (
            wanted.status in (None, status_of(device, now_s))
            and (wanted.tag is None or wanted.tag in tags)
            and (wanted.model is None or wanted.model in situation.has)
            and (wanted.version is None or situation.has[wanted.model or ""] == wanted.version)
            and device.id.startswith(wanted.begins or "")
        ):
            found.append(device)
    return found


def test_pages_are_the_sorted_list_of_what_is_asked_for(store: Store, clock: ManualClock) -> None:
    values = {
        "seen": lambda each: each.last_seen_s,
        "enrolled": lambda each: each.enrolled_s,
        "certificate": lambda each: each.certificate_not_after_s,
    }
    sorts: tuple[Sort, ...] = ("name", "seen", "enrolled", "certificate")
    sizes = set()
    for wanted in SOUGHT:
        expected = sought(store, wanted, clock.now_s)
        sizes.add(len(expected))
        for sort, descending in product(sorts, (False, True)):
            found: list[Device] = []
            while True:
                last = found[-1] if found else None
                value = values[sort](last) if last is not None and sort != "name" else None
                page = store.device_list.page(
                    wanted, limit=7, sort=sort, descending=descending,
                    after="" if last is None else last.id, after_value=value,
                )  # fmt: skip
                found += page
                if len(page) < 7:
                    break
            assert found == sorted(expected, key=KEYS[sort], reverse=descending), (wanted, sort)
    assert len(sizes) > 4


def test_facets_count_what_a_look_at_each_device_would(store: Store, clock: ManualClock) -> None:
    tags = store.placements.tags()
    for wanted in SOUGHT:
        expected = sought(store, wanted, clock.now_s)
        found = store.device_list.facets(wanted)
        assert found.devices == len(expected)
        assert dict(found.statuses) == Counter(status_of(each, clock.now_s) for each in expected)
        assert dict(found.tags) == Counter(tag for each in expected for tag in tags.get(each.id, ()))
        has = [(*item, 0) for each in expected for item in store.placements.situation(each.id).has.items()]
        counted = Counter((model, version) for model, version, _ in has)
        assert {(model, version): count for model, version, count in found.versions} == counted
        for counts in (found.statuses, found.tags, found.versions):
            assert list(counts) == sorted(counts)


def test_one_look_at_all_devices_counts_what_each_filter_finds(store: Store, clock: ManualClock) -> None:
    store.groups.save("wet", Wanted(status="online", model="digits"), actor=local_actor())
    filters = [each for each in SOUGHT if not each.begins]
    filters += [
        Wanted(group="wet"),
        Wanted(group="wet", tag="ward-1"),
        Wanted(group="ward-0"),
        Wanted(version=1),
    ]
    looked = store.device_list.census()
    assert looked is not None
    for wanted in filters:
        assert looked.facets(store.device_list.filters(wanted)) == store.device_list.facets(wanted)
    clock.now_s += 300
    later = store.device_list.census()
    assert later is not None
    assert later.facets([ANY]) == store.device_list.facets() != looked.facets([ANY])


def test_devices_with_several_models_are_counted_in_each(store: Store) -> None:
    with store.database.write() as connection:
        for number in range(0, 40, 3):
            slot = {"device_id": f"device-{number:02}", "version": 7, "since_s": 0.0}
            connection.execute(insert(device_models).values(model="third", **slot))
    looked = store.device_list.census()
    assert looked is not None
    for wanted in (ANY, Wanted(model="third"), Wanted(model="digits"), Wanted(model="digits", version=7)):
        assert looked.facets([wanted]) == store.device_list.facets(wanted)


def test_devices_that_differ_too_much_are_not_told_apart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = store.device_list.census()
    assert kinds is not None
    monkeypatch.setattr(census, "MOST", len(kinds.alike))
    assert store.device_list.census() == kinds
    monkeypatch.setattr(census, "MOST", len(kinds.alike) - 1)
    assert store.device_list.census() is None
