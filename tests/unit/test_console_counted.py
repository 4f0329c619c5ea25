"""What devices are, counted once for all who look: what a person changed at once, what time changed within a minute."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from service_fleet import ManualClock, PlainDevice
from umbel_server.access.actor import local_actor
from umbel_server.console.seen.counted import (
    FRESH_S,
    OLDEST_S,
    answering,
    arrived,
    classes,
    counted,
    counted_soon,
)
from umbel_server.store import census
from umbel_server.store.store import Store, open_store
from umbel_server.store.wanted import STALE_S, Wanted


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)  # A whole minute.


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    with open_store(tmp_path / "store.db", clock=clock) as opened:
        for name in ("rose", "iris", "lily"):
            application = PlainDevice().application(opened.tokens.issue(valid_s=60), name=name)
            device = opened.devices.enroll(application, certificate_life_s=60).id
            opened.devices.seen({device: clock.now_s + 1})
        yield opened


def test_what_a_person_changed_is_counted_at_once(store: Store) -> None:
    assert dict(counted(store).statuses) == {"online": 3}
    (rose, *_) = store.devices.all()
    store.placements.tag(rose.id, {"wet"}, actor=local_actor(), reason="")
    assert dict(counted(store).tags) == {"wet": 1}
    assert counted(store, Wanted(tag="wet")).devices == 1
    store.devices.quarantine(rose.id, reason="it says what cannot be")
    assert dict(counted(store).statuses) == {"online": 2, "quarantined": 1}
    store.devices.revoke(rose.id)
    assert dict(counted(store).statuses) == {"online": 2, "revoked": 1}
    assert [count for _, count in classes(store)] == [2]


def test_what_time_changed_is_counted_within_a_minute(store: Store, clock: ManualClock) -> None:
    assert dict(counted(store).statuses) == {"online": 3}
    for later_s, status in ((3 * OLDEST_S, "stale"), (STALE_S, "offline")):
        clock.now_s += later_s
        assert dict(counted(store).statuses) == {status: 3}


def test_who_looks_at_the_same_within_seconds_costs_one_look(store: Store, clock: ManualClock) -> None:
    looks: list[str] = []

    def heard(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        looks.extend([statement] if "device_tags" in statement else [])

    event.listen(store.database.engine, "before_cursor_execute", heard)
    found: list[int] = []
    people = [threading.Thread(target=lambda: found.append(counted(store).devices)) for _ in range(20)]
    for each in people:
        each.start()
    for each in people:
        each.join()
    clock.now_s += FRESH_S - 1
    assert [*found, counted(store).devices] == [3] * 21
    assert counted(store, Wanted(status="online")).devices == 3
    assert counted(store, Wanted(status="stale")).devices == 0
    assert len(looks) == 1
    assert counted(store, Wanted(begins="r")).devices == 1
    assert len(looks) == 2


def test_of_devices_that_differ_too_much_each_filter_is_counted_by_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device, tag in zip(store.devices.all(), ("dry", "wet", "wet"), strict=True):
        store.placements.tag(device.id, {tag}, actor=local_actor(), reason="")
    monkeypatch.setattr(census, "MOST", 1)
    assert counted(store, Wanted(tag="wet")) == store.device_list.facets(Wanted(tag="wet"))
    assert counted(store).devices == 3


def test_groups_are_counted_as_the_filters_that_they_stand_for(store: Store) -> None:
    store.groups.save("online-ones", Wanted(status="online"), actor=local_actor())
    store.groups.save("r-ones", Wanted(begins="r"), actor=local_actor())
    assert counted(store, Wanted(group="online-ones")).devices == 3
    assert counted(store, Wanted(group="r-ones")).devices == 1
    assert counted(store, Wanted(group="r-ones", status="stale")).devices == 0


def test_what_is_counted_of_batches_and_versions_is_what_the_store_has(store: Store) -> None:
    assert answering(store) == {}
    assert arrived(store, within_s=3600) == 0


def test_a_list_does_not_wait_for_its_numbers_longer_than_it_says(store: Store) -> None:
    wanted, counting = Wanted(status="online"), threading.Event()
    facets = store.device_list.facets(wanted)

    def slow(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if "device_tags" in statement:
            counting.wait(30.0)

    event.listen(store.database.engine, "before_cursor_execute", slow)
    assert counted_soon(store, wanted, wait_s=0) is None
    assert counted_soon(store, wanted) is None
    counting.set()
    assert counted(store, wanted) == facets
    assert counted_soon(store, wanted, wait_s=0) == facets
