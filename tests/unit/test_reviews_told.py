"""What people did with predictions that waited for them, as the service counts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor_world import DAY_S, HOUR_S, Reporters
from service_fleet import ManualClock
from umbel_server.monitor.reviews import Reviews, reviews
from umbel_server.store.store import open_store

NOW_S = 1_800_000_000.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Reporters]:
    clock = ManualClock(NOW_S)
    with open_store(tmp_path / "store.db", clock=clock) as store:
        yield Reporters(store, clock, 12)


def found(fleet: Reporters) -> tuple[Reviews, ...]:
    return reviews(fleet.store, since_s=NOW_S - DAY_S, until_s=NOW_S)


def test_what_was_decided_and_how_much_stood_is_told_by_version(fleet: Reporters) -> None:
    for name in fleet.names[:10]:
        counters = {"review.asked": 8, "review.resolved": 5, "review.changed": 1, "predictions": 100}
        fleet.tell(name, counters=counters)
    fleet.tell(fleet.names[11], counters={"predictions": 100})
    fleet.arrive()
    (told,) = found(fleet)
    assert (told.model, told.version) == ("digits", 1)
    assert (told.asked, told.resolved, told.changed) == (80, 50, 10)
    assert told.agreement is not None
    assert told.agreement.value == pytest.approx(0.8)
    assert told.agreement.low < 0.8 < told.agreement.high
    assert told.agreement.counted == 50
    assert (told.alike, told.overridden, told.dropped) == (None, 0, 0)


def test_two_people_who_say_the_same_are_counted_apart(fleet: Reporters) -> None:
    fleet.tell(fleet.names[0], counters={"feedback.compared": 4, "feedback.alike": 3})
    fleet.arrive()
    (told,) = found(fleet)
    assert told.agreement is None
    assert told.alike is not None
    assert told.alike.value == pytest.approx(0.75)


def test_more_changes_than_decisions_are_no_rate(fleet: Reporters) -> None:
    for name in fleet.names[:9]:
        fleet.tell(name, counters={"review.resolved": 10, "review.changed": 2})
    fleet.tell(fleet.names[9], counters={"review.resolved": 1, "review.changed": 10**6})
    fleet.arrive()
    (told,) = found(fleet)
    assert (told.resolved, told.agreement) == (91, None)


def test_versions_are_told_apart_and_a_month_is_summed_by_days(fleet: Reporters) -> None:
    fleet.tell(fleet.names[0], counters={"review.resolved": 4, "review.changed": 1}, ago_s=20 * DAY_S)
    fleet.tell(fleet.names[0], counters={"review.resolved": 2}, version=2)
    fleet.arrive()
    told = reviews(fleet.store, since_s=NOW_S - 30 * DAY_S, until_s=NOW_S)
    assert [(each.version, each.resolved) for each in told] == [(1, 4), (2, 2)]


def test_nothing_is_told_where_nobody_reviewed_or_not_lately(fleet: Reporters) -> None:
    fleet.tell(fleet.names[0], counters={"predictions": 3})
    fleet.tell(fleet.names[1], counters={"review.resolved": 3}, ago_s=3 * DAY_S + HOUR_S)
    fleet.arrive()
    assert found(fleet) == ()
