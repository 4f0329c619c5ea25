"""Bounds that hold however often somebody looks: against scipy, the martingale itself, and a million peeks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from umbel_server.rollouts.interval import (
    difference,
    mixture_boundary,
    share_evidence,
    student_quantile,
)


@pytest.mark.parametrize("freedom", [1.0, 1.7, 2.0, 3.0, 4.4, 8.0, 30.5, 400.0, math.inf])
@pytest.mark.parametrize("tail", [0.5, 0.05, 1e-3, 1e-5, 1e-8])
def test_the_quantile_is_that_of_students_t(tail: float, freedom: float) -> None:
    expected = stats.norm.isf(tail / 2) if math.isinf(freedom) else stats.t.isf(tail / 2, freedom)
    assert student_quantile(tail, freedom) == pytest.approx(expected, rel=0.02 if freedom < 2 else 2e-3)


@pytest.mark.parametrize("error", [0.05, 0.001])
@pytest.mark.parametrize("n", [1, 5, 40, 3000])
def test_at_the_boundary_the_mixture_martingale_is_one_over_the_error(n: int, error: float) -> None:
    tuned = 10.0
    rho2 = (-2 * math.log(error) + math.log(-2 * math.log(error) + 1)) / tuned
    sum_ = mixture_boundary(n, error=error, tuned=tuned) * math.sqrt(n)
    rho = math.sqrt(rho2)

    def integrand(x: float) -> float:
        return float(math.exp(x * sum_ - x * x * n / 2) * stats.norm.pdf(x, scale=rho))

    peak = sum_ / n
    width = 12 / math.sqrt(n)
    found = integrate.quad(integrand, peak - width, peak + width, points=[peak, 0.0], limit=400)[0]
    assert found == pytest.approx(1 / error, rel=1e-3)


def test_the_boundary_is_narrowest_about_where_it_is_tuned() -> None:
    widths = {n: mixture_boundary(n, error=0.01, tuned=50) / math.sqrt(n) for n in (5, 50, 500)}
    at_tuned = {tuned: mixture_boundary(50, error=0.01, tuned=tuned) for tuned in (5, 25, 50, 100, 500)}
    assert min(at_tuned, key=at_tuned.__getitem__) == 50
    assert widths[5] > widths[50] > widths[500]


def test_one_look_is_wider_than_welchs_interval_and_of_its_shape() -> None:
    chance = np.random.default_rng(1)
    left, right = chance.normal(1, 2, 12), chance.normal(0, 1, 30)
    found = difference(left, right, error=0.01, tuned=8.6)
    welch = stats.ttest_ind(left, right, equal_var=False)
    narrow = welch.confidence_interval(0.99)
    assert found.low < narrow.low < narrow.high < found.high
    # The same standard error and degrees of freedom, at another tail.
    z = mixture_boundary(1 / (1 / 12 + 1 / 30), error=0.01, tuned=8.6)
    same = welch.confidence_interval(1 - 2 * stats.norm.sf(z))
    assert (found.low, found.high) == pytest.approx((same.low, same.high), rel=2e-3)


def test_values_that_are_all_alike_are_known_no_better_than_the_floor_says() -> None:
    found = difference(np.zeros(10), np.zeros(10), error=0.05, tuned=5, floor=0.04)
    assert found.high == pytest.approx(
        0.2 * student_quantile(2 * stats.norm.sf(mixture_boundary(5, error=0.05, tuned=5)), math.inf),
        rel=1e-3,
    )


@pytest.mark.parametrize(("m", "n", "noise"), [(5, 5, 1.0), (5, 200, 0.1), (40, 40, 1.0)])
def test_looking_all_the_time_does_not_make_false_alarms(m: int, n: int, noise: float) -> None:
    """Devices differ, and report every hour; after each third of 60 hours somebody looks. 1,000 rollouts, no effect.

    The level is 5 %. With a true rate of 5 % more than 73 alarms have chance 1e-3; at each single look an ordinary
    interval gives 50, and over all looks several times as many.
    """
    chance = np.random.default_rng(m * n)
    alarms = 0
    for _ in range(1000):
        devices = chance.normal(0, 1, m + n)
        reports = devices[:, None] + chance.normal(0, noise * 4, (m + n, 60))
        means = np.cumsum(reports, axis=1) / np.arange(1, 61)
        alarms += any(
            difference(means[:m, hour], means[m:, hour], error=0.05, tuned=5).low > 0
            for hour in range(0, 60, 3)
        )
    assert alarms <= 73


def test_looking_while_devices_arrive_does_not_make_false_alarms() -> None:
    """A device of each side arrives at a time, up to 150, and somebody looks each time. 1,000 rollouts, no effect."""
    chance = np.random.default_rng(3)
    alarms = 0
    for _ in range(1000):
        left, right = chance.normal(0, 1, (2, 150))
        found = (difference(left[:k], right[:k], error=0.05, tuned=5) for k in range(5, 151, 5))
        alarms += any(each.low > 0 or each.high < 0 for each in found)
    assert alarms <= 73  # 5 % of 1,000; more than 73 have chance 1e-3.


@pytest.mark.parametrize(("hits", "n", "share"), [(3, 5, 0.05), (20, 100, 0.1), (1, 300, 0.01)])
def test_the_evidence_is_the_even_mixture_of_likelihood_ratios(hits: int, n: int, share: float) -> None:
    def ratio(p: float) -> float:
        return float((p / share) ** hits * ((1 - p) / (1 - share)) ** (n - hits)) / (1 - share)

    assert share_evidence(hits, n, share=share) == pytest.approx(integrate.quad(ratio, share, 1)[0], rel=1e-3)


def test_failures_at_the_tolerated_share_make_no_false_alarms() -> None:
    """2,000 rollouts of 200 devices of which 5 % fail, looked at after each tenth: at most 128 alarms of level 5 %."""
    failures = np.random.default_rng(4).random((2000, 200)) < 0.05
    sums = failures.cumsum(axis=1)
    alarms = sum(
        any(share_evidence(int(row[n - 1]), n, share=0.05) >= 20 for n in range(10, 201, 10)) for row in sums
    )
    assert alarms <= 128
