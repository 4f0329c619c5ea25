"""Accounting of training that keeps examples private, against dp_accounting and Opacus."""

from __future__ import annotations

import math
import warnings

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy import special

from umbel_proto.errors import BudgetError, UsageError
from umbel_proto.ids import RunId
from umbel_proto.privacy.accounting import ORDERS, rdp_to_epsilon
from umbel_proto.privacy.examples import (
    ExampleCharge,
    NoisySteps,
    check,
    course,
    noise_for,
    sampled_gaussian_rdp,
    spent,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opacus.accountants.analysis.rdp import compute_rdp

DELTA = 1e-6
GRID = [
    (rate, noise)
    for rate in (1e-4, 0.01, 0.064, 0.5, 0.999, 1.0)
    for noise in (0.3, 0.5, 0.8, 1.1, 2.0, 6.0, 40.0)
]


def charge(number: int, release: NoisySteps) -> ExampleCharge:
    return ExampleCharge(RunId("run1"), number, 0, number.to_bytes(32, "big"), release, 1e9)


@pytest.mark.parametrize(("rate", "noise"), GRID)
def test_the_curve_is_dp_accountings(rate: float, noise: float) -> None:
    accountant = rdp.RdpAccountant(ORDERS.tolist())
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)))
    np.testing.assert_allclose(sampled_gaussian_rdp(rate, noise), accountant._rdp, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize(("rate", "noise"), GRID)
def test_the_curve_is_opacus(rate: float, noise: float) -> None:
    theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=ORDERS.tolist())
    np.testing.assert_allclose(sampled_gaussian_rdp(rate, noise), theirs, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.01, 1.0, 1000), (0.064, 1.1, 625), (0.3, 4.0, 40)])
def test_epsilon_is_above_the_tightest_and_not_far(rate: float, noise: float, steps: int) -> None:
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    tight = pld.PLDAccountant()
    tight.compose(event, steps)
    accountant = rdp.RdpAccountant(ORDERS.tolist())
    accountant.compose(event, steps)
    ours = spent([charge(1, NoisySteps(rate, steps, noise))], DELTA)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)
    assert tight.get_epsilon(DELTA) <= ours <= 1.25 * tight.get_epsilon(DELTA)


@pytest.mark.parametrize("order", [2, 3, 7, 20])
def test_the_curve_is_the_divergence_itself(order: int) -> None:
    # The mixture (1-q) N(0, z^2) + q N(1, z^2) against N(0, z^2), integrated on a grid.
    rate, noise = 0.2, 1.3
    x = np.linspace(-30, 60, 400_001)
    log_q = -(x**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    log_p = np.logaddexp(math.log1p(-rate) + log_q, math.log(rate) + log_q + (2 * x - 1) / (2 * noise**2))
    total = special.logsumexp(order * log_p - (order - 1) * log_q) + math.log(x[1] - x[0])
    index = ORDERS.tolist().index(order)
    assert sampled_gaussian_rdp(rate, noise)[index] == pytest.approx(total / (order - 1), rel=1e-9)


def test_charges_compose_as_curves() -> None:
    parts = [NoisySteps(0.05, 30, 1.0), NoisySteps(0.2, 10, 3.0), NoisySteps(0.05, 7, 1.0)]
    charges = [charge(number, release) for number, release in enumerate(parts)]
    whole = sum(release.steps * sampled_gaussian_rdp(release.rate, release.noise) for release in parts)
    assert spent(charges, DELTA) == pytest.approx(rdp_to_epsilon(np.asarray(whole), DELTA), rel=1e-12)
    assert spent(charges, DELTA) < sum(spent([each], DELTA) for each in charges)
    assert spent(reversed(charges), DELTA) == pytest.approx(spent(charges, DELTA), rel=1e-12)


def test_no_training_costs_nothing_and_one_without_noise_everything() -> None:
    assert spent([], DELTA) == 0
    assert spent([charge(1, NoisySteps(0.1, 1, 0.0))], DELTA) == math.inf
    assert spent([charge(1, NoisySteps(0.1, 1, 1e-200))], DELTA) == math.inf


def test_the_course_says_what_was_spent_after_each_charge() -> None:
    releases = [
        NoisySteps(0.1, 30, 1.0),
        NoisySteps(0.2, 5, 2.0),
        NoisySteps(0.1, 7, 1.0),
        NoisySteps(0.1, 3, 0.0),
    ]
    mixed = [charge(number, release) for number, release in enumerate(releases)]
    each = [spent(mixed[:count], DELTA) for count in range(1, len(mixed) + 1)]
    assert course(mixed, DELTA) == pytest.approx(each, rel=1e-12)


def test_a_charge_over_the_budget_is_refused_with_what_to_change() -> None:
    one = charge(1, NoisySteps(0.1, 50, 1.0))
    first = check([], one, budget_epsilon=math.inf, budget_delta=DELTA)
    assert check([], one, budget_epsilon=first, budget_delta=DELTA) == first
    with pytest.raises(BudgetError, match="greater example_noise"):
        check([one], charge(2, one.release), budget_epsilon=first * 1.001, budget_delta=DELTA)
    with pytest.raises(BudgetError, match="inf at delta"):
        check([one], charge(2, NoisySteps(0.1, 1, 0.0)), budget_epsilon=1e9, budget_delta=DELTA)


@pytest.mark.parametrize("target", [0.2, 1.0, 8.0])
@pytest.mark.parametrize(("rate", "steps"), [(0.01, 5000), (0.2, 100), (1.0, 1)])
def test_the_least_noise_meets_the_target_and_a_little_less_misses_it(
    target: float, rate: float, steps: int
) -> None:
    noise = noise_for(target, DELTA, rate=rate, steps=steps)
    assert spent([charge(1, NoisySteps(rate, steps, noise))], DELTA) <= target
    assert spent([charge(1, NoisySteps(rate, steps, noise * (1 - 1e-5)))], DELTA) > target


@pytest.mark.parametrize(
    ("rate", "steps", "noise", "word"),
    [
        (0.0, 1, 1.0, "rate"),
        (1.1, 1, 1.0, "rate"),
        (math.nan, 1, 1.0, "rate"),
        (0.5, 0, 1.0, "steps"),
        (0.5, 1, -1.0, "example_noise"),
        (0.5, 1, math.nan, "example_noise"),
        (0.5, 1, math.inf, "example_noise"),
    ],
)
def test_values_out_of_range_are_named(rate: float, steps: int, noise: float, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        NoisySteps(rate, steps, noise)


@pytest.mark.parametrize("change", [{"round": -1}, {"attempt": -1}, {"sid": bytes(31)}])
def test_a_charge_that_is_none_is_refused(change: dict[str, object]) -> None:
    good = {"run": RunId("r"), "round": 1, "attempt": 1, "sid": bytes(32), "at_s": 1.0}
    with pytest.raises(UsageError):
        ExampleCharge(**{**good, "release": NoisySteps(0.1, 1, 1.0), **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
def test_a_budget_that_is_none_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match="example_budget_epsilon"):
        check([], charge(1, NoisySteps(0.1, 1, 1.0)), budget_epsilon=budget, budget_delta=DELTA)
    with pytest.raises(UsageError, match="target epsilon"):
        noise_for(budget, DELTA, rate=0.1, steps=1)


@pytest.mark.parametrize(
    ("rate", "steps", "noise", "epsilon"),
    [(0.01, 1000, 1.0, 2.43669), (0.064, 625, 1.1, 11.41981), (0.25, 40, 2.0, 4.93896)],
)
def test_epsilon_is_the_specifications_known_answer(
    rate: float, steps: int, noise: float, epsilon: float
) -> None:
    assert spent([charge(1, NoisySteps(rate, steps, noise))], DELTA) == pytest.approx(epsilon, abs=5e-6)
