"""Randomized response: one event is hidden by no less than what is stated, and sums are estimated without bias.

Laws: any answer is at most e**epsilon times as likely of one event as of any other; the estimate is unbiased; its
interval holds the truth about as often as it says, however few events there are.
"""

from __future__ import annotations

import hashlib
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from umbel_proto.errors import UsageError
from umbel_proto.histogram import CONFIDENCE, Histogram
from umbel_proto.prg import Keystream
from umbel_proto.privacy.response import Response
from umbel_proto.privacy.stated import MAX_EPSILON, MIN_EPSILON
from umbel_proto.wire import telemetry_pb2 as pb

EPSILONS = st.floats(MIN_EPSILON, MAX_EPSILON)
WORDS = 1 << 64


def stream(seed: int) -> Keystream:
    return Keystream(hashlib.sha256(b"%d" % seed).digest(), mode="ctr")


def chances(response: Response) -> list[list[int]]:
    """Return the matrix of a response times 2**64: row is the event's cell, column the one that is told."""
    return [
        [response.keep if row == column else response.other for column in range(response.cells)]
        for row in range(response.cells)
    ]


@settings(deadline=None, max_examples=300)
@given(cells=st.integers(2, 60), epsilon=EPSILONS)
def test_no_answer_tells_two_events_apart_by_more_than_epsilon(cells: int, epsilon: float) -> None:
    matrix = chances(Response(cells, epsilon))
    assert all(sum(row) == WORDS and min(row) > 0 for row in matrix)
    with localcontext() as context:
        context.prec = 60
        bound = Decimal(epsilon).exp()
        for told in zip(*matrix, strict=True):
            assert Decimal(max(told)) <= bound * Decimal(min(told))


@pytest.mark.parametrize("cells", [2, 24, 1001])
@pytest.mark.parametrize("epsilon", [MIN_EPSILON, 1.0, MAX_EPSILON])
def test_an_event_is_moved_hardly_more_often_than_it_must_be(cells: int, epsilon: float) -> None:
    response = Response(cells, epsilon)
    assert response.keep / response.other == pytest.approx(math.exp(epsilon), rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(counts=st.lists(st.integers(0, 300), min_size=2, max_size=40), epsilon=EPSILONS, seed=st.integers())
def test_counts_stay_whole_none_is_lost_and_none_is_negative(
    counts: list[int], epsilon: float, seed: int
) -> None:
    told = Response(len(counts), epsilon).randomize(counts, stream(seed))
    assert sum(told) == sum(counts)
    assert all(isinstance(count, int) and count >= 0 for count in told)


@pytest.mark.parametrize(("cells", "epsilon"), [(2, 0.5), (10, 1.0), (24, 2.0), (58, 4.0)])
def test_events_move_with_the_chances_that_are_stated(cells: int, epsilon: float) -> None:
    # One test of goodness of fit for each first and last cell, at 1e-6 each: a false alarm in 8 is 1 in 125,000.
    response, events = Response(cells, epsilon), 200_000
    for row in (0, cells - 1):
        counts = [0] * cells
        counts[row] = events
        told = response.randomize(counts, stream(cells + row))
        expected = [events * chance / WORDS for chance in chances(response)[row]]
        assert stats.chisquare(told, expected).pvalue > 1e-6


def test_the_estimate_of_many_windows_is_unbiased() -> None:
    # The mean of 400 estimates of each of 10 cells is within 5 standard errors: a false alarm is 1 in 170,000.
    truth, response, source = [500, 0, 3, 40, 0, 0, 1, 60, 200, 10], Response(10, 1.0), stream(7)
    total = sum(truth)
    said = np.array(
        [
            [response.estimate(told, total).value for told in response.randomize(truth, source)]
            for _ in range(400)
        ]
    )
    errors = (said.mean(0) - truth) / (said.std(0) / math.sqrt(len(said)))
    assert np.abs(errors).max() < 5


@pytest.mark.parametrize("cells", [2, 10, 58])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0, 15.0])
@pytest.mark.parametrize("total", [1, 2, 20, 300])
def test_the_interval_holds_the_truth_as_often_as_it_says(cells: int, epsilon: float, total: int) -> None:
    # Exact: the law of what is told of a group of cells is a sum of two binomials. Unbiased, too.
    response = Response(cells, epsilon)
    for group in {1, cells // 2}:
        inside = (response.keep + (group - 1) * response.other) / WORDS
        outside = group * response.other / WORDS
        estimates = [response.estimate(told, total, group) for told in range(total + 1)]
        for truth in {0, 1, total // 10, total // 2, total}:
            law = np.convolve(
                stats.binom.pmf(np.arange(truth + 1), truth, inside),
                stats.binom.pmf(np.arange(total - truth + 1), total - truth, outside),
            )
            held = [each.low - 1e-9 <= truth <= each.high + 1e-9 for each in estimates]
            assert law[held].sum() > 0.94
            mean = sum(chance * each.value for chance, each in zip(law, estimates, strict=True))
            assert mean == pytest.approx(truth, abs=1e-9 * total / (inside - outside) + 1e-9)
        assert all(0 <= each.low <= each.high <= total for each in estimates)


def test_an_interval_is_never_shorter_than_the_noise_lets_anybody_know() -> None:
    # Of 10,000 events 939 are told in each cell by noise alone, give or take 29: as few as 739 do not prove none.
    response, total = Response(10, 0.5), 10_000
    outside = response.other / WORDS
    expected = round(total * outside)
    shortest = 1.9 * math.sqrt(total * outside * (1 - outside)) / ((response.keep - response.other) / WORDS)
    for told in (0, expected - 200, expected):
        each = response.estimate(told, total)
        assert each.low == 0
        assert each.high >= shortest
    assert total - response.estimate(total, total).low >= shortest / 2


def test_of_no_events_nothing_is_known_and_of_a_large_epsilon_all() -> None:
    nothing = Response(10, 1.0).estimate(0, 0)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    sure = Response(10, MAX_EPSILON).estimate(40, 100)
    assert sure.value == pytest.approx(40, abs=1e-3)
    assert 39 <= sure.low <= 40 <= sure.high <= 41


@pytest.mark.parametrize(
    ("cells", "epsilon", "why"),
    [
        (1, 1.0, "two or more"),
        (2, 0.0, "0.01 to 20"),
        (2, 20.5, "0.01"),
        (2, math.nan, "nan"),
        (2, -1.0, "-1"),
    ],
)
def test_what_cannot_be_randomized_is_refused(cells: int, epsilon: float, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Response(cells, epsilon)


def test_counts_of_other_cells_are_refused() -> None:
    with pytest.raises(UsageError, match="3 counts for 2 cells"):
        Response(2, 1.0).randomize([1, 2, 3], stream(1))


PLAIN = Histogram("x", (0.0, 1.0), (3, 2, 1), 1.5)
HIDDEN = Histogram("x", (0.0, 1.0), (2, 2, 2), epsilon=1.0)


def test_without_an_epsilon_a_histogram_has_the_bytes_it_always_had() -> None:
    told = Histogram.empty("confidence", CONFIDENCE).observe([0.25, 0.5])
    known = pb.Histogram(name="confidence", scale=2, counts=told.counts, sum=0.75).SerializeToString()
    assert told.to_wire().SerializeToString() == known
    assert b"\x31" + np.float64(1.0).tobytes() in HIDDEN.to_wire().SerializeToString()
    for each in (PLAIN, HIDDEN):
        assert Histogram.from_wire(each.to_wire()) == each


def test_only_histograms_of_equal_epsilon_add() -> None:
    assert HIDDEN.merge(HIDDEN).counts == (4, 4, 4)
    for other in (PLAIN, Histogram("x", (0.0, 1.0), (1, 1, 1), epsilon=1.5)):
        with pytest.raises(UsageError, match="randomized otherwise"):
            HIDDEN.merge(other)


def test_a_randomized_histogram_tells_no_sum_and_passes_for_no_other() -> None:
    with pytest.raises(UsageError, match="tells the sum"):
        Histogram("x", (0.0, 1.0), (2, 2, 2), 1.0, 1.0)
    for epsilon in (-1.0, math.nan, math.inf, 1e-9, 1e9):
        with pytest.raises(UsageError, match="epsilon"):
            Histogram.from_wire(pb.Histogram(name="x", edges=[0.0], counts=[1, 1], epsilon=epsilon))
    assert HIDDEN.mean is None
    with pytest.raises(UsageError, match="randomized"):
        HIDDEN.quantile(0.5)
    with pytest.raises(UsageError, match="randomized"):
        HIDDEN.observe([1.0])


@pytest.mark.parametrize("cells", [2, 10, 1001])
def test_whole_numbers_travel_without_edges(cells: int) -> None:
    edges = tuple(number + 0.5 for number in range(cells - 1))
    histogram = Histogram("label", edges, tuple(range(cells)))
    message = histogram.to_wire()
    assert (message.scale, len(message.edges)) == (5, 0)
    assert Histogram.from_wire(message) == histogram


@pytest.mark.parametrize("counts", [0, 1, 2000])
def test_whole_numbers_of_no_cells_or_too_many_are_refused(counts: int) -> None:
    with pytest.raises(UsageError, match="edges"):
        Histogram.from_wire(pb.Histogram(name="label", scale=5, counts=[0] * counts))
