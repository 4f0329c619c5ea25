"""Figures that take a while: made once for all who look, shown old rather than not at all, never for ever."""

from __future__ import annotations

import threading
import time

import pytest

from service_fleet import ManualClock
from umbel_server.console.seen.kept import LONGEST, SHARE, Kept


def test_what_is_fresh_is_not_made_again_and_what_is_old_is() -> None:
    clock, made = ManualClock(), iter(range(10))
    kept: Kept[int] = Kept(clock, fresh_s=5, oldest_s=5, wait_s=30)
    assert [kept.get("a", lambda: next(made)) for _ in "xy"] == [0, 0]
    assert kept.get("b", lambda: next(made)) == 1
    clock.advance(5)
    assert kept.get("a", lambda: next(made)) == 2


def test_who_cannot_wait_gets_nothing_at_first_and_nobody_waits_for_what_is_not_too_old() -> None:
    clock, go = ManualClock(), threading.Event()
    kept: Kept[str] = Kept(clock, fresh_s=5, oldest_s=60, wait_s=0)
    calls: list[float] = []

    def slow() -> str:
        calls.append(clock())
        assert go.wait(30)
        return f"made {len(calls)} times"

    assert kept.get("a", slow) is None
    assert kept.get("a", slow) is None
    go.set()
    while (first := kept.get("a", slow)) is None:
        pass
    assert len(calls) == 1, "two who look cost one look"
    go.clear()
    clock.advance(59)
    # However long one may wait: it is there, and made anew beside for who comes next.
    assert kept.get("a", slow, wait_s=30) == first
    clock.advance(1)
    assert kept.get("a", slow) is None, "it is too old to be shown"
    go.set()
    assert kept.get("a", slow, wait_s=30) != first
    assert len(calls) == 2


def test_what_takes_long_is_fresh_for_longer_and_not_for_ever() -> None:
    clock, made = ManualClock(), iter(range(10))
    kept: Kept[int] = Kept(clock, fresh_s=0.2, oldest_s=0.2, wait_s=30)

    def slow() -> int:
        time.sleep(0.05)
        return next(made)

    assert kept.get("a", slow) == 0
    clock.advance(0.05 * SHARE - 0.01)
    assert kept.get("a", slow) == 0
    clock.advance(0.2 * LONGEST)
    assert kept.get("a", slow) == 1


def test_what_fails_is_told_and_tried_again() -> None:
    kept: Kept[int] = Kept(ManualClock(), fresh_s=5, oldest_s=5, wait_s=30)

    def broken() -> int:
        raise ValueError("no disk")

    with pytest.raises(ValueError, match="no disk"):
        kept.get("a", broken)
    assert kept.get("a", lambda: 1) == 1


def test_no_more_is_kept_than_was_asked_for() -> None:
    made = []
    kept: Kept[int] = Kept(ManualClock(), fresh_s=5, oldest_s=5, wait_s=30, most=2)

    def make(key: int) -> int:
        made.append(key)
        return key

    for key in (1, 2, 1, 3, 1, 2):
        kept.get(key, lambda key=key: make(key))  # type: ignore[misc]
    assert made == [1, 2, 3, 2]
