"""Calibration: a temperature makes confidence mean what it says, and changes no label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import gamma
from sklearn.metrics import brier_score_loss

from cohort_tables import network
from umbel_models.calibration import (
    BINS,
    Scores,
    brier_score,
    calibration_error,
    softmax,
    temperature,
)
from umbel_models.responsible.calibrate import Tempered, calibrate
from umbel_models.responsible.figures import bootstrap, wilson
from umbel_proto.errors import UsageError


def scores(count: int, *, seed: int, too_sure: float = 1.0, labels: int = 4, spread: float = 2.0) -> Scores:
    """Labels drawn from the softmax of logits, which are then ``too_sure`` times as large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, labels)) * spread
    y = (softmax(logits).cumsum(1) < rng.random((count, 1))).sum(1)
    return Scores((logits * too_sure).astype(np.float32), y, np.arange(count) % 2)


@pytest.mark.parametrize("too_sure", [0.3, 1.0, 3.0])
def test_the_temperature_is_how_much_too_sure_the_model_is(too_sure: float) -> None:
    # Its deviation at 20,000 examples is under 1 %: five of them.
    assert temperature(scores(20_000, seed=1, too_sure=too_sure)) == pytest.approx(too_sure, rel=0.05)


@pytest.mark.parametrize("count", [5, 300])
def test_the_temperature_minimizes_the_cross_entropy_and_its_prior(count: int) -> None:
    given = scores(count, seed=2, too_sure=2.0)

    def cost(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        likely = log_softmax(given.logits * inverse, axis=1)[np.arange(count), given.y].sum()
        return float(-likely - gamma(2).logpdf(inverse))

    found = minimize_scalar(cost, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    assert temperature(given) == pytest.approx(np.exp(found.x), rel=1e-4)


def test_a_few_examples_that_are_all_right_ask_for_a_little_more_confidence() -> None:
    logits = np.eye(4)[np.arange(20) % 4] * 5
    assert 0.5 < temperature(Scores(logits, np.arange(20) % 4)) < 1.0


def test_examples_that_tell_nothing_leave_the_model_as_it_is() -> None:
    assert temperature(Scores(np.zeros((20, 4)), np.arange(20) % 4)) == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [2, 10])
def test_a_hundred_examples_do_not_spoil_a_model_that_is_calibrated(labels: int) -> None:
    errors = []
    for seed in range(20):
        good = scores(5000, seed=seed, labels=labels, spread=6.0)
        found = temperature(Scores(good.logits[:100], good.y[:100]))
        errors.append(calibration_error(softmax(good.logits[100:] / found), good.y[100:]))
    assert np.median(errors) < 0.03


def test_calibration_is_measured_before_and_after_on_other_examples() -> None:
    found = calibrate(scores(500, seed=1, too_sure=3.0), scores(3000, seed=2, too_sure=3.0))
    assert found.error[1].high < found.error[0].low
    assert found.brier[1].high < found.brier[0].value
    assert found.by_cohort == {}
    assert found.figures()["temperature"] == pytest.approx(3.0, rel=0.2)


def test_cohorts_get_temperatures_only_where_that_is_allowed() -> None:
    one, other = scores(2000, seed=1, too_sure=1.0), scores(2000, seed=2, too_sure=4.0)
    both = Scores(
        np.concatenate([one.logits, other.logits]), np.concatenate([one.y, other.y]), np.repeat([0, 1], 2000)
    )
    assert not any("cohort" in name for name in calibrate(both, both).figures())
    found = calibrate(both, both, by_cohort=True)
    assert found.by_cohort == pytest.approx({0: 1.0, 1: 4.0}, rel=0.15)
    for general, own in found.error_by_cohort.values():
        assert own < general / 2


def test_temperatures_by_cohort_need_cohorts() -> None:
    without = scores(50, seed=1)._replace(cohort=None)
    with pytest.raises(UsageError, match=r"need Examples\.cohort"):
        calibrate(without, without, by_cohort=True)


def test_nothing_to_calibrate_with_is_refused() -> None:
    with pytest.raises(UsageError, match="no examples"):
        temperature(Scores(np.zeros((0, 3)), np.zeros(0, np.int64)))


def test_the_calibration_error_is_the_textbooks() -> None:
    given = scores(700, seed=3)
    probabilities = softmax(given.logits)
    sure, right = probabilities.max(1), probabilities.argmax(1) == given.y
    expected = 0.0
    for cell in range(BINS):
        inside = (sure >= cell / BINS) & (sure < (cell + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert calibration_error(probabilities, given.y) == pytest.approx(expected)


def test_the_brier_score_is_that_of_scikit_learn() -> None:
    given = scores(700, seed=3)
    probabilities = softmax(given.logits)
    assert brier_score(probabilities, given.y) == pytest.approx(brier_score_loss(given.y, probabilities))


def test_a_tempered_network_gives_the_same_labels_less_surely() -> None:
    plain = network()
    x = torch.randn(64, 7, generator=torch.Generator().manual_seed(0))
    cooled = Tempered(plain, 2.5)
    torch.testing.assert_close(cooled(x) * 2.5, plain(x))
    assert torch.equal(cooled(x).argmax(1), plain(x).argmax(1))


def test_an_interval_of_a_share_covers_the_truth_as_often_as_it_says() -> None:
    # 95 % of 2,000 repetitions, within 5 deviations of 0.5 points, at a share where the naive one fails.
    hits = np.random.default_rng(0).binomial(40, 0.05, size=2000)
    covered = np.mean([low <= 0.05 <= high for _, low, high in (wilson(int(each), 40) for each in hits)])
    assert 0.93 < covered < 0.99


def test_an_interval_of_a_mean_is_as_wide_as_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap(lambda rows: float(values[rows].mean()), 400, seed=1)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
