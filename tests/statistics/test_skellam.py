"""The sampler's law: its table exactly, its inversion exactly, its draws by test.

The keystreams of the tests on draws are fixed, so they pass or fail for good. With fresh keys each
of their checks would raise a false alarm with probability 1e-6. The exception is the test of many
encodings, whose keys are fresh: it does raise one that often.
"""

from __future__ import annotations

import bisect
import decimal
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from umbel_proto.errors import UsageError
from umbel_proto.prg import Keystream
from umbel_proto.privacy.encode import Encoding, encode
from umbel_proto.privacy.skellam import MAX_VARIANCE, PRECISION, SkellamSampler, _table, skellam_pmf
from umbel_proto.privacy.slots import unpack

FALSE_ALARM = 1e-6
VARIANCES = [
    Fraction(1, 1 << 20),
    Fraction(1, 100),
    Fraction(3, 8),
    Fraction(7, 3),
    Fraction(100),
    Fraction(158**2),
    Fraction(1 << 20),
    Fraction(MAX_VARIANCE),
]
variances = pytest.mark.parametrize("variance", VARIANCES, ids=lambda variance: f"{float(variance):g}")


class Script(Keystream):
    """A keystream that says what it is told, to reach draws that chance reaches once in 2**50."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)

    def read(self, size: int) -> NDArray[np.uint8]:
        chunk = self.chunks.pop(0)
        assert len(chunk) == size
        return np.frombuffer(chunk, np.uint8)


def test_the_table_is_the_known_answer() -> None:
    assert skellam_pmf(Fraction(100))[0] / 2**PRECISION == pytest.approx(0.03994437929909668, rel=1e-15)


@variances
def test_the_table_is_scipys(variance: Fraction) -> None:
    pmf = skellam_pmf(variance)
    ours = np.array([value / 2**PRECISION for value in pmf])
    theirs = special.ive(np.arange(len(pmf)), float(variance))
    assert np.abs(ours - theirs).max() < 1e-12


@pytest.mark.parametrize("variance", [Fraction(1, 100), Fraction(7, 3), Fraction(100)])
def test_the_table_is_within_two_to_the_minus_115_of_the_law(variance: Fraction) -> None:
    pmf = skellam_pmf(variance)
    with decimal.localcontext(prec=120):
        half = decimal.Decimal(variance.numerator) / (2 * variance.denominator)
        powers = [half**order / math.factorial(order) for order in range(2 * len(pmf) + 400)]
        law = [
            (-2 * half).exp() * sum(map(lambda a, b: a * b, powers, powers[value:]))
            for value in range(len(pmf))
        ]
        distance = abs(law[0] - decimal.Decimal(pmf[0]) / 2**PRECISION)
        distance += 2 * sum(
            abs(exact - decimal.Decimal(ours) / 2**PRECISION)
            for exact, ours in zip(law[1:], pmf[1:], strict=True)
        )
        beyond = 1 - law[0] - 2 * sum(law[1:])
        # What is missing from the table goes to one value, and counts once more there.
        assert (distance + 2 * beyond) / 2 < decimal.Decimal(2) ** -115


@variances
def test_the_table_sums_to_one_and_has_the_variance(variance: Fraction) -> None:
    pmf = skellam_pmf(variance)
    total = Fraction(pmf[0] + 2 * sum(pmf[1:]), 1 << PRECISION)
    second = Fraction(2 * sum(value**2 * mass for value, mass in enumerate(pmf)), 1 << PRECISION)
    assert 0 <= 1 - total < Fraction(1, 1 << 115)
    assert 0 <= variance - second < Fraction(1, 1 << 80)


@variances
def test_the_table_obeys_the_recurrence_of_bessel_functions(variance: Fraction) -> None:
    pmf = skellam_pmf(variance)
    for value, (below, here, above) in enumerate(zip(pmf, pmf[1:], pmf[2:], strict=False), start=1):
        factor = 2 * value / variance
        assert abs(below - above - factor * here) <= 2 + factor


@given(st.sampled_from(VARIANCES[:-1]), st.data())
def test_a_draw_inverts_the_distribution_function_exactly(variance: Fraction, data: st.DataObject) -> None:
    table = _table(variance)
    boundary = data.draw(st.sampled_from(table.ends[:-1]))
    near = st.integers(-3, 3).map(lambda offset: boundary + offset)
    same_head = st.integers(0, 2**96 - 1).map(lambda tail: (boundary >> 96 << 96) + tail)
    uniform = data.draw(st.one_of(near, same_head, st.integers(0, 2**PRECISION - 1)))
    uniform = min(max(uniform, 0), 2**PRECISION - 1)
    expected = table.lowest + bisect.bisect_right(table.ends, uniform)
    head = uniform >> 144
    middle = (uniform >> 96) % 2**48
    script = Script(
        head.to_bytes(2, "little"),
        (middle << 16 | 0xBEEF).to_bytes(8, "little"),
        (uniform % 2**96).to_bytes(12, "little"),
    )
    assert SkellamSampler(variance).sample(1, script).tolist() == [expected]


def test_the_ends_of_the_uniform_give_the_ends_of_the_table() -> None:
    table = _table(Fraction(100))
    for byte, end in ((b"\x00", table.lowest), (b"\xff", -table.lowest)):
        script = Script(byte * 2, byte * 8, byte * 12)
        assert SkellamSampler(Fraction(100)).sample(1, script).tolist() == [end]


@variances
def test_the_distribution_function_climbs_to_one_and_is_symmetric(variance: Fraction) -> None:
    ends = _table(variance).ends
    assert ends[-1] == 1 << PRECISION
    assert all(low < high for low, high in itertools.pairwise(ends))
    assert len(ends) == 1 - 2 * _table(variance).lowest


def pooled(expected: NDArray[np.float64], least: float) -> NDArray[np.int64]:
    """Return a bin for each value, so that neighbors share one until it expects ``least`` draws."""
    left = np.cumsum(expected[::-1])[::-1]
    bins, number, held = np.zeros(expected.size, np.int64), 0, 0.0
    for place, mass in enumerate(expected):
        if held >= least and left[place] >= least:
            number, held = number + 1, 0.0
        bins[place] = number
        held += mass
    return bins


def chi_square_tail(draws: NDArray[np.integer], pmf: NDArray[np.float64], lowest: int) -> float:
    """Return the probability of a statistic this large; ``pmf`` starts at ``lowest`` and covers nearly all."""
    expected = draws.size * pmf
    observed = np.bincount(np.clip(draws - lowest, 0, pmf.size - 1), minlength=pmf.size)
    bins = pooled(expected, least=20)
    observed, expected = np.bincount(bins, observed), np.bincount(bins, expected)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return float(stats.chi2.sf(statistic, expected.size - 1))


@pytest.mark.parametrize("variance", VARIANCES[1:], ids=lambda variance: f"{float(variance):g}")
def test_draws_pass_a_chi_square_test(variance: Fraction) -> None:
    count = 1 << 20
    draws = SkellamSampler(variance).sample(count, Keystream(bytes(range(32))))
    half = [value / 2**PRECISION for value in skellam_pmf(variance)]
    tail = chi_square_tail(draws, np.array([*half[:0:-1], *half]), 1 - len(half))
    assert FALSE_ALARM / 2 < tail < 1 - FALSE_ALARM / 2


@variances
def test_draws_have_the_moments_of_the_law(variance: Fraction) -> None:
    count, v = 1 << 20, float(variance)
    draws = SkellamSampler(variance).sample(count, Keystream(bytes(range(1, 33)))).astype(float)
    # The fourth central moment of the law is v + 3 v**2, the sixth v + 15 v**2 (1 + ..) + 15 v**3.
    deviations = stats.norm.isf(FALSE_ALARM / 2)
    rare = 20 / count  # with few draws off 0 the normal law does not apply: allow a Poisson's reach
    assert abs(draws.mean()) < deviations * math.sqrt(v / count) + rare
    assert abs(np.mean(draws**2) - v) < deviations * math.sqrt((v + 2 * v**2) / count) + rare


@pytest.mark.parametrize("variance", VARIANCES[1:6], ids=lambda variance: f"{float(variance):g}")
def test_draws_follow_scipys_law(variance: Fraction) -> None:
    draws = SkellamSampler(variance).sample(1 << 20, Keystream(bytes(range(2, 34))))
    reach = -_table(variance).lowest
    law = stats.skellam(float(variance) / 2, float(variance) / 2)
    assert chi_square_tail(draws, law.pmf(np.arange(-reach, reach + 1)), -reach) > FALSE_ALARM


@pytest.mark.parametrize("variance", VARIANCES[5:], ids=lambda variance: f"{float(variance):g}")
def test_wide_draws_are_as_near_to_normal_as_the_law_is(variance: Fraction) -> None:
    """A Kolmogorov-Smirnov test: scipy's own Skellam is slow and inexact that far out."""
    count, v = 1 << 20, float(variance)
    draws = SkellamSampler(variance).sample(count, Keystream(bytes(range(3, 35))))
    # Jitter makes the integers continuous. What is left of the law then differs from the normal one by 1 / 24 v
    # in its distribution function (Edgeworth), which at these variances is nothing.
    smooth = draws + np.random.default_rng(0).uniform(-0.5, 0.5, count)
    assert stats.kstest(smooth, stats.norm(scale=math.sqrt(v + 1 / 12)).cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    ("share", "shares"),
    [(Fraction(6, 5), 5), (Fraction(1, 100), 50), (Fraction(100), 7), (Fraction(1, 3), 3)],
)
def test_sums_of_shares_follow_the_law_of_the_summed_variance(share: Fraction, shares: int) -> None:
    stream, count = Keystream(bytes(32)), 1 << 18
    total = sum(SkellamSampler(share).sample(count, stream) for _ in range(shares))
    whole = [value / 2**PRECISION for value in skellam_pmf(share * shares)]
    pmf = np.array([*whole[:0:-1], *whole])
    assert chi_square_tail(np.asarray(total), pmf, 1 - len(whole)) > FALSE_ALARM


def test_the_noise_of_devices_and_of_sessions_is_independent() -> None:
    """Of 16 encodings of nothing, each with fresh randomness, no two have anything in common."""
    encoding = Encoding(1 << 16, 1 << 16, 32, 1.0, 100.0, 100**2 + (1 << 15), Fraction(100))
    nothing = np.zeros(encoding.dim, np.float32)
    words = [encode(nothing, encoding, rotation_seed=bytes(32)).words for _ in range(16)]
    noise = np.array([unpack(each, encoding.bits, encoding.padded) for each in words], float)
    pairs = np.triu_indices(16, 1)
    # The normal law holds for a correlation of 65,536 values, to all of the 120 pairs at once.
    limit = stats.norm.isf(FALSE_ALARM / 2 / pairs[0].size) / math.sqrt(encoding.dim)
    assert np.abs(np.corrcoef(noise)[pairs]).max() < limit
    # Nor are squares, or one shifted against another.
    assert np.abs(np.corrcoef(noise**2)[pairs]).max() < limit
    for lag in (1, 2, encoding.dim // 2):
        shifted = np.roll(noise, lag, axis=1)
        assert np.abs(np.corrcoef(noise, shifted)[:16, 16:]).max() < limit * 1.1


def test_draws_are_independent_of_their_neighbors() -> None:
    count = 1 << 20
    draws = SkellamSampler(Fraction(100)).sample(count, Keystream(bytes(32))).astype(float)
    for lag in (1, 2, 3, 4, 16):
        correlation = np.mean(draws[lag:] * draws[:-lag]) / 100
        assert abs(correlation) < stats.norm.isf(FALSE_ALARM / 2) / math.sqrt(count)


def test_a_table_is_made_once_for_a_variance() -> None:
    assert SkellamSampler(Fraction(50))._table is SkellamSampler(Fraction(100, 2))._table


def test_no_draws_are_an_empty_array() -> None:
    assert SkellamSampler(Fraction(50)).sample(0, Keystream(bytes(32))).shape == (0,)


@pytest.mark.parametrize("variance", [Fraction(0), Fraction(-1), Fraction(MAX_VARIANCE + 1)])
def test_a_variance_out_of_range_is_refused(variance: Fraction) -> None:
    with pytest.raises(UsageError, match="variance"):
        SkellamSampler(variance)
