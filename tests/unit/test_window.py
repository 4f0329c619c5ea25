"""A window says the same however its predictions came, and no more after a million than after a hundred."""

from __future__ import annotations

import copy
import math
import os
import pickle
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel._home.directory import DeviceHome, Identity
from umbel._predict.answer import Estimate, Prediction
from umbel._telemetry.gauges import Rapl, resident_bytes
from umbel._telemetry.spool import Spool
from umbel._telemetry.telemetry import Telemetry
from umbel._telemetry.window import (
    CLOSELY,
    MAX_AMOUNT,
    MAX_METRICS,
    MAX_TIMES,
    ONE_IN,
    ApplicationWindow,
    PredictionWindow,
)
from umbel_proto.errors import UsageError
from umbel_proto.histogram import AMOUNT, CONFIDENCE, INPUT, LATENCY_US, Histogram
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.report import open_batch
from umbel_proto.seal import SealPrivateKey
from umbel_proto.wire import telemetry_pb2 as pb

KEY = SealPrivateKey(bytes(range(32)))

Said = tuple[int, int | None, float | None]


def drawn(seed: int, count: int) -> list[Said]:
    """Return predictions of all kinds: with and without label and confidence, and confidences that are no number."""
    rng = np.random.default_rng(seed)
    sure = rng.choice([math.nan, 0.0, 1.0, 0.5, 0.9], count) * rng.random(count)
    return [
        (
            int(10 ** rng.uniform(0, 11)),
            int(label) if label < 10 else None,
            float(each) if label < 11 else None,
        )
        for label, each in zip(rng.integers(0, 12, count), sure, strict=True)
    ]


def new_window() -> PredictionWindow:
    return PredictionWindow(model="digits", version=1, variant="fp32", engine="onnx", now_s=0.0)


def told(*messages: pb.Window | None) -> tuple[Counter[str], dict[str, Histogram]]:
    counters: Counter[str] = Counter()
    histograms: dict[str, Histogram] = {}
    for message in filter(None, messages):
        counters.update(dict(message.counters))
        for each in map(Histogram.from_wire, message.histograms):
            known = histograms.get(each.name)
            histograms[each.name] = each if known is None else known.merge(each)
    return counters, histograms


def expected(said: list[Said]) -> tuple[Counter[str], dict[str, Histogram]]:
    """Return what the definition of a histogram and a counter gives."""
    counters = Counter({"predictions": len(said)})
    counters.update(f"label.{label}" for _, label, _ in said if label is not None)
    latency = Histogram.empty("latency_us", LATENCY_US).observe([each / 1000 for each, _, _ in said])
    sure = Histogram.empty("confidence", CONFIDENCE).observe(
        [each for _, _, each in said if each is not None]
    )
    return counters, {each.name: each for each in (latency, sure) if each.count}


def assert_same(
    one: tuple[Counter[str], dict[str, Histogram]], other: tuple[Counter[str], dict[str, Histogram]]
) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, histogram in one[1].items():
        assert histogram.counts == other[1][name].counts
        assert histogram.sum == pytest.approx(other[1][name].sum)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 600),
    cuts=st.lists(st.integers(0, 600), max_size=4),
    data=st.data(),
)
def test_it_counts_each_prediction_once_by_itself_or_in_a_batch_wherever_windows_close(
    seed: int, count: int, cuts: list[int], data: st.DataObject
) -> None:
    said = drawn(seed, count)
    window, closed, place = new_window(), [], 0
    while place < len(said):
        if place in cuts:
            closed.append(window.take(1.0))
        size = data.draw(st.sampled_from([1, 1, 1, 2, 40, 300]))
        part = said[place : place + size]
        if size == 1:
            window.observe(*part[0])
        else:
            times, labels, sure = zip(*part, strict=True)
            # A batch's time is shared by its examples.
            part = [(times[0], label, each) for label, each in zip(labels, sure, strict=True)]
            window.observe_batch(times[0], labels, sure, np.empty((len(part), 0)))
            said[place : place + size] = part
        place += size
    counters, histograms = told(*closed, window.take(1.0))
    counters.pop("input_sampled", None)
    assert_same((counters, histograms), expected(said))


def test_eight_threads_and_one_that_closes_windows_lose_and_double_nothing() -> None:
    rng = np.random.default_rng(1)
    said: list[Said] = [
        (int(rng.integers(10**6)), int(rng.integers(10)), float(rng.random())) for _ in range(16_000)
    ]
    window, closed, done = new_window(), [], threading.Event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(9) as pool:

            def close() -> None:
                while not done.is_set():
                    closed.append(window.take(1.0))

            closing = pool.submit(close)
            work = [
                pool.submit(lambda part: [window.observe(*each) for each in part], said[n::8])
                for n in range(8)
            ]
            for each in work:
                each.result()
            done.set()
            closing.result()
    finally:
        sys.setswitchinterval(interval)
    closed.append(window.take(1.0))
    assert_same(told(*closed), expected(said))


class Meanwhile:
    """Another thread that begins in the middle of what this one does, and ends then if nothing holds it up.

    Args:
        work: What it does.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=work)

    def begin(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
            self._thread.join(0.2)

    def end(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("how", ["a window is closed", "a prediction has them counted"])
def test_rows_that_one_thread_counts_no_other_thread_counts_too(how: str) -> None:
    window, closed = new_window(), []
    rows = 5000  # More than are left uncounted.
    meanwhile = Meanwhile(lambda: closed.append(window.take(1.0)))

    class Rows(bytearray):
        """Rows in the middle of whose counting another thread closes the window."""

        def __getitem__(self, part: Any) -> Any:
            found = super().__getitem__(part)
            meanwhile.begin()
            return found

    window.log.due = 10**9
    for _ in range(rows - 1):
        window.observe(1000.0, 1, 0.5)
    window.log.rows = Rows(window.log.rows)
    if how == "a window is closed":
        window.observe(1000.0, 1, 0.5)
        closed.append(window.take(1.0))
    else:
        window.log.due = 1
        window.observe(1000.0, 1, 0.5)
    meanwhile.end()
    closed.append(window.take(1.0))
    counters, _ = told(*closed)
    assert counters["predictions"] == counters["label.1"] == rows


def test_what_two_threads_count_at_once_is_counted_twice() -> None:
    window = new_window()
    meanwhile = Meanwhile(lambda: window.count("errors"))

    class Counters(dict[str, int]):
        """Counters that another thread adds to once one of them was read."""

        def get(self, *of: Any) -> Any:
            found = super().get(*of)
            meanwhile.begin()
            return found

    window._counters = Counters()
    window.count("errors")
    meanwhile.end()
    counters, _ = told(window.take(1.0))
    assert counters["errors"] == 2


def test_a_prediction_made_while_others_are_counted_is_in_the_next_count() -> None:
    window, other = new_window(), new_window()
    other.log.due = 10**9
    other.observe(1.0, 1, 0.5)

    class Rows(bytearray):
        """Rows to which another thread adds between any two steps of the one that counts."""

        def __getitem__(self, part: Any) -> Any:
            found = super().__getitem__(part)
            self.extend(other.log.rows)
            return found

    window.log.rows = Rows()
    window.log.due = 10**9
    window.observe(1000.0, 0, 0.5)
    assert told(window.take(1.0))[0] == {"predictions": 1, "label.0": 1}
    assert told(window.take(2.0))[0] == {"predictions": 1, "label.1": 1}


def test_inputs_are_looked_at_one_by_one_at_first_then_one_in_many_and_how_many_is_said() -> None:
    window = new_window()
    total = CLOSELY + 10 * ONE_IN
    for number in range(total):
        window.observe(1000, 0, 0.5, np.full(4, number, np.float32))
    counters, histograms = told(window.take(1.0))
    assert counters["input_sampled"] == CLOSELY + 10
    assert histograms["input_mean"].count == counters["input_sampled"]
    assert histograms["input"].count == 4 * counters["input_sampled"]
    numbers = [*range(CLOSELY), *(CLOSELY - 1 + ONE_IN * step for step in range(1, 11))]
    assert histograms["input_mean"].sum == sum(numbers)
    # The next window begins anew.
    window.observe(1000, 0, 0.5, np.ones(4))
    assert told(window.take(2.0))[0]["input_sampled"] == 1


def test_what_waits_to_be_counted_is_bounded_however_long_a_window_is_open() -> None:
    window, most = new_window(), 0
    for number in range(20_000):
        window.observe(1000.0, number % 3, 0.5, None)
        most = max(most, len(window.log.rows))
    assert most <= 128 * 1024
    assert told(window.take(1.0))[0]["predictions"] == 20_000


def home(path: Path) -> DeviceHome:
    made = DeviceHome(path)
    made.make()
    made.write_identity(Identity(FleetId("garden"), DeviceId("d1"), "127.0.0.1:1", ""))
    made.write_telemetry_key(KEY.public)
    return made


def test_a_sealed_window_of_a_million_predictions_is_under_two_kilobytes(tmp_path: Path) -> None:
    where, rng = home(tmp_path), np.random.default_rng(1)
    with Spool(where.spool) as spool:
        telemetry = Telemetry(where, spool, clock=lambda: 1.8e9)
        window = telemetry.window(model="a" * 20, version=10**6, variant="tflite-int8", engine="tflite")
        for _ in range(100):
            labels, sure = rng.integers(0, 10, 10_000).tolist(), rng.random(10_000).tolist()
            window.observe_batch(int(10 ** rng.uniform(3, 10)), labels, sure, rng.normal(0, 1e3, (1, 999)))
        window.error()
        telemetry.flush()
        [sealed] = spool.oldest(max_batches=9, max_bytes=10**9)
    batch = open_batch(KEY, sealed.header, sealed.ciphertext)
    counters, histograms = told(*(each for each in batch.windows if each.model))
    assert counters["predictions"] == histograms["latency_us"].count == 10**6
    assert sealed.size <= 2048


@pytest.mark.parametrize("edges", [LATENCY_US, CONFIDENCE, INPUT, AMOUNT, (1.0, 2.0)])
def test_edges_that_both_sides_know_travel_as_a_number(edges: tuple[float, ...]) -> None:
    histogram = Histogram.empty("h", edges).observe([1.5])
    wire = histogram.to_wire()
    assert not wire.edges
    assert bool(wire.scale) != bool(wire.short_edges)
    assert bool(wire.short_edges) == (edges == (1.0, 2.0))
    assert Histogram.from_wire(pb.Histogram.FromString(wire.SerializeToString())) == histogram


@pytest.mark.parametrize(
    "message",
    [
        pb.Histogram(name="h", scale=6, counts=[0] * 10),
        pb.Histogram(name="h", scale=1, edges=LATENCY_US, counts=[0] * (len(LATENCY_US) + 1)),
        pb.Histogram(name="h", scale=2, counts=[0]),
    ],
)
def test_a_histogram_of_an_unknown_or_doubled_scale_is_refused(message: pb.Histogram) -> None:
    with pytest.raises(UsageError):
        Histogram.from_wire(message)


def test_an_applications_counts_and_amounts_are_sealed_with_the_rest(tmp_path: Path) -> None:
    where = home(tmp_path)
    with Spool(where.spool) as spool:
        telemetry = Telemetry(where, spool, clock=lambda: 1000.0)
        telemetry.count("purchase")
        telemetry.count("purchase", 3)
        for value in (3.2, 0.0, -1e12):
            telemetry.observe("seconds_saved", value)
        assert telemetry.flush() == 1
        assert telemetry.flush() == 0
        [sealed] = spool.oldest(max_batches=9, max_bytes=10**9)
    [window] = open_batch(KEY, sealed.header, sealed.ciphertext).windows
    counters, histograms = told(window)
    assert (window.model, window.version, window.variant, window.engine) == ("", 0, "", "")
    assert counters["app.purchase"] == 4
    expected = Histogram.empty("app.seconds_saved", AMOUNT).observe([3.2, 0, -1e12])
    assert histograms["app.seconds_saved"].counts == expected.counts
    assert histograms["app.seconds_saved"].sum == pytest.approx(expected.sum, rel=1e-7)
    assert b"purchase" not in sealed.ciphertext


def test_an_application_that_says_nothing_beside_models_that_say_nothing_sends_nothing() -> None:
    window = ApplicationWindow(now_s=0.0)
    assert window.take(1.0, beside=False) is None
    beside = window.take(2.0, beside=True)
    assert beside is not None
    held = told(beside)[1]["memory_mib"]
    assert held.count == 1
    assert 1 < held.sum < 100_000


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("", 1),
        ("Purchase", 1),
        ("a b", 1),
        ("a" * 60, 1),
        ("ok", 0),
        ("ok", -1),
        ("ok", 1.5),
        ("ok", True),
        ("../x", 1),
        (None, 1),
        (["ok"], 1),
    ],
)
def test_a_count_that_makes_no_sense_is_refused(name: Any, by: int) -> None:
    window = ApplicationWindow(now_s=0.0)
    window.count("ok", 1)
    assert window.take(0.5, beside=True) is not None
    with pytest.raises(UsageError, match=r"metric|Metric"):
        window.count(name, by)
    assert window.take(1.0, beside=False) is None


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        1.1e100,
        pytest.param(10**400, id="400 digits"),
        "3",
        None,
        1j,
        [1.0, 2.0],
    ],
)
def test_an_amount_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match="finite"):
        ApplicationWindow(now_s=0.0).observe("seconds_saved", value)


def test_no_count_and_no_amount_that_is_taken_ends_a_report() -> None:
    """Both once did, and lost what models had counted beside them."""
    window = ApplicationWindow(now_s=0.0)
    window.count("rows", MAX_TIMES)
    with pytest.raises(UsageError, match=r"more than 2\*\*53 times .*: count in a larger unit"):
        window.count("rows")
    for _ in range(3):
        window.observe("seconds_saved", MAX_AMOUNT)
    taken = window.take(1.0, beside=False)
    assert taken is not None
    counters, histograms = told(taken)
    assert counters["app.rows"] == MAX_TIMES
    assert histograms["app.seconds_saved"].sum == pytest.approx(3 * MAX_AMOUNT)
    window.count("rows", MAX_TIMES)


def test_a_whole_number_of_numpys_is_a_count() -> None:
    window = ApplicationWindow(now_s=0.0)
    window.count("rows", np.arange(4).sum())
    taken = window.take(1.0, beside=False)
    assert taken is not None
    assert told(taken)[0]["app.rows"] == 6


def test_names_are_bounded_over_all_windows_of_a_process() -> None:
    window = ApplicationWindow(now_s=0.0)
    for number in range(MAX_METRICS):
        window.count(f"n{number}")
        window.take(1.0, beside=False)
    with pytest.raises(UsageError, match="one more than the 64"):
        window.observe("another", 1.0)
    window.count("n0")


def test_energy_is_what_the_counters_say_and_absent_where_they_cannot_be_read(tmp_path: Path) -> None:
    assert Rapl(tmp_path).spent_uj() is None
    for name, energy in (("intel-rapl:0", 900), ("intel-rapl:1", 50), ("intel-rapl:0:0", 7)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "energy_uj").write_text(f"{energy}\n")
        (folder / "max_energy_range_uj").write_text("1000\n")
    rapl = Rapl(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100\n")  # It has begun anew.
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("80\n")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("9\n")  # A part, counted with its package.
    assert rapl.spent_uj() == 200 + 30
    assert rapl.spent_uj() == 0
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert rapl.spent_uj() is None


def test_memory_is_what_the_system_says(tmp_path: Path) -> None:
    assert resident_bytes(tmp_path / "none") is None
    statm = tmp_path / "statm"
    statm.write_text("999 10 5 1 0 3 0\n")
    assert resident_bytes(statm) == 10 * os.sysconf("SC_PAGE_SIZE")
    statm.write_text("nonsense")
    assert resident_bytes(statm) is None


def test_ids_are_sixteen_digits_and_none_is_given_twice_by_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [Estimate(np.zeros(1, np.float32), 1) for _ in range(16_000)]
    with ThreadPoolExecutor(8) as pool:
        made = [*pool.map(lambda each: each.id, answers, chunksize=2000)]
    assert len({*made}) == len(made)
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in made)
    # A number past the last one begins at zero again.
    monkeypatch.setattr("umbel._predict.answer.new_id", lambda: 2**64)
    assert Prediction(0, "a", 1.0, "automatic", 1, b"").id == "0" * 16


def test_threads_that_ask_for_the_id_of_one_answer_are_all_told_the_same() -> None:
    answers = [Prediction(0, "a", 1.0, "automatic", 1, b"") for _ in range(3000)]
    begin = threading.Barrier(4)

    def ids(_: int) -> list[str]:
        begin.wait(30)
        return [each.id for each in answers]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            told = [*pool.map(ids, range(4))]
    finally:
        sys.setswitchinterval(before)
    assert told[1:] == told[:-1]
    assert len({*told[0]}) == len(answers)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda answer: pickle.loads(pickle.dumps(answer))]
)
def test_a_copy_of_an_answer_is_the_same_answer(again: Callable[[object], Prediction]) -> None:
    said = Prediction(1, "b", 0.5, "review", 3, b"")
    other = again(said)
    assert (other.id, other.label, other.name, other.confidence) == (said.id, 1, "b", 0.5)
    estimate = Estimate(np.zeros(2, np.float32), 1)
    assert again(estimate).id == estimate.id


def test_probabilities_are_an_array_of_what_the_engine_said() -> None:
    row = np.array([0.1, 0.7, 0.2], np.float32)
    for given_as in (row, row.tobytes()):
        said = Prediction(1, "b", 0.7, "automatic", 1, given_as).probabilities
        assert said.dtype == np.float32
        np.testing.assert_array_equal(said, row)
