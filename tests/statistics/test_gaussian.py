"""Normal noise and Poisson draws, of fixed keys. Each test would raise a false alarm for one key in 1e9."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from umbel_proto.errors import UsageError
from umbel_proto.prg import Keystream
from umbel_proto.privacy import normal
from umbel_proto.privacy.gaussian import GRAINS, GRID_BITS, deviation_of, draw, noised, poisson_sample
from umbel_proto.privacy.normal import Normal, gaussian

ALARM = 1e-9


def stream(number: int) -> Keystream:
    return Keystream(number.to_bytes(32, "big"))


def chi_square_holds(values: np.ndarray, variance: float) -> bool:
    """Whether the sum of squares lies within the chi-square quantiles at ALARM, two-sided."""
    statistic = float((values**2).sum()) / variance
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], len(values))
    return bool(low < statistic < high)


def test_the_variance_is_1() -> None:
    draws = gaussian(1_000_001, stream(1))
    assert draws.shape == (1_000_001,)
    assert chi_square_holds(draws, 1.0)
    # The test sees what it is there to see: half a percent.
    assert not chi_square_holds(draws * 1.005, 1.0)
    assert abs(draws.mean()) < stats.norm.isf(ALARM / 2) / 1000


def test_the_law_is_normal() -> None:
    draws = gaussian(400_000, stream(2))
    assert stats.kstest(draws, "norm").pvalue > ALARM
    # Far out a Kolmogorov test is blind: count the tails.
    for edge in (2.0, 3.0, 4.0):
        share = 2 * stats.norm.sf(edge)
        assert stats.binomtest(int((np.abs(draws) > edge).sum()), len(draws), share).pvalue > ALARM


def test_draws_are_independent() -> None:
    draws = gaussian(400_000, stream(3))
    for lag in (1, 2, 1 << 15, 1 << 17):  # neighbors, pieces of keystream, draws
        correlation = float(np.mean(draws[:-lag] * draws[lag:]))
        assert abs(correlation) < stats.norm.isf(ALARM / 2) / math.sqrt(len(draws) - lag)
        squares = float(np.mean((draws[:-lag] ** 2 - 1) * (draws[lag:] ** 2 - 1))) / 2
        assert abs(squares) < 2 * stats.norm.isf(ALARM / 2) / math.sqrt(len(draws) - lag)


@pytest.mark.parametrize("layer", [1, 100, 400, 511])
def test_of_a_layers_values_beyond_its_edge_those_under_the_curve_are_kept(layer: int) -> None:
    """They are a two-hundredth of all: that of all values would hardly show whether they are."""
    edges, heights = normal._layers()
    inner, outer, low, high = edges[layer + 1], edges[layer], heights[layer], heights[layer + 1]
    x = np.linspace(inner, outer, 100_000)
    every = np.arange(len(x))
    refused = Normal(1)._settle(x, every, np.full(len(x), layer, np.intp), stream(10))
    kept = np.ones(len(x), bool)
    kept[refused] = False
    share = (np.sqrt(2 * np.pi) * stats.norm.pdf(x) - low) / (high - low)
    for half in (x < (inner + outer) / 2, x >= (inner + outer) / 2):
        lacking = kept[half].sum() - share[half].sum()
        deviation = math.sqrt((share[half] * (1 - share[half])).sum())
        assert abs(lacking) < stats.norm.isf(ALARM / 2) * deviation


def test_the_tail_is_that_of_the_law() -> None:
    values = normal._tail(100_000, 3.0, stream(11))
    assert len(values) == 100_000
    assert stats.kstest(values, stats.truncnorm(3.0, np.inf).cdf).pvalue > ALARM


def test_beyond_the_lowest_layer_draws_are_of_the_tail() -> None:
    edge = float(normal._TAIL)
    draws = np.abs(gaussian(4_000_000, stream(15)))
    beyond = draws[draws > edge]
    assert stats.binomtest(len(beyond), len(draws), 2 * stats.norm.sf(edge)).pvalue > ALARM
    assert stats.kstest(beyond, stats.truncnorm(edge, np.inf).cdf).pvalue > ALARM


def test_what_is_refused_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies beyond its layer's edge is refused here: more than there is to spare, now and then."""

    def refuse(_self: Normal, x: np.ndarray, late: np.ndarray, *_: object) -> np.ndarray:
        x[late] = np.nan
        return late

    monkeypatch.setattr(Normal, "_settle", refuse)
    draws = gaussian(400_000, stream(16))
    assert np.isfinite(draws).all()
    assert len(np.unique(draws)) == len(draws)


def test_the_layers_have_equal_areas_and_end_under_the_curve() -> None:
    """By another library, in forty digits: every edge is right to the last bit of a float64."""
    edges, heights = normal._layers()
    assert edges.shape == heights.shape == (normal._LAYERS + 1,)
    with mpmath.workdps(40):
        tail, area = mpmath.mpf(normal._TAIL), mpmath.mpf(normal._AREA)
        beyond = mpmath.sqrt(mpmath.pi / 2) * mpmath.erfc(tail / mpmath.sqrt(2))
        assert abs(tail * mpmath.exp(-tail * tail / 2) + beyond - area) < mpmath.mpf(10) ** -30
        edge, height = tail, mpmath.exp(-tail * tail / 2)
        assert edges[0] == float(area / height)
        for layer in range(1, normal._LAYERS):
            assert (edges[layer], heights[layer]) == (float(edge), float(height))
            height += area / edge
            edge = mpmath.sqrt(-2 * mpmath.log(height)) if height < 1 else mpmath.mpf(0)
        assert abs(height - 1) < mpmath.mpf(10) ** -25
    assert (edges[-1], heights[0], heights[-1]) == (0.0, 0.0, 1.0)


def test_no_value_is_there_twice() -> None:
    """A piece of words that no stream filled would give the values of another draw again."""
    draws = Normal(normal.MOST)
    one = draws.draw(normal.MOST, stream(12)).copy()
    other = draws.draw(normal.MOST, stream(13))
    assert len(np.unique(np.abs(np.concatenate([one, other])))) == 2 * normal.MOST


def test_values_that_are_drawn_anew_have_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normal, "_spare", lambda count: 0)
    draws = gaussian(400_000, stream(14))
    assert len(np.unique(draws)) == len(draws)
    assert stats.kstest(draws, "norm").pvalue > ALARM


def test_extreme_words_give_finite_draws() -> None:
    class Words(Keystream):
        def read_into(self, out: np.ndarray) -> None:
            if (
                len(out) < 600
            ):  # Few words choose heights and tails, of which extreme ones are refused for ever.
                super().read_into(out)
            else:
                out[:-16] = np.resize(np.array([0, 2**64 - 1, 2**63, 1], "<u8"), len(out) // 8 - 2).view(
                    np.uint8
                )

    draws = gaussian(64, Words())
    assert np.isfinite(draws).all()
    assert np.abs(draws).max() <= 14


@pytest.mark.parametrize("deviation", [1e-6, 0.3, 1.0, 1.9999, 700.0])
def test_what_is_released_lies_on_the_grid_and_has_the_variance(deviation: float) -> None:
    total = np.linspace(-5, 5, 200_000) * deviation
    released = noised(total, deviation=deviation, stream=stream(4))
    grid = 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)
    assert grid <= deviation / 2**GRID_BITS
    np.testing.assert_array_equal(np.rint(released / grid) * grid, released)
    assert chi_square_holds(released - total, deviation**2)


def test_noise_may_be_put_where_the_sum_was() -> None:
    total = np.linspace(-5, 5, 50_001).astype(np.float32)
    apart = noised(total, deviation=0.5, stream=stream(4))
    assert apart.dtype == np.float64
    inside = total.copy()
    assert noised(inside, deviation=0.5, stream=stream(4), out=inside) is inside
    np.testing.assert_array_equal(inside, apart.astype(np.float32))


def test_noise_is_never_drawn_twice() -> None:
    fresh = Keystream()
    one, two = (noised(np.zeros(1000), deviation=1.0, stream=fresh) for _ in range(2))
    other = noised(np.zeros(1000), deviation=1.0, stream=Keystream())
    for left, right in ((one, two), (one, other), (two, other)):
        assert (left == right).sum() < 10


@pytest.mark.parametrize("dim", [1, 16_385, 300_001])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_what_was_drawn_before_is_the_noise_of_the_first_coordinates_and_of_no_other(
    dim: int, share: float
) -> None:
    total, ready = np.zeros(dim), np.empty(int(share * dim), np.int32)
    draw(ready, Normal(dim), stream(6))
    count = len(ready)
    released = noised(total, deviation=1.0, stream=stream(4), drawn=ready)
    np.testing.assert_array_equal(released[:count], np.rint(ready / GRAINS * 2.0**GRID_BITS) / 2.0**GRID_BITS)
    rest = noised(np.zeros(dim - count), deviation=1.0, stream=stream(4))
    np.testing.assert_array_equal(released[count:], rest)


@given(
    totals=arrays(np.float32, 64, elements=st.floats(-1e4, 1e4, width=32)),
    apart=arrays(np.float32, 64, elements=st.floats(-1, 1, width=32)),
    noise=st.floats(1e-3, 1e4),
    clip=st.floats(1e-3, 1e3),
    seed=st.integers(0, 255),
)
def test_noise_shifts_a_sum_by_whole_grains_and_the_deviation_covers_what_they_add(
    totals: np.ndarray, apart: np.ndarray, noise: float, clip: float, seed: int
) -> None:
    """With the same noise two sums' releases differ as the sums in whole grains do, whatever the noise, and those
    are no further apart than the deviation allows for: noise times what one example can move."""
    apart = apart * np.float32(clip / max(np.linalg.norm(apart.astype(float)), 1e-3) / 1.001)
    deviation = deviation_of(noise, clip, 64)
    grain = deviation / GRAINS
    one, two = (
        np.rint(total * (1 / grain)) for total in (totals.astype(float), (totals + apart).astype(float))
    )
    moved = np.linalg.norm((totals + apart).astype(float) - totals.astype(float))
    assert np.linalg.norm((one - two) * grain) <= moved + 8 * grain * (1 + 1e-6) + 1e-9 * clip
    assert noise * (clip + 8 * grain) <= deviation * (1 + 1e-12)
    ready = np.empty(64, np.int32)
    draw(ready, Normal(64), stream(seed))
    grid = 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)
    for total, whole in ((totals, one), (totals + apart, two)):
        released = noised(total, deviation=deviation, stream=stream(4), drawn=ready)
        np.testing.assert_array_equal(released, np.rint((whole + ready) * (grain / grid)) * grid)


def test_drawn_noise_is_normal_in_whole_grains_and_fits_into_32_bits() -> None:
    ready = np.empty(200_000, np.int32)
    draw(ready, Normal(len(ready)), stream(9))
    assert stats.kstest(ready / GRAINS, "norm").pvalue > ALARM
    assert 14 * GRAINS < 2**31  # No draw exceeds 14.


def test_drawn_ahead_or_at_once_it_is_the_same_release() -> None:
    """Of three million values some thirty would lie in another cell of the grid if noise were not in whole grains."""
    total, ready = np.linspace(-5, 5, 3_000_000).astype(np.float32), np.empty(3_000_000, np.int32)
    draw(ready, Normal(len(ready)), stream(4))
    ahead = noised(total, deviation=0.7, stream=stream(5), drawn=ready)
    np.testing.assert_array_equal(noised(total, deviation=0.7, stream=stream(4)), ahead)


def test_noise_that_leaves_no_room_for_grains_is_refused() -> None:
    with pytest.raises(UsageError, match="choose a lower one"):
        deviation_of(1e4, 1.0, 10**9)
    assert deviation_of(1.1, 1.0, 6_603_710) < 1.1 * 1.0001


@pytest.mark.parametrize("rate", [1e-9, 0.01, 0.37, 0.999999])
def test_every_example_is_drawn_at_the_rate(rate: float) -> None:
    count, rounds = 1000, 400
    chance = stream(5)
    drawn = np.zeros(count, int)
    for _ in range(rounds):
        drawn[poisson_sample(count, rate, chance)] += 1
    assert stats.binomtest(int(drawn.sum()), count * rounds, rate).pvalue > ALARM
    for example in (0, 1, count - 1):
        assert stats.binomtest(int(drawn[example]), rounds, rate).pvalue > ALARM


def test_draws_of_two_examples_are_independent() -> None:
    chance = stream(6)
    together = 0
    for _ in range(20_000):
        together += {0, 1} <= set(poisson_sample(2, 0.5, chance).tolist())
    assert stats.binomtest(together, 20_000, 0.25).pvalue > ALARM


def test_at_rate_1_everyone_is_drawn() -> None:
    np.testing.assert_array_equal(poisson_sample(5, 1.0, stream(7)), np.arange(5))
