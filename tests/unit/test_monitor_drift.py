"""Drift: the figures against scipy, the tails against scipy, and false alarms and finds as often as stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import spatial, stats

from umbel_proto.errors import UsageError
from umbel_proto.histogram import CONFIDENCE, MAX_COUNT, Histogram
from umbel_proto.privacy.response import Response
from umbel_server.monitor import distance
from umbel_server.monitor.drift import LEVEL, Pair, compare, judge
from umbel_server.monitor.many import adjusted, combined
from umbel_server.monitor.sample import INFLUENCE, Sample
from umbel_server.monitor.tails import chi_square_above, chi_square_quantile, gamma_above, gamma_quantile

Counts = NDArray[np.int64]
EIGHT = tuple(float(edge) for edge in range(7))
SURE = 1e-4  # Chance that a test of frequencies fails although everything is right.


def sample(counts: Counts, epsilon: float | None = None) -> Sample:
    return Sample.of(Histogram("x", tuple(range(len(counts) - 1)), tuple(map(int, counts)), 0.0, epsilon))


def told(chance: np.random.Generator, shares: NDArray[np.float64], n: int, epsilon: float | None) -> Sample:
    """What devices tell of n values: the noise of a single value is a column of probabilities."""
    if epsilon is None:
        return sample(chance.multinomial(n, shares))
    noise = Response(len(shares), epsilon).other / 2**64
    return sample(chance.multinomial(n, noise + (1 - len(shares) * noise) * shares), epsilon)


@pytest.mark.parametrize("freedom", [0.7, 1.0, 2.0, 11.3, 23.0, 400.0, 4000.0])
@pytest.mark.parametrize("tail", [0.9, 0.3, 0.05, 1e-3, 1e-9])
def test_the_tails_are_those_of_scipy(freedom: float, tail: float) -> None:
    value = stats.chi2.isf(tail, freedom)
    assert chi_square_above(value, freedom) == pytest.approx(tail, rel=1e-8)
    assert chi_square_quantile(tail, freedom) == pytest.approx(value, rel=1e-7)
    assert gamma_above(gamma_quantile(tail, freedom), freedom) == pytest.approx(tail, rel=1e-6)


def test_the_tails_hold_at_both_ends() -> None:
    assert chi_square_above(0.0, 3) == chi_square_above(-1.0, 3) == 1.0
    assert chi_square_above(math.inf, 3) == chi_square_above(1e6, 3) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_adjusted_p_values_are_those_of_scipy(seed: int) -> None:
    p_values = np.random.default_rng(seed).random(12) ** 3
    assert adjusted(p_values.tolist()) == pytest.approx(stats.false_discovery_control(p_values).tolist())


def test_one_of_two_p_values_about_the_same_is_that_of_cauchys_distribution() -> None:
    pair = [0.003, 0.6]
    expected = stats.cauchy.sf(np.mean(stats.cauchy.isf(pair)))
    assert combined(pair) == pytest.approx(expected)
    assert combined([0.2, 0.2]) == pytest.approx(0.2)
    assert combined([0.0, 1.0]) < 1e-15
    assert combined([1.0, 1.0]) > 0.99


@pytest.mark.parametrize("seed", range(5))
def test_the_distances_are_those_of_scipy(seed: int) -> None:
    chance = np.random.default_rng(seed)
    left, right = chance.dirichlet(np.ones(24)), chance.dirichlet(np.ones(24))
    middles = distance.centers(CONFIDENCE)
    assert distance.jensen_shannon(left, right) == pytest.approx(
        spatial.distance.jensenshannon(left, right, base=2)
    )
    assert distance.wasserstein(left, right, np.diff(middles)) == pytest.approx(
        stats.wasserstein_distance(middles, middles, left, right)
    )
    assert distance.stability_index(left, right) == pytest.approx(
        stats.entropy(left, right) + stats.entropy(right, left)
    )
    assert distance.moved(left, right) == pytest.approx(np.maximum(left - right, 0).sum())


def test_the_quadratic_form_of_plain_counts_is_pearsons_test() -> None:
    left, right = np.array([120, 300, 80, 60]), np.array([60, 90, 50, 31])
    found = compare(Pair(sample(left), sample(right), None))
    assert found is not None
    both = np.stack([left, right])
    overall = stats.chi2_contingency(both).pvalue
    pooled, sizes = both.sum(0) / both.sum(), both.sum(1)
    off = np.abs(left / sizes[0] - right / sizes[1]) / np.sqrt(pooled * (1 - pooled) * (1 / sizes).sum())
    alone = 4 * 2 * stats.norm.sf(off.max())
    assert found.p_value == pytest.approx(combined([overall, alone]), rel=1e-9)
    expected = (1 / left.sum() + 1 / right.sum()) * stats.chi2.isf(LEVEL, 3)
    assert found.stability_index.threshold == pytest.approx(expected, rel=1e-6)


SHARES = {
    "even cells": np.full(8, 1 / 8),
    "a confidence": np.histogram(
        stats.beta(8, 2).ppf((np.arange(20000) + 0.5) / 20000), [-np.inf, *CONFIDENCE, np.inf]
    )[0]
    / 20000,
}


@pytest.mark.parametrize(
    ("n", "m", "epsilon"), [(10_000, 3000, None), (2000, 100, None), (3000, 3000, 1.0), (10_000, 3000, 2.0)]
)
@pytest.mark.parametrize("name", SHARES)
def test_false_alarms_are_as_frequent_as_stated(name: str, n: int, m: int, epsilon: float | None) -> None:
    """Of 500 comparisons in which nothing has changed; the bench looks at 2,000 fleets of a dozen features."""
    chance = np.random.default_rng(n + m)
    shares, edges = SHARES[name], EIGHT if name == "even cells" else CONFIDENCE
    reference_epsilon = epsilon if n == m else None
    alarms = 0
    for _ in range(500):
        pair = Pair(told(chance, shares, n, reference_epsilon), told(chance, shares, m, epsilon), edges)
        found = compare(pair)
        assert found is not None
        alarms += found.p_value <= LEVEL
    most = stats.binom.isf(SURE, 500, 1.5 * LEVEL)
    least = stats.binom.ppf(SURE, 500, LEVEL / 1.5)
    assert least <= alarms <= most


def test_a_fleet_that_has_not_changed_raises_any_alarm_as_rarely_as_stated() -> None:
    chance = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        pairs = {
            f"column.{number}": Pair(
                told(chance, SHARES["even cells"], 10_000, None),
                told(chance, SHARES["even cells"], 3000, None),
                EIGHT,
            )
            for number in range(5)
        }
        alarms += any(finding.drifted for finding in judge(pairs))
    assert alarms <= stats.binom.isf(SURE, 200, 1.5 * LEVEL)


def test_three_points_are_found_in_three_thousand_values() -> None:
    """A confidence 3 points lower on average, one of eleven features; a label of 13 % that was 10 %, asked alone."""
    chance = np.random.default_rng(3)
    values = np.clip(stats.beta(8, 2).ppf((np.arange(20000) + 0.5) / 20000) - 0.03, 0, 1)
    shifted = np.histogram(values, [-np.inf, *CONFIDENCE, np.inf])[0] / 20000
    label = np.full(10, 0.1)
    moved = np.array([0.13, *[0.87 / 9] * 9])
    finds = {"confidence": 0, "label": 0}
    others = {
        f"column.{number}": Pair(
            told(chance, SHARES["even cells"], 10_000, None),
            told(chance, SHARES["even cells"], 3000, None),
            EIGHT,
        )
        for number in range(10)
    }
    for _ in range(60):
        moving = {
            "confidence": Pair(
                told(chance, SHARES["a confidence"], 10_000, None),
                told(chance, shifted, 3000, None),
                CONFIDENCE,
            ),
            "label": Pair(told(chance, label, 10_000, None), told(chance, moved, 3000, None), None),
        }
        label_pair = {"label": moving.pop("label")}
        for finding in (*judge(others | moving), *judge(label_pair)):
            if finding.feature in finds:
                finds[finding.feature] += finding.drifted
    assert min(finds.values()) >= stats.binom.ppf(SURE, 60, 0.9)


def test_of_a_hundred_million_values_a_trifle_is_certain_and_no_finding() -> None:
    before, after = np.full(8, 12_500_000), np.full(8, 12_500_000)
    after[0] += 50_000
    after[1] -= 50_000
    (finding,) = judge({"x": Pair(sample(before), sample(after), EIGHT)})
    assert finding.adjusted is not None
    assert finding.adjusted < 1e-6
    assert not finding.drifted
    assert "less than the 1.0%" in finding.why


def devices(chance: np.random.Generator, count: int, spread: float) -> list[Histogram]:
    """Devices of 200 values each, which differ by a Dirichlet distribution; the larger the spread, the less."""
    shares = chance.dirichlet(np.full(8, spread / 8), count)
    return [Histogram("x", EIGHT, tuple(map(int, chance.multinomial(200, each))), 0.0) for each in shares]


def test_devices_that_differ_are_worth_fewer_values() -> None:
    """A Dirichlet-multinomial of n values has 1 + (n - 1) / (spread + 1) times the variance: its design effect."""
    chance = np.random.default_rng(1)
    found = Sample.of_devices(devices(chance, 2000, 20.0))
    assert found.count / found.values == pytest.approx(1 + 199 / 21, rel=0.1)
    alike = [
        Histogram("x", EIGHT, tuple(map(int, chance.multinomial(200, np.full(8, 1 / 8)))))
        for _ in range(2000)
    ]
    assert Sample.of_devices(alike).values == pytest.approx(400_000, rel=0.05)


def test_devices_that_differ_raise_no_more_false_alarms() -> None:
    chance = np.random.default_rng(2)
    alarms = 0
    for _ in range(200):
        pair = Pair(
            Sample.of_devices(devices(chance, 60, 20.0)), Sample.of_devices(devices(chance, 40, 20.0)), EIGHT
        )
        found = compare(pair)
        assert found is not None
        alarms += found.p_value <= LEVEL
    assert stats.binom.ppf(SURE, 200, LEVEL / 1.5) <= alarms <= stats.binom.isf(SURE, 200, 1.5 * LEVEL)


def test_one_device_with_a_huge_count_is_not_the_fleet() -> None:
    honest = [Histogram("x", EIGHT, (25,) * 8) for _ in range(99)]
    liar = Histogram("x", EIGHT, (MAX_COUNT, *(0,) * 7))
    found = Sample.of_devices([*honest, liar])
    assert found.limited == 1
    assert found.told[0] == pytest.approx((99 * 25 + INFLUENCE * 200) / (99 * 200 + INFLUENCE * 200))
    (finding,) = judge({"x": Pair(sample(np.full(8, 2500)), found, EIGHT)})
    assert not finding.drifted


def test_nothing_is_said_of_next_to_nothing() -> None:
    none = Sample.of_devices([Histogram("x", EIGHT, (0,) * 8)])
    one = sample(np.array([10_000, *(0,) * 7]))
    findings = judge({"none": Pair(one, none, EIGHT), "one cell": Pair(one, one, EIGHT)})
    assert [finding.comparison for finding in findings] == [None, None]
    assert ["independent" in findings[0].why, findings[1].why] == [True, "all values are in one cell"]


def test_samples_of_other_cells_are_not_compared() -> None:
    with pytest.raises(UsageError, match="different cells"):
        Pair(sample(np.full(8, 9)), sample(np.full(7, 9)), None)
    with pytest.raises(UsageError, match="different edges"):
        Sample.of_devices([Histogram("x", (0.0,), (1, 1)), Histogram("x", (1.0,), (1, 1))])
