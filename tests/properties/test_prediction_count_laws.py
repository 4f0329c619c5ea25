"""Laws of what predictions leave to be counted: each once, whatever eight threads and one that closes windows do."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel._predict.answer import Prediction
from umbel._predict.place import FEW, Saying, asker
from umbel._telemetry.log import ROW_OF
from umbel._telemetry.window import CLOSELY, EACH, ONE_IN, ONE_IN_THIN, PredictionWindow
from umbel.engines import Seat
from umbel_proto.contract import Field
from umbel_proto.wire import telemetry_pb2 as pb

THREADS = 8
FIELD = Field("x", "float32", (3,), 0.0, 1000.0)


def seat(classes: int) -> Seat:
    """Return a seat at an engine that is sure of the class that the first value names."""
    example, answer = np.zeros((1, 3), np.float32), np.zeros((1, classes), np.float32)

    def run() -> None:
        answer[:] = 0.0
        answer[0, int(example[0, 0])] = 0.75

    return Seat(example, answer, run)


def sums(closed: list[pb.Window | None]) -> tuple[Counter[str], Counter[str]]:
    """Return the counters of windows, and how many values each histogram of theirs has."""
    counters: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for window in filter(None, closed):
        counters.update(dict(window.counters))
        for histogram in window.histograms:
            values[histogram.name] += sum(histogram.counts)
    return counters, values


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    classes=st.sampled_from([2, FEW, FEW + 50]),
    often=st.integers(1, 900),
    open_s=st.sampled_from([0.0, 0.01, 9.0]),
)
def test_every_answer_of_eight_threads_is_counted_once_while_windows_are_closed(
    seed: int, classes: int, often: int, open_s: float
) -> None:
    window, closed, done = (
        PredictionWindow(model="m", version=1, variant="fp32", engine="onnx", now_s=0.0),
        [],
        threading.Event(),
    )
    saying = Saying(1, [f"c{number}" for number in range(classes)], [0.5] * classes)
    labels = np.random.default_rng(seed).integers(0, classes, (THREADS, often))

    def predict(mine: list[int]) -> list[int]:
        ask, said = asker(FIELD, seat(classes), saying, window), []
        for label in mine:
            answer = ask(np.array([label, 1.0, 2.0], np.float32))
            assert isinstance(answer, Prediction)
            said.append(answer.label)
        return said

    def close() -> None:
        while not done.wait(open_s):
            closed.append(window.take(1.0))

    begin, interval = perf_counter(), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS + 1) as pool:
            closing = pool.submit(close)
            try:
                assert list(pool.map(predict, labels.tolist())) == labels.tolist()
            finally:
                done.set()
            closing.result()
    finally:
        sys.setswitchinterval(interval)
    closed.append(window.take(1.0))
    counters, values = sums(closed)
    expected = Counter(f"label.{label}" for label in labels.ravel().tolist())
    assert {name: count for name, count in counters.items() if name.startswith("label.")} == expected
    assert counters["predictions"] == labels.size
    assert min(labels.size, EACH) <= values["latency_us"] == values["confidence"] <= labels.size
    # Times are nanoseconds, and no thread's is longer than the whole.
    spent_us = sum(
        each.sum for window in filter(None, closed) for each in window.histograms if each.name == "latency_us"
    )
    assert 0.5 * values["latency_us"] < spent_us < 1e6 * THREADS * (perf_counter() - begin)


@pytest.mark.parametrize("period", [1, 2, 7, 8, 17])
def test_of_many_predictions_labels_are_all_counted_and_confidences_of_some_by_chance(period: int) -> None:
    # What an application repeats over and over is seen as often as it is asked, whatever the length of its round.
    often = 40_000
    window = PredictionWindow(model="m", version=1, variant="fp32", engine="onnx", now_s=0.0)
    example, answer = np.zeros((1, 3), np.float32), np.zeros((1, 20), np.float32)
    labels = np.arange(often) % period

    def run() -> None:
        label = int(example[0, 0])
        answer[:] = 0.0
        answer[0, label] = 0.99 if label == 0 else 0.1

    at = Seat(example, answer, run)
    ask = asker(FIELD, at, Saying(1, [f"c{number}" for number in range(20)], [0.5] * 20), window)
    for label in labels.tolist():
        ask(np.array([label, 1.0, 2.0], np.float32))
    taken = window.take(1.0)
    assert taken is not None
    counters, values = sums([taken])
    assert {name: count for name, count in counters.items() if name.startswith("label.")} == Counter(
        f"label.{label}" for label in labels.tolist()
    )
    assert counters["predictions"] == often
    assert values["latency_us"] == values["confidence"]
    some = (often - EACH) / ROW_OF
    # The choice is drawn once, for a thousand: a share of one in eight is between these but for one in a million.
    assert EACH + 0.55 * some < values["confidence"] < EACH + 1.55 * some + ONE_IN
    told = next(each for each in taken.histograms if each.name == "confidence")
    sure = told.sum / sum(told.counts)
    expected = 0.99 / period + 0.1 * (1 - 1 / period)
    assert sure == pytest.approx(expected, rel=0.12)
    rare = (often - EACH) / ONE_IN_THIN
    assert 0.5 * rare < counters["input_sampled"] - CLOSELY - EACH / ONE_IN < 1.6 * rare + 2


def test_the_beginning_of_each_window_is_counted_whole() -> None:
    window = PredictionWindow(model="m", version=1, variant="fp32", engine="onnx", now_s=0.0)
    ask = asker(FIELD, seat(2), Saying(1, ["a", "b"], [0.5, 0.5]), window)
    for often in (3 * EACH, EACH, 5, 2 * EACH, 1):
        for _ in range(often):
            ask(np.array([1.0, 0.0, 0.0], np.float32))
        counters, values = sums([window.take(1.0)])
        assert counters["predictions"] == often
        assert values["latency_us"] >= min(often, EACH)
        assert (values["latency_us"] == often) == (often <= EACH)


def test_labels_beyond_a_byte_are_told_whole() -> None:
    classes = 300
    window = PredictionWindow(model="m", version=1, variant="fp32", engine="onnx", now_s=0.0)
    ask = asker(FIELD, seat(classes), Saying(1, [f"c{n}" for n in range(classes)], [0.5] * classes), window)
    for _ in range(3 * EACH):
        ask(np.array([classes - 1.0, 0.0, 0.0], np.float32))
    counters, values = sums([window.take(1.0)])
    assert counters[f"label.{classes - 1}"] == values["latency_us"] == values["confidence"] == 3 * EACH
    assert counters["input_sampled"] <= CLOSELY + 3 * EACH / ONE_IN


def test_what_is_told_of_one_thread_is_in_no_window_but_its_own() -> None:
    one, other = (
        PredictionWindow(model="m", version=version, variant="fp32", engine="onnx", now_s=0.0)
        for version in (1, 2)
    )
    saying = Saying(1, ["a", "b"], [0.5, 0.5])
    for window, often in ((one, 3), (other, 5)):
        ask = asker(FIELD, seat(2), saying, window)
        for _ in range(often):
            ask(np.array([1.0, 0.0, 0.0], np.float32))
        # What is no array of the graph's type, or not in range, is not answered here, nor counted.
        assert ask([1.0, 0.0, 0.0]) is None
        assert ask(np.array([-1.0, 0.0, 0.0], np.float32)) is None
    assert [sums([window.take(1.0)])[0]["predictions"] for window in (one, other)] == [3, 5]
