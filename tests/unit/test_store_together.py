"""Many callers, one commit: nobody is told before the commit, and nobody pays for another's mistake."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType

import pytest

from umbel_proto.errors import UnavailableError, UsageError
from umbel_server.store.together import COMPANY_S, MANY, Together


class Disk:
    """Commits, and keeps what; the first commit waits until told, so that others gather behind it."""

    def __init__(self, fail: Callable[[Sequence[int]], None] = lambda items: None) -> None:
        self.commits: list[tuple[int, ...]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self._fail = fail

    def __call__(self, items: Sequence[int]) -> None:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go.wait(10)
        self._fail(items)
        self.commits.append(tuple(items))

    @property
    def kept(self) -> list[int]:
        return sorted(item for commit in self.commits for item in commit)


def gather(
    disk: Disk, *, items: int, most: int = 100, together: Together[int] | None = None
) -> list[Future[None]]:
    """Add one item, and the others while it is being committed."""
    together = together or Together(disk, most=most)
    with ThreadPoolExecutor(items) as pool:
        first = pool.submit(together.add, 0)
        assert disk.begun.wait(10)
        rest = [pool.submit(together.add, item) for item in range(1, items)]
        while len(together._waiting) < items - 1:
            threading.Event().wait(0.001)
        assert not any(each.done() for each in (first, *rest))
        disk.go.set()
        return [first, *rest]


def test_what_arrives_during_a_commit_is_in_the_next_one_together() -> None:
    disk = Disk()
    for done in gather(disk, items=20):
        done.result()
    assert [len(commit) for commit in disk.commits] == [1, 19]
    assert disk.kept == list(range(20))


def test_a_commit_takes_no_more_than_it_may() -> None:
    disk = Disk()
    for done in gather(disk, items=20, most=8):
        done.result()
    assert [len(commit) for commit in disk.commits] == [1, 8, 8, 3]
    assert disk.kept == list(range(20))


def test_the_next_commit_begins_when_all_of_the_one_before_were_told() -> None:
    disk, second, held, go_on = Disk(), threading.Event(), threading.Event(), threading.Event()
    together = Together(lambda items: second.set() if items == [9] else disk(items), most=2)

    def hold(_frame: FrameType, event: str, function: object) -> None:
        """Hold a thread where it has been woken, before it goes on."""
        if event == "c_return" and getattr(function, "__name__", "") == "acquire" and disk.commits[1:]:
            held.set()
            assert go_on.wait(10)

    def add_held(item: int) -> None:
        sys.setprofile(hold)
        try:
            together.add(item)
        finally:
            sys.setprofile(None)

    def waiting(count: int) -> None:
        while len(together._waiting) < count:
            threading.Event().wait(0.001)

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(together.add, 0)]
        assert disk.begun.wait(10)
        for add, item in ((together.add, 1), (add_held, 2), (together.add, 9)):
            done.append(pool.submit(add, item))
            waiting(item if item < 9 else 3)
        disk.go.set()
        assert held.wait(10)
        begun_early = second.wait(0.2)
        go_on.set()
        for each in done:
            each.result(10)
    assert disk.commits == [(0,), (1, 2)]
    assert second.is_set()
    assert not begun_early


def test_who_comes_while_a_commit_waits_for_company_shares_it() -> None:
    disk, pauses = Disk(), list[float]()

    def pause(seconds: float) -> None:
        """While it lasts two more come."""
        pauses.append(seconds)
        pool.submit(together.add, 101)
        pool.submit(together.add, 102)
        while len(together._waiting) < 3:
            threading.Event().wait(0.001)

    together = Together(disk, most=100, pause=pause)
    with ThreadPoolExecutor(2) as pool:
        for done in gather(disk, items=MANY + 1, together=together):
            done.result()
        assert pauses == []
        together.add(100)
    assert pauses == [COMPANY_S]
    assert [len(commit) for commit in disk.commits] == [1, MANY, 3]


def test_a_commit_that_few_shared_makes_the_next_wait_for_nobody() -> None:
    disk, pauses = Disk(), list[float]()
    together = Together(disk, most=100, pause=pauses.append)
    for done in gather(disk, items=MANY, together=together):
        done.result()
    for item in range(100, 105):
        together.add(item)
    assert pauses == []


def test_one_interrupted_while_it_waits_for_company_keeps_no_other_back() -> None:
    disk = Disk()

    def pause(_seconds: float) -> None:
        behind.append(pool.submit(together.add, 101))
        while len(together._waiting) < 2:
            threading.Event().wait(0.001)
        raise KeyboardInterrupt

    together, behind = Together(disk, most=100, pause=pause), list[Future[None]]()
    with ThreadPoolExecutor(1) as pool:
        for done in gather(disk, items=MANY + 1, together=together):
            done.result()
        with pytest.raises(KeyboardInterrupt):
            together.add(100)
        together._pause = lambda _: None
        behind[0].result(10)
    assert disk.commits[-1] == (101,)
    assert 100 not in disk.kept


def test_one_that_is_wrong_is_told_so_and_spoils_no_others() -> None:
    def refuse(items: Sequence[int]) -> None:
        if 7 in items:
            raise UsageError("Seven is wrong.")

    disk = Disk(refuse)
    outcomes = [done.exception() for done in gather(disk, items=20)]
    assert [str(each) for each in outcomes if each] == ["Seven is wrong."]
    assert str(outcomes[7]) == "Seven is wrong."
    assert disk.kept == [item for item in range(20) if item != 7]


def test_what_ails_the_store_is_told_to_all_who_waited() -> None:
    def fail(items: Sequence[int]) -> None:
        if len(items) > 1:
            raise UnavailableError("The store does not answer.")

    disk = Disk(fail)
    outcomes = [done.exception() for done in gather(disk, items=5)]
    assert outcomes[0] is None
    assert [str(each) for each in outcomes[1:]] == ["The store does not answer."] * 4
    assert len({id(each) for each in outcomes}) == 5  # Each thread raises one of its own.
    assert disk.commits == [(0,)]


def test_an_interrupted_commit_is_made_up_for_by_the_next_in_line() -> None:
    interrupted = threading.Event()

    def interrupt(items: Sequence[int]) -> None:
        if len(items) > 1 and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    disk = Disk(interrupt)
    outcomes = [type(done.exception()) for done in gather(disk, items=6)]
    assert outcomes.count(KeyboardInterrupt) == 1
    given_up = outcomes.index(KeyboardInterrupt)
    assert disk.kept == [item for item in range(6) if item != given_up]


def test_an_error_leaves_it_ready_for_the_next() -> None:
    disk = Disk(lambda items: pytest.fail("no") if items == [1] else None)
    disk.go.set()
    together = Together(disk, most=9)
    with pytest.raises(pytest.fail.Exception):
        together.add(1)
    together.add(2)
    assert disk.kept == [2]
