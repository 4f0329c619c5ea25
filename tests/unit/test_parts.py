"""Law: a part is made once, when it is first needed, whichever threads ask for it, and may need another of its object."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from umbel._parts import Part

THREADS = 8


class Plant:
    def __init__(self) -> None:
        self._making = threading.RLock()
        self.made: list[str] = []

    @Part
    def stalk(self) -> object:
        self.made.append("stalk")
        threading.Event().wait(0.01)  # Time for another thread to come.
        return object()

    @Part
    def flower(self) -> tuple[object]:
        """What it bears."""
        self.made.append("flower")
        return (self.stalk,)


def test_of_threads_that_ask_at_once_all_get_the_same() -> None:
    plant, ready = Plant(), threading.Barrier(THREADS)

    def ask(_: int) -> object:
        ready.wait()
        return plant.stalk

    with ThreadPoolExecutor(THREADS) as threads:
        got = list(threads.map(ask, range(THREADS)))
    assert all(each is plant.stalk for each in got)
    assert plant.made == ["stalk"]


def test_a_part_may_need_another_and_is_not_there_before() -> None:
    plant = Plant()
    assert "flower" not in vars(plant)
    assert plant.flower == (plant.stalk,)
    assert plant.made == ["flower", "stalk"]
    assert set(vars(plant)) >= {"flower", "stalk"}


def test_each_object_has_its_own() -> None:
    assert Plant().stalk is not Plant().stalk
