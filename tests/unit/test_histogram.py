"""Histograms add, and say what they hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel_proto.errors import UsageError
from umbel_proto.histogram import CONFIDENCE, INPUT, LATENCY_US, Histogram, log_edges, six_digits
from umbel_proto.wire import telemetry_pb2 as pb

EMPTY = Histogram.empty("x", (0.0, 1.0, 10.0))
VALUES = st.lists(st.floats(-1e9, 1e9) | st.sampled_from([0.0, 1.0, 10.0, math.inf, -math.inf, math.nan]))


@settings(deadline=None)
@given(left=VALUES, right=VALUES)
def test_the_merge_of_the_parts_is_the_whole(left: list[float], right: list[float]) -> None:
    whole = EMPTY.observe(left + right)
    for merged in (EMPTY.observe(left).merge(EMPTY.observe(right)), EMPTY.observe(left).observe(right)):
        assert merged.counts == whole.counts
        assert merged.sum == pytest.approx(whole.sum, rel=1e-9, abs=1e-3)


@settings(deadline=None)
@given(values=VALUES)
def test_every_value_but_nan_is_in_exactly_the_cell_its_edges_say(values: list[float]) -> None:
    histogram = EMPTY.observe(values)
    bounds = [-math.inf, *EMPTY.edges, math.inf]
    for cell, count in enumerate(histogram.counts):
        low, high = bounds[cell], bounds[cell + 1]
        last = cell == len(EMPTY.edges)
        assert count == sum(low <= v < high or (last and v == math.inf) for v in values)


@settings(deadline=None)
@given(values=VALUES)
def test_a_histogram_survives_the_wire(values: list[float]) -> None:
    histogram = EMPTY.observe(values)
    raw = histogram.to_wire().SerializeToString()
    assert Histogram.from_wire(pb.Histogram.FromString(raw)) == histogram


def test_infinities_are_counted_but_do_not_spoil_the_sum() -> None:
    histogram = EMPTY.observe([2.0, math.inf, -math.inf])
    assert (histogram.counts, histogram.sum) == ((1, 0, 1, 1), 2.0)


def test_any_shape_of_array_is_observed_whole() -> None:
    assert EMPTY.observe(np.full((2, 3, 4), 5.0, np.float32)).count == 24


def test_histograms_of_different_things_do_not_add() -> None:
    with pytest.raises(UsageError, match="different names or edges"):
        EMPTY.merge(Histogram.empty("y", EMPTY.edges))
    with pytest.raises(UsageError, match="different names or edges"):
        EMPTY.merge(Histogram.empty("x", (0.0, 1.0, 11.0)))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": "No spaces"}, "not a name"),
        ({"edges": [], "counts": [0]}, "0 edges"),
        ({"edges": list(map(float, range(1025))), "counts": [0] * 1026}, "1025 edges"),
        ({"edges": [0.0, math.nan], "counts": [0] * 3}, "not a finite"),
        ({"edges": [0.0, math.inf], "counts": [0] * 3}, "not a finite"),
        ({"edges": [1.0, 1.0], "counts": [0] * 3}, "do not ascend"),
        ({"counts": [0, 0]}, "2 counts, not 4"),
        ({"counts": [0, 0, 0, 2**63]}, "outside"),
        ({"sum": math.nan}, "sum"),
        ({"sum": math.inf}, "sum"),
    ],
)
def test_a_message_that_is_no_histogram_is_refused(fields: dict[str, object], why: str) -> None:
    message = EMPTY.to_wire()
    message.edges.extend(message.short_edges)
    message.ClearField("short_edges")
    for name, value in fields.items():
        if isinstance(value, list):
            del getattr(message, name)[:]
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    with pytest.raises(UsageError, match=why):
        Histogram.from_wire(message)


@settings(deadline=None)
@given(edges=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20, unique=True).map(sorted))
def test_edges_are_the_same_after_the_wire_however_they_travel(edges: list[float]) -> None:
    for each in (tuple(edges), tuple(sorted(set(six_digits(edges))))):
        histogram = Histogram.empty("x", each)
        message = pb.Histogram.FromString(histogram.to_wire().SerializeToString())
        assert bool(message.edges) != bool(message.short_edges)
        assert Histogram.from_wire(message) == histogram


@pytest.mark.parametrize("value", [0.1, -1234.56, 1e-30, 9.99999e37, 3.0])
def test_edges_of_six_digits_travel_in_half_the_bytes(value: float) -> None:
    assert len(Histogram.empty("x", (value,)).to_wire().short_edges) == 1
    assert not Histogram.empty("x", (value * (1 + 1e-9),)).to_wire().short_edges


def test_a_histogram_with_edges_twice_is_refused() -> None:
    for message in (
        pb.Histogram(name="x", edges=[1.0], short_edges=[1.0], counts=[1, 1]),
        pb.Histogram(name="x", scale=5, short_edges=[0.5], counts=[1, 1]),
    ):
        with pytest.raises(UsageError, match=r"either edges|edges twice"):
            Histogram.from_wire(message)


def test_a_count_never_grows_past_what_the_store_holds() -> None:
    full = Histogram("x", EMPTY.edges, (2**63 - 1, 0, 0, 0))
    with pytest.raises(UsageError, match="outside"):
        full.merge(full)


def test_values_whose_sum_overflows_are_refused_with_a_sentence() -> None:
    with pytest.raises(UsageError, match="sum"):
        EMPTY.observe([1e308, 1e308])


def test_the_standard_edges_cover_what_they_measure() -> None:
    assert (LATENCY_US[0], LATENCY_US[-1], len(LATENCY_US)) == (1.0, 1e7, 57)
    assert len(CONFIDENCE) == 23
    assert CONFIDENCE[11] == 0.5
    assert [-edge for edge in reversed(INPUT)] == list(INPUT)
    for edges in (LATENCY_US, CONFIDENCE, INPUT):
        Histogram.empty("x", edges)


def test_log_edges_grow_by_the_same_factor() -> None:
    edges = log_edges(1, 1000, per_decade=4)
    ratios = [high / low for low, high in itertools.pairwise(edges)]
    assert ratios == pytest.approx([10**0.25] * 12, rel=1e-5)


@settings(deadline=None)
@given(values=st.lists(st.floats(1.0, 9.9e6), min_size=1, max_size=200), q=st.floats(0, 1))
def test_a_quantile_is_within_one_cell_of_the_exact_one(values: list[float], q: float) -> None:
    estimate = Histogram.empty("latency_us", LATENCY_US).observe(values).quantile(q)
    exact = float(np.quantile(values, q, method="inverted_cdf"))
    assert estimate is not None
    assert exact / 1.34 <= estimate <= exact * 1.34


def test_a_histogram_of_nothing_has_no_mean_and_no_quantile() -> None:
    assert (EMPTY.mean, EMPTY.quantile(0.5), EMPTY.count) == (None, None, 0)


def test_the_outer_cells_answer_with_their_edge() -> None:
    histogram = EMPTY.observe([-5.0, 50.0])
    assert (histogram.quantile(0.0), histogram.quantile(1.0), histogram.mean) == (0.0, 10.0, 22.5)


def test_a_quantile_outside_0_to_1_is_refused() -> None:
    with pytest.raises(UsageError, match=r"1\.5"):
        EMPTY.quantile(1.5)
