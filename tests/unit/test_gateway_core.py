"""A gateway's process keeps to one core of those that it was given, and its threads let each other finish."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from umbel_server.gateway.core import finish_first, keep_to_one_core


@pytest.fixture
def choice() -> None:
    """Where a process has no choice among cores, it keeps to none. CI has two, and must run what is about that."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        assert "CI" not in os.environ, "CI needs two cores"
        pytest.skip("the system gives this process no choice among cores")


@pytest.fixture
def batches() -> None:
    """Only Linux lets threads finish first. CI runs on it, and must run this."""
    if not hasattr(os, "SCHED_BATCH"):
        assert "CI" not in os.environ, "CI needs Linux"
        pytest.skip("this system lets no thread finish first")


def chosen(number: int) -> tuple[int | None, set[int], set[int]]:
    """What a thread is told, where it and what it starts may run then; the thread ends with its choice."""

    def choose() -> tuple[int | None, set[int], set[int]]:
        core = keep_to_one_core(number)
        inherited: list[set[int]] = []
        child = threading.Thread(target=lambda: inherited.append(os.sched_getaffinity(0)))
        child.start()
        child.join()
        return core, os.sched_getaffinity(0), inherited[0]

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(choose).result()


@pytest.mark.usefixtures("choice")
def test_a_process_and_the_threads_it_starts_run_on_one_core() -> None:
    core, own, inherited = chosen(0)
    assert core in os.sched_getaffinity(0)
    assert own == inherited == {core}


@pytest.mark.usefixtures("choice")
def test_consecutive_processes_have_different_cores_and_all_cores_have_their_turn() -> None:
    cores = os.sched_getaffinity(0)
    assert {chosen(7 + number)[0] for number in range(len(cores))} == cores


@pytest.mark.usefixtures("choice")
def test_who_was_given_one_core_keeps_it() -> None:
    def choose() -> tuple[int | None, set[int]]:
        (core, *_) = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        return keep_to_one_core(1), os.sched_getaffinity(0) - {core}

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(choose).result() == (None, set())


@pytest.mark.usefixtures("batches")
def test_threads_let_each_other_finish_and_so_do_those_that_they_start() -> None:
    def choose() -> tuple[bool, int, list[int]]:
        said, inherited = finish_first(), list[int]()
        child = threading.Thread(target=lambda: inherited.append(os.sched_getscheduler(0)))
        child.start()
        child.join()
        return said, os.sched_getscheduler(0), inherited

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(choose).result() == (True, os.SCHED_BATCH, [os.SCHED_BATCH])
