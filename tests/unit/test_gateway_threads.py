"""The gateway's threads run each call once, in order, and tell of its end whoever comes first."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator

import pytest

from umbel_server.gateway.threads import Threads

WAIT_S = 20.0


@pytest.fixture
def one() -> Iterator[Threads]:
    threads = Threads(1, "test")
    threads.start()
    yield threads
    threads.shutdown()


def test_what_was_given_runs_in_its_order(one: Threads) -> None:
    ran: list[int] = []
    for number in range(100):
        one.submit(ran.append, number)
    one.shutdown()
    assert ran == list(range(100))


def test_the_end_of_a_call_is_told_whether_it_comes_before_or_after_the_question(one: Threads) -> None:
    hold, told = threading.Event(), threading.Semaphore(0)
    after = one.submit(hold.wait, WAIT_S)
    after.add_done_callback(lambda _: told.release())
    assert not told.acquire(blocking=False), "told of the end of a call that has not ended"
    hold.set()
    assert told.acquire(timeout=WAIT_S)
    before = one.submit(int)
    one.shutdown()
    before.add_done_callback(lambda _: told.release())
    assert told.acquire(blocking=False)


def test_each_of_many_ends_is_told_once_whoever_is_first() -> None:
    threads, told = Threads(4, "test"), [0] * 20_000
    threads.start()

    def tell(number: int, _: object) -> None:
        told[number] += 1

    for number in range(len(told)):
        threads.submit(int).add_done_callback(functools.partial(tell, number))
    threads.shutdown()
    assert told == [1] * len(told)


def test_a_call_that_raises_costs_no_thread(one: Threads) -> None:
    def fail() -> None:
        raise RuntimeError("a call's own")

    told, ran = threading.Event(), threading.Event()
    one.submit(fail).add_done_callback(lambda _: told.set())
    one.submit(ran.set)
    assert told.wait(WAIT_S)
    assert ran.wait(WAIT_S)


def test_threads_end_when_they_are_shut_down() -> None:
    before = threading.active_count()
    threads = Threads(8, "test")
    threads.start()
    assert threading.active_count() == before + 8
    threads.shutdown()
    assert threading.active_count() == before
