"""Each column of a contract is counted by itself, in few cells that add up to those of the package's baseline.

Laws: every column has its turn, also in processes of one window; a sealed batch stays under two kilobytes; drift
in one column is seen by adding cells, and in that column alone.
"""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_packages import digits, first, opened, resigned
from umbel._home.directory import DeviceHome, Identity
from umbel._predict.model import Model
from umbel._telemetry.columns import LABEL_ROOM, MAX_CELLS, ROOM, Columns, Watched, watch
from umbel._telemetry.scope import Scope
from umbel._telemetry.spool import Spool
from umbel._telemetry.telemetry import Telemetry
from umbel._telemetry.window import PredictionWindow
from umbel.engines import load_engine
from umbel_models.baseline import baseline
from umbel_models.tasks.breast_cancer.task import BREAST_CANCER
from umbel_proto.contract import Column, Field
from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.report import open_batch
from umbel_proto.seal import SealPrivateKey

KEY = SealPrivateKey(bytes(range(32)))


@functools.cache
def rows() -> NDArray[np.float32]:
    x: NDArray[np.float32] = BREAST_CANCER.data().train.x
    return x


@functools.cache
def made() -> dict[str, Histogram]:
    """Return the baseline of these rows, as packages have it."""
    answers = np.full((len(rows()), 2), 0.5, np.float32)
    return {each.name: each for each in baseline(rows(), answers)}


@functools.cache
def columns() -> Columns:
    edges = {name: each.edges for name, each in made().items()}
    return Columns(watch(BREAST_CANCER.contract.fields[0], edges), ROOM - 2 * LABEL_ROOM)


@functools.cache
def series() -> bytes:
    """Digits whose contract names the eight columns of an image."""
    column = {
        "minimum": 0.0, "maximum": 16.0, "values": [], "allow_missing": False, "unit": "", "action": "clip",
    }  # fmt: skip
    more = {
        "action": "reject", "max_age_s": 0.0, "stale": "reject",
        "columns": [{**column, "name": f"c{number}"} for number in range(8)],
    }  # fmt: skip
    return resigned(first(), lambda body: body["contract"][0].update(more))


def new_window(scope: Scope) -> PredictionWindow:
    window = PredictionWindow(model="m", version=1, variant="fp32", engine="onnx", now_s=0.0)
    window.mind(scope)
    return window


def told(window: PredictionWindow) -> dict[str, Histogram]:
    message = window.take(1.0)
    assert message is not None
    return {each.name: Histogram.from_wire(each) for each in message.histograms}


def filled(scope: Scope, x: NDArray[np.float32]) -> dict[str, Histogram]:
    """Return the columns of as many windows as it takes for all of them, in each of which all of ``x`` is looked at."""
    found: dict[str, Histogram] = {}
    window = new_window(scope)
    for _ in scope.columns.groups:
        for row in x:
            window.observe_batch(1000, [0], [1.0], row[np.newaxis])
            window.log.due = 1
        found |= told(window)
    return {name: each for name, each in found.items() if name.startswith("column.")}


def joined(histogram: Histogram, edges: tuple[float, ...]) -> list[int]:
    """Return the counts of a histogram between some of its edges: sums of its cells."""
    ends = [0, *(histogram.edges.index(edge) + 1 for edge in edges), len(histogram.counts)]
    return [sum(histogram.counts[low:high]) for low, high in itertools.pairwise(ends)]


def test_every_column_of_the_contract_is_counted_as_the_definition_says() -> None:
    scope, x = Scope(2, {}, columns()), rows()[:40]
    found = filled(scope, x)
    names = [f"column.{column.name}" for column in BREAST_CANCER.contract.fields[0].columns]
    assert sorted(found) == sorted(names)
    for place, name in enumerate(names):
        expected = Histogram.empty(name, found[name].edges).observe(x[:, place])
        assert found[name].counts == expected.counts
        assert found[name].mean == pytest.approx(expected.mean)
        assert len(found[name].counts) <= MAX_CELLS


def test_cells_are_those_of_the_baseline_some_of_them_joined() -> None:
    for each in columns().watched:
        known = made()[f"feature.{each.place}"]
        assert set(each.edges) <= set(known.edges)
        shares = np.array(joined(known, each.edges)) / known.count
        # Eighths of the data, but for how it falls into twentieths.
        assert len(shares) == MAX_CELLS
        assert shares.min() > 0.08
        assert shares.max() < 0.2


def index(known: list[int], now: list[int]) -> float:
    """Return the population stability index of two histograms, half an event added to each cell."""
    p, q = (np.array(each) + 0.5 for each in (known, now))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def test_drift_in_one_column_is_seen_by_adding_and_in_no_other() -> None:
    x = rows().copy()
    x[:, 4] += 1.5 * x[:, 4].std()
    for name, found in filled(Scope(2, {}, columns()), x).items():
        place = next(each.place for each in columns().watched if each.name == name)
        # The usual reading of this index: under 0.1 nothing has changed, from 0.25 on much.
        drift = index(joined(made()[f"feature.{place}"], found.edges), list(found.counts))
        assert (drift > 0.25) if place == 4 else (drift < 0.1)


def test_columns_take_turns_and_a_process_of_one_window_begins_anywhere() -> None:
    scope = Scope(2, {}, columns())
    groups = scope.columns.groups
    assert len(groups) > 2
    assert [each for group in groups for each in group] == list(scope.columns.watched)
    window, seen = new_window(scope), []
    for _ in groups:
        window.observe(1000, 0, 1.0, rows()[0])
        seen.append(tuple(name for name in told(window) if name.startswith("column.")))
        # A window in which nothing happened takes no turn.
        assert window.take(2.0) is None
    assert len({*seen}) == len(groups)
    first_told = set()
    # 300 starts miss one of ten groups in one of 5e12 runs.
    for _ in range(300):
        window = new_window(scope)
        window.observe(1000, 0, 1.0, rows()[0])
        first_told.add(tuple(name for name in told(window) if name.startswith("column.")))
    assert first_told == {*seen}


def test_forked_processes_of_one_window_each_have_every_columns_turn() -> None:
    window, begun = new_window(Scope(2, {}, columns())), set()
    # As above; each time what a child does with the window that it finds.
    for _ in range(300):
        window._renew()
        window.observe(1000, 0, 1.0, rows()[0])
        begun.add(tuple(name for name in told(window) if name.startswith("column.")))
        window._turn = 0  # The parent predicts nothing, and stays where it is.
    assert len(begun) == len(columns().groups)


def test_what_has_columns_is_not_counted_all_in_one() -> None:
    window = new_window(Scope(2, {}, columns()))
    window.observe(1000, 0, 1.0, rows()[0])
    message = window.take(1.0)
    assert message is not None
    assert message.counters["input_sampled"] == 1
    assert not {each.name for each in message.histograms} & {"input", "input_mean"}


def test_a_sealed_window_of_a_million_predictions_is_under_two_kilobytes(tmp_path: Path) -> None:
    home, rng = DeviceHome(tmp_path), np.random.default_rng(1)
    home.make()
    home.write_identity(Identity(FleetId("garden"), DeviceId("d1"), "127.0.0.1:1", ""))
    home.write_telemetry_key(KEY.public)
    # Names as long as the contract allows, and ten labels.
    edges = tuple(float(f"{edge:.6g}") for edge in np.arange(1, 8) / 7)
    long = tuple(Watched(place, f"column.{place:040d}", edges) for place in range(30))
    scope = Scope(10, {}, Columns(long, ROOM - 10 * LABEL_ROOM))
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=lambda: 1.8e9)
        window = telemetry.window(
            model="a" * 20,
            version=10**6,
            variant="tflite-int8",
            engine="tflite",
            scope=scope,
        )
        for _ in range(4000):
            labels, sure = rng.integers(0, 10, 250).tolist(), rng.random(250).tolist()
            window.observe_batch(int(10 ** rng.uniform(3, 10)), labels, sure, rng.random((1, 30)))
        window.error()
        telemetry.flush()
        [sealed] = spool.oldest(max_batches=9, max_bytes=10**9)
    windows = open_batch(KEY, sealed.header, sealed.ciphertext).windows
    assert any(each.name.startswith("column.") for window in windows for each in window.histograms)
    assert sealed.size <= 2048


def test_a_model_of_such_a_package_counts_its_columns() -> None:
    package = opened(series())
    window = new_window(Scope.of(package))
    assert len(window._scope.columns.watched) == 8
    model = Model(package, load_engine(package, "fp32"), window)
    x = digits().train.x
    for each in x[:5]:
        model.predict(each)
    model.predict(x[5:8])
    found = {name: each for name, each in told(window).items() if name.startswith("column.")}
    assert found
    for name, each in found.items():
        means = x[:6, 0, :, int(name[-1])].mean(1)  # Of a batch one is looked at.
        assert each.counts == Histogram.empty(name, each.edges).observe(means).counts


def test_an_epsilon_of_the_input_is_one_of_its_columns() -> None:
    for each in filled(Scope(2, {"input": 1.0}, columns()), rows()[:20]).values():
        assert (each.epsilon, each.sum, each.count) == (1.0, 0.0, 20)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), count=st.integers(1, 12), samples=st.integers(1, 5))
def test_of_a_series_each_columns_mean_is_counted_and_of_nothing_nothing(
    data: st.DataObject, count: int, samples: int
) -> None:
    number = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.5, -2.0, 1e6])
    x = np.array(data.draw(st.lists(number, min_size=count * samples, max_size=count * samples)))
    x = x.reshape(samples, count)
    columns = Columns(tuple(Watched(place, f"column.c{place}", (0.0,)) for place in range(count)))
    values = columns.values(x)
    for place, value in enumerate(values):
        known = [each for each in x[:, place] if math.isfinite(each)]
        if samples == 1:
            assert value == x[0, place] or (math.isnan(value) and math.isnan(x[0, place]))
        elif known:
            assert value == pytest.approx(sum(known) / len(known))
        else:
            assert math.isnan(value)


def of(column: Column, *told: float) -> tuple[float, ...]:
    """Return the edges of a column in a package whose baseline has these."""
    [watched] = watch(Field.of_columns("x", "float32", [column]), {"feature.0": told} if told else {})
    return watched.edges


def test_edges_come_from_known_values_from_the_baseline_or_from_the_range() -> None:
    plain = Column("c", 0.0, 80.0)
    assert of(plain) == (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0)
    assert of(plain, 1.0, 2.0) == (1.0, 2.0)
    assert of(plain, 2.0, 1.0) == of(plain)
    assert of(plain, math.nan, 1.0) == of(plain)
    twentieths = [float(edge) for edge in range(1, 20)]
    assert len(of(plain, *twentieths)) == MAX_CELLS - 1
    few = Column("c", 0.0, 2.0, values=(0.0, 1.0, 2.0))
    assert of(few, 0.0) == (0.5, 1.5)
    many = Column("c", 0.0, 20.0, values=tuple(float(value) for value in range(21)))
    assert of(many, *twentieths) == of(plain, *twentieths)
    close = Column("c", 1.0, 1.0 + 1e-9, values=(1.0, 1.0 + 1e-9))
    assert of(close) == (1.0,)
    assert of(Column("c", 3.0, 3.0)) == (3.0,)


def test_a_baseline_that_cannot_be_read_leaves_the_contracts_range() -> None:
    damaged = resigned(series(), lambda body: None, **{"baseline.json": b'{"histograms": [1]}'})
    assert {each.edges for each in Columns.of(opened(damaged)).watched} == {
        (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0)
    }
