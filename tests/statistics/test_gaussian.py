"""Normal noise and Poisson draws, of fixed keys. Each test would raise a false alarm for one key in 1e9."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from umbel_proto.prg import Keystream
from umbel_proto.privacy.gaussian import GRID_BITS, gaussian, noised, poisson_sample

ALARM = 1e-9


def stream(number: int) -> Keystream:
    return Keystream(number.to_bytes(32, "big"))


def chi_square_holds(values: np.ndarray, variance: float) -> bool:
    """Whether the sum of squares lies within the chi-square quantiles at ALARM, two-sided."""
    statistic = float((values**2).sum()) / variance
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], len(values))
    return bool(low < statistic < high)


def test_the_variance_is_1() -> None:
    draws = gaussian(1_000_001, stream(1))  # an odd number: the last pair is cut
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
    for lag in (1, 2, 1 << 13, 1 << 14):  # neighbors, partners of a pair, blocks
        correlation = float(np.mean(draws[:-lag] * draws[lag:]))
        assert abs(correlation) < stats.norm.isf(ALARM / 2) / math.sqrt(len(draws) - lag)
        squares = float(np.mean((draws[:-lag] ** 2 - 1) * (draws[lag:] ** 2 - 1))) / 2
        assert abs(squares) < 2 * stats.norm.isf(ALARM / 2) / math.sqrt(len(draws) - lag)


def test_extreme_words_give_finite_draws() -> None:
    class Words(Keystream):
        def uint64(self, count: int) -> np.ndarray:
            return np.resize(np.array([0, 2**64 - 1, 2**63, 1], np.uint64), count)

    draws = gaussian(64, Words())
    assert np.isfinite(draws).all()
    assert np.abs(draws).max() <= math.sqrt(2 * 64 * math.log(2)) + 1e-9


def test_draws_are_box_and_mullers_to_the_last_bits_of_a_float64() -> None:
    """In extended precision from the same words; the spec (9.6) counts on 2**-52 in the mean."""
    count = 1 << 14
    words = stream(8).uint64(count)
    radius, angle = words[: count // 2], words[count // 2 :]
    one = np.longdouble(1)
    length = np.sqrt(-2 * np.log((radius + one) / np.longdouble(2) ** 64))
    # The high 62 bits, signed, are an angle about the diagonal; the low two choose the quadrant.
    turn = np.longdouble(angle.view(np.int64) >> 2) / np.longdouble(2) ** 61 / 8 + one / 8
    two_pi = 2 * np.longdouble("3.14159265358979323846264338327950288")
    signs = [1 - 2 * ((angle >> np.uint64(bit)) & np.uint64(1)).astype(int) for bit in (0, 1)]
    expected = np.concatenate(
        [length * np.cos(two_pi * turn) * signs[0], length * np.sin(two_pi * turn) * signs[1]]
    )
    error = np.abs(gaussian(count, stream(8)) - expected)
    assert float(error.mean()) < 2.0**-52
    assert float(error.max()) < 2.0**-48


def test_the_angles_of_pairs_are_uniform() -> None:
    draws = gaussian(1 << 14, stream(9)).reshape(2, -1)
    assert stats.kstest(np.arctan2(*draws) / (2 * np.pi) + 0.5, "uniform").pvalue > ALARM


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
