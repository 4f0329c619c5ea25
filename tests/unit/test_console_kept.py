"""Figures that take a while: made once for all who look, shown old rather than not at all, never for ever."""

from __future__ import annotations

import threading

import pytest

from service_fleet import ManualClock
from umbel_server.console.seen.kept import Kept


def test_what_is_fresh_is_not_made_again_and_what_is_old_is() -> None:
    clock, made = ManualClock(), iter(range(10))
    kept: Kept[int] = Kept(clock, fresh_s=5, wait_s=30)
    assert [kept.get("a", lambda: next(made)) for _ in "xy"] == [0, 0]
    assert kept.get("b", lambda: next(made)) == 1
    clock.advance(5)
    assert kept.get("a", lambda: next(made)) == 2


def test_who_cannot_wait_gets_nothing_at_first_and_what_was_before_later() -> None:
    clock, go = ManualClock(), threading.Event()
    kept: Kept[str] = Kept(clock, fresh_s=5, wait_s=0)

    def slow() -> str:
        assert go.wait(30)
        return "made"

    calls = []

    def counted() -> str:
        calls.append(1)
        return slow()

    assert kept.get("a", counted) is None
    assert kept.get("a", counted) is None
    assert len(calls) == 1, "two who look cost one look"
    patient: Kept[str] = kept
    go.set()
    while (found := patient.get("a", counted)) is None:
        pass
    assert found == "made"
    clock.advance(60)
    go.clear()
    assert kept.get("a", counted) == "made"
    go.set()


def test_what_fails_is_told_and_tried_again() -> None:
    kept: Kept[int] = Kept(ManualClock(), fresh_s=5, wait_s=30)

    def broken() -> int:
        raise ValueError("no disk")

    with pytest.raises(ValueError, match="no disk"):
        kept.get("a", broken)
    assert kept.get("a", lambda: 1) == 1


def test_no_more_is_kept_than_was_asked_for() -> None:
    made = []
    kept: Kept[int] = Kept(ManualClock(), fresh_s=5, wait_s=30, most=2)

    def make(key: int) -> int:
        made.append(key)
        return key

    for key in (1, 2, 1, 3, 1, 2):
        kept.get(key, lambda key=key: make(key))  # type: ignore[misc]
    assert made == [1, 2, 3, 2]
