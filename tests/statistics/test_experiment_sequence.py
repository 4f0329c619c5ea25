"""An experiment's interval and its sample ratio, looked at all the time: against scipy, a martingale, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from umbel_server.experiments.ratio import LEVEL, Ratio, _evidence, ratio_of
from umbel_server.experiments.sequence import arms_difference, tuned_information
from umbel_server.rollouts.interval import Values

SIMULATIONS, ERROR = 300, 0.05
MOST = int(stats.binom.ppf(0.999, SIMULATIONS, ERROR))
"""False alarms of so many simulations at the level: more have chance 1e-3."""


def experiment(
    chance: np.random.Generator, *, devices: float, noise: float, effect: float, looks: int, arriving: bool
) -> tuple[Values, Values]:
    """Return what 60 devices of either arm have told on average by each look, shape (60, looks); NaN: nothing yet."""
    m = 60
    own = chance.normal(0, 1, 2 * m) * devices
    own[:m] += effect
    begin = chance.integers(0, looks, 2 * m) if arriving else np.zeros(2 * m, int)
    age = np.arange(looks) - begin[:, None] + 1
    told = np.where(age > 0, chance.normal(0, noise, (2 * m, looks)), 0.0).cumsum(axis=1)
    means = np.where(age > 0, own[:, None] + told / np.maximum(age, 1), np.nan)
    return means[:m], means[m:]


def found_something(arms: tuple[Values, Values], *, effect: float) -> bool:
    for look in range(arms[0].shape[1]):
        left, right = (arm[:, look][~np.isnan(arm[:, look])] for arm in arms)
        if min(len(left), len(right)) < 20:
            continue
        found = arms_difference(left, right, error=ERROR, effect=effect)
        assert found is not None
        if found.low > 0 or found.high < 0:
            return True
    return False


@pytest.mark.parametrize(
    ("devices", "noise", "arriving"),
    [(1.0, 4.0, False), (0.0, 4.0, False), (1.0, 4.0, True)],
    ids=["devices differ", "devices are alike", "devices arrive"],
)
def test_looking_all_the_time_makes_no_more_false_alarms_than_stated(
    devices: float, noise: float, arriving: bool
) -> None:
    chance = np.random.default_rng(7)
    alarms = sum(
        found_something(
            experiment(chance, devices=devices, noise=noise, effect=0.0, looks=30, arriving=arriving),
            effect=0.5,
        )
        for _ in range(SIMULATIONS)
    )
    assert alarms <= MOST


def test_an_effect_of_one_deviation_between_devices_is_found() -> None:
    chance = np.random.default_rng(8)
    found = sum(
        found_something(
            experiment(chance, devices=1.0, noise=2.0, effect=1.0, looks=30, arriving=True), effect=0.5
        )
        for _ in range(100)
    )
    assert found >= 90


def test_taking_predictions_for_the_unit_would_make_false_alarms_of_most_experiments() -> None:
    """What each device says is heard a thousand times: that makes the devices' own differences look certain."""
    chance = np.random.default_rng(9)
    alarms = {"predictions": 0, "devices": 0}
    for _ in range(100):
        own = chance.normal(0, 1, (2, 60))
        left, right = own[:, :, None] + chance.normal(0, 1, (2, 60, 1000))
        z = (left.mean() - right.mean()) / math.sqrt((left.var() + right.var()) / left.size)
        alarms["predictions"] += abs(z) > 3.3
        found = arms_difference(left.mean(axis=1), right.mean(axis=1), error=ERROR, effect=0.5)
        assert found is not None
        alarms["devices"] += found.low > 0 or found.high < 0
    assert alarms["predictions"] > 60
    assert alarms["devices"] <= 5


def test_the_interval_is_narrowest_where_it_reaches_as_far_as_the_effect() -> None:
    information = tuned_information(error=ERROR, effect=0.2)
    chance = np.random.default_rng(10)
    m = 4000
    values = chance.normal(0, 1, (2, m))
    values = (values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, ddof=1, keepdims=True)
    values *= math.sqrt(m / (2 * information))
    found = arms_difference(values[0], values[1], error=ERROR, effect=0.2)
    assert found is not None
    assert found.high == pytest.approx(0.2, rel=2e-3)
    others = [
        arms_difference(values[0], values[1], error=ERROR, effect=other) for other in (0.02, 0.1, 0.4, 2.0)
    ]
    assert all(each is not None and each.high > found.high for each in others)


def test_devices_that_nearly_all_say_the_same_are_not_believed() -> None:
    nothing, some = np.zeros(200), np.r_[np.zeros(195), np.ones(5)]
    assert arms_difference(some, nothing, error=ERROR, effect=0.1) is None
    assert arms_difference(np.r_[np.zeros(190), np.ones(10)], nothing, error=ERROR, effect=0.1) is not None
    # Two arms that are each of one mind differ, but nobody knows by how much another device would.
    assert arms_difference(np.ones(200), np.zeros(300), error=ERROR, effect=0.1) is None
    huge = np.full(30, 1e300) * np.arange(30.0)
    assert arms_difference(huge, nothing, error=ERROR, effect=0.1) is None


@given(st.integers(0, 5000), st.integers(0, 5000), st.floats(0.05, 0.95))
def test_the_chance_of_one_look_is_that_of_a_chi_square_test(hits: int, misses: int, share: float) -> None:
    if not hits + misses:
        assert ratio_of(0, 0, share=share) == Ratio(0, 0, share, 1.0, 1.0)
        return
    n = hits + misses
    expected = stats.chisquare([hits, misses], [n * share, n * (1 - share)]).pvalue
    assert ratio_of(hits, misses, share=share).chance == pytest.approx(expected, rel=1e-6, abs=1e-300)


@given(st.integers(0, 3000), st.integers(0, 3000), st.floats(0.05, 0.95))
def test_the_evidence_against_the_draw_is_a_martingale(hits: int, misses: int, share: float) -> None:
    """Its mean over the next device is what it is: so no number of looks makes it grow by chance."""
    now = _evidence(hits, misses, share)
    then = share * math.exp(_evidence(hits + 1, misses, share) - now)
    then += (1 - share) * math.exp(_evidence(hits, misses + 1, share) - now)
    assert then == pytest.approx(1, rel=1e-6)
    assert _evidence(0, 0, share) == pytest.approx(0, abs=1e-9)


def test_the_evidence_is_the_ratio_of_likelihoods_that_scipy_computes() -> None:
    hits, misses, share = 130, 90, 0.5
    n = hits + misses
    ratios = [
        stats.betabinom.pmf(hits, n, spread * share, spread * (1 - share)) / stats.binom.pmf(hits, n, share)
        for spread in (2, 10, 100, 1000, 10000)
    ]
    assert math.exp(_evidence(hits, misses, share)) == pytest.approx(np.mean(ratios), rel=1e-6)


def test_looking_at_the_ratio_after_every_device_makes_no_false_alarms() -> None:
    """200 draws of 1,500 devices that are all right; at level 5 %, at which a chi-square test alarms in half of them."""
    hits = (np.random.default_rng(11).random((200, 1500)) < 0.3).cumsum(axis=1)
    ever, naive = 0, 0
    for row in hits:
        found = [ratio_of(int(row[n - 1]), int(n - row[n - 1]), share=0.3) for n in range(10, 1501, 10)]
        ever += min(each.chance_ever for each in found) < ERROR
        naive += min(each.chance for each in found) < ERROR
    assert ever <= stats.binom.ppf(0.999, 200, ERROR)
    assert naive > 50


def test_a_tenth_of_an_arm_that_is_missing_is_found_at_the_usual_level() -> None:
    assert ratio_of(4500, 5000, share=0.5).mismatch
    assert not ratio_of(4950, 5000, share=0.5).mismatch
    assert ratio_of(30, 3, share=0.5).mismatch
    assert LEVEL == 0.001
