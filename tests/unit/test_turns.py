"""Laws: threads that meet without rest take turns, those that meet seldom do not; and nothing but time depends on it."""

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest

from model_packages import RELEASE, digits
from umbel._predict import turns as taking_turns
from umbel._predict.model import Model
from umbel._predict.turns import PATIENCE, PAUSE_S, TURN_S, Turns, is_brief
from umbel.engines import EngineOptions, Seat, load_engine, onnx, tflite
from umbel_models.pack import build
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.package import read_unsigned


def seat(run: Callable[[], object] = lambda: None, brief_s: float = 1.0) -> Seat:
    """Return a seat whose runs are brief, unless told otherwise."""
    return Seat(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32), run, brief_s=brief_s)


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(taking_turns, "perf_counter", lambda: self.now_s)


class Two:
    """Two threads' askers of one version, asked from one thread: the second within a question of the first, or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rests: list[float] = []
        self.clock = Clock(monkeypatch)
        monkeypatch.setattr(taking_turns, "sleep", self.rests.append)
        turns = Turns()
        self._meets = False
        self._first = turns.taking(lambda x: self._second(x) if self._meets else x)
        self._second = turns.taking(lambda x: x)

    def meet(self, times: int) -> None:
        self._meets = True
        for _ in range(times):
            assert self._first("x") == "x"

    def pass_by(self) -> None:
        self._meets = False
        assert self._first("x") == self._second("x") == "x"


def test_one_that_meets_another_again_and_again_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Two(monkeypatch)
    two.meet(PATIENCE)
    assert two.rests == []
    two.meet(2)
    assert two.rests == [TURN_S, TURN_S]


def test_one_that_once_met_nobody_has_all_its_patience_again(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Two(monkeypatch)
    for _ in range(3):
        two.meet(PATIENCE)
        two.pass_by()
    assert two.rests == []


def test_one_whose_turn_it_is_goes_on_whoever_is_met_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, rests = Turns(), list[float]()
    monkeypatch.setattr(taking_turns, "sleep", rests.append)
    second = turns.taking(lambda x: x)
    first = turns.taking(lambda x: [second(x) for _ in range(3 * PATIENCE)])
    first("x")
    assert rests == []


def test_one_that_does_something_else_between_its_questions_never_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Another asks without rest, so that this one meets it each time.
    two = Two(monkeypatch)
    for _ in range(5 * PATIENCE):
        two.meet(1)
        two.clock.now_s += 1.01 * PAUSE_S
    assert two.rests == []
    two.meet(1)
    for _ in range(PATIENCE):
        two.clock.now_s += 0.5 * PAUSE_S
        two.meet(1)
    assert two.rests == [TURN_S]


def test_a_thread_alone_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(taking_turns, "sleep", rests.append)
    ask = Turns().taking(lambda x: x)
    assert [ask(number) for number in range(100)] == list(range(100))
    assert rests == []


def test_one_rests_until_each_that_rests_already_had_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    turns, rests = Turns(), list[float]()
    others = [turns.taking(lambda x: x) for _ in range(4)]
    within = turns.taking(lambda x: [other(x) for other in others])
    monkeypatch.setattr(taking_turns, "sleep", lambda _: None)
    for _ in range(PATIENCE):
        within("x")
    resting = iter(others[1:])

    def sleep(seconds: float) -> None:
        rests.append(seconds)
        for other in itertools.islice(resting, 1):  # The next one asks while this one rests.
            other("x")

    monkeypatch.setattr(taking_turns, "sleep", sleep)
    turns.taking(others[0])("x")
    assert rests == pytest.approx([TURN_S, 2 * TURN_S, 3 * TURN_S, 4 * TURN_S])


def test_runs_are_brief_or_not_by_the_time_of_their_thread() -> None:
    assert is_brief(seat(brief_s=1.0))
    ran: list[object] = []
    assert not is_brief(seat(run=lambda: ran.append(None), brief_s=0.0))
    assert not ran
    assert not is_brief(seat(run=lambda: sum(range(100_000)), brief_s=1e-5))
    # One that waits, as for Python's lock, takes no longer for it.
    assert is_brief(seat(run=lambda: time.sleep(0.002), brief_s=0.001))


def test_a_runtime_that_fails_is_heard_by_who_asks() -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    assert not is_brief(seat(run=fail))


@pytest.mark.parametrize(("variant", "module"), [("fp32", onnx), ("tflite", tflite)])
def test_a_model_whose_runs_are_brief_has_turns_unless_its_engine_has_threads_of_its_own(
    variant: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = digits().held_out.x[0]
    package = read_unsigned(build(DIGITS, key=RELEASE, version=1, lineage={}, lite=True))

    def turns(threads: int) -> Turns | None:
        options = EngineOptions(threads=threads)
        model = Model(package, load_engine(package, variant, options=options))
        together = threading.Barrier(8)

        def ask() -> object:
            together.wait()
            return model.predict(x)

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(ask) for _ in range(8)]:
                done.result()
            asks = [place.ask.__name__ for place in model._loaded.taken]
        assert asks == ["ask" if model._loaded.turns is None else "in_turn"] * 8
        return model._loaded.turns

    monkeypatch.setattr(module, "BRIEF_S", 1.0)
    assert turns(1) is not None
    assert turns(2) is None
    monkeypatch.setattr(module, "BRIEF_S", 0.0)
    assert turns(1) is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_question_that_ends_badly_is_not_met_afterwards(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, rests = Turns(), []
    monkeypatch.setattr(taking_turns, "sleep", rests.append)

    def fail(x: object) -> None:
        raise error

    first, second = turns.taking(fail), turns.taking(lambda x: x)
    for _ in range(3 * PATIENCE):
        with pytest.raises(error):
            first("x")
        second("x")
    assert rests == []


def test_threads_that_never_rest_are_all_served() -> None:
    turns, stop, barrier = Turns(), threading.Event(), threading.Barrier(9)
    counts = [0] * 8

    def client(place: int) -> None:
        ask = turns.taking(lambda x: os.sched_yield())  # Lets go of Python's lock, as a run does.
        barrier.wait()
        while not stop.is_set():
            ask("x")
            counts[place] += 1

    threads = [threading.Thread(target=client, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    barrier.wait()
    stop.wait(0.5)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert min(counts) > 0
