"""Epsilon, against known answers, dp_accounting and divergences computed outright."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp as oracle
from scipy import special

from umbel_proto.errors import UsageError
from umbel_proto.privacy.accounting import (
    ORDERS,
    epsilon,
    l1_bound,
    noise_multiplier,
    rdp_to_epsilon,
    release_rdp,
    rounded_l2_bound_sq,
    skellam_rdp,
    variance_for,
)

BOUND_SQ = rounded_l2_bound_sq(3428, 10**6)
DELTA = 1e-6


def spent_by(event: dp_accounting.DpEvent, count: int, delta: float = DELTA) -> float:
    accountant = oracle.RdpAccountant(orders=[int(order) for order in ORDERS])
    accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def test_the_rounded_bound_is_the_protocols_known_answer() -> None:
    assert math.sqrt(BOUND_SQ) == pytest.approx(3464.839390217099, rel=1e-14)


@pytest.mark.parametrize("padded", [1, 2, 1000, 10**9])
@pytest.mark.parametrize("scaled_clip", [1e-9, 1.0, 1e6])
def test_the_rounded_bound_lies_between_the_length_before_and_the_longest_rounding(
    padded: int, scaled_clip: float
) -> None:
    bound_sq = rounded_l2_bound_sq(scaled_clip, padded)
    assert scaled_clip**2 < bound_sq < (scaled_clip + math.sqrt(padded)) ** 2


def test_the_l1_bound_is_the_square_for_few_steps_and_cauchy_schwarz_for_many() -> None:
    assert l1_bound(9, 10**6) == 9
    assert l1_bound(10**6, 100) == pytest.approx(10_000)


def test_epsilon_is_the_protocols_known_answer() -> None:
    assert epsilon(BOUND_SQ, 10**6, 4.0107**2 * BOUND_SQ, DELTA, 10) == pytest.approx(3.99996, abs=5e-6)


@pytest.mark.parametrize(
    ("target", "participations", "multiplier"), [(8, 10, 2.1967), (4, 10, 4.0107), (1, 1, 4.5309)]
)
def test_noise_multipliers_are_the_protocols(target: float, participations: int, multiplier: float) -> None:
    assert noise_multiplier(target, DELTA, participations) == pytest.approx(multiplier, abs=1e-4)


@pytest.mark.parametrize("multiplier", [0.7, 2.0, 4.0107, 30.0])
@pytest.mark.parametrize(("scaled_clip", "padded"), [(3428.0, 10**6), (50.0, 1000), (10.0, 50)])
def test_epsilon_agrees_with_dp_accounting(multiplier: float, scaled_clip: float, padded: int) -> None:
    bound_sq = rounded_l2_bound_sq(scaled_clip, padded)
    mu = multiplier**2 * bound_sq
    l1 = l1_bound(bound_sq, padded)
    event = dp_accounting.ZCDpEvent(
        rho=bound_sq / (2 * mu) + bound_sq / (2 * mu**2), xi=(6 * l1 - bound_sq) / (4 * mu**2)
    )
    ours = epsilon(bound_sq, padded, mu, DELTA, 10)
    # The event is the first branch of the bound; the second can only lower it.
    assert ours <= spent_by(event, 10) * (1 + 1e-9)
    if multiplier >= 2 and scaled_clip >= 50:
        assert ours == pytest.approx(spent_by(event, 10), rel=1e-9)


def test_a_fine_grid_costs_what_normal_noise_costs() -> None:
    for multiplier in (0.8, 2.0, 8.0):
        normal = spent_by(dp_accounting.GaussianDpEvent(multiplier), 7)
        assert epsilon(1e12, 1, multiplier**2 * 1e12, DELTA, 7) == pytest.approx(normal, rel=1e-6)


def test_the_skellam_formula_is_the_papers_term_by_term() -> None:
    # D = 9, B**2 = 16, so Delta_1 = 12; mu = 5, order 3: 4.8 + min((80 + 72) / 100, 36 / 10)
    assert skellam_rdp(np.array([3]), bound_sq=16, padded=9, variance=5)[0] == pytest.approx(4.8 + 1.52)
    # mu = 1/2: 48 + min(152 / 1, 36)
    assert skellam_rdp(np.array([3]), bound_sq=16, padded=9, variance=0.5)[0] == pytest.approx(48 + 36)


@pytest.mark.parametrize("mu", [0.5, 3.0, 40.0, 900.0])
@pytest.mark.parametrize("shift", [1, 2, 7, 30])
def test_no_exact_divergence_exceeds_the_bound(mu: float, shift: int) -> None:
    values = np.arange(-4000, 4001)
    with np.errstate(divide="ignore"):
        log_p = np.log(special.ive(np.abs(values), mu))
        log_q = np.log(special.ive(np.abs(values - shift), mu))
    seen = np.isfinite(log_p) & np.isfinite(log_q)
    orders = np.arange(2, 65)
    bound = skellam_rdp(orders, bound_sq=shift**2, padded=1, variance=mu)
    for order, limit in zip(orders, bound, strict=True):
        terms = order * log_p[seen] - (order - 1) * log_q[seen]
        if terms[[0, -1]].max() > terms.max() - 60:
            continue  # ive underflows before the sum has converged
        assert special.logsumexp(terms) / (order - 1) <= limit * (1 + 1e-9)


@pytest.mark.parametrize("delta", [1e-9, 1e-6, 1e-3, 0.3])
def test_the_conversion_is_dp_accountings(delta: float) -> None:
    for scale in (1e-14, 1e-6, 1e-3, 0.02, 1.0, 50.0):
        curve = scale * ORDERS.astype(float) + 0.1 * scale
        theirs, _ = oracle.rdp_privacy_accountant.compute_epsilon(ORDERS.tolist(), curve.tolist(), delta)
        assert rdp_to_epsilon(curve, delta) == pytest.approx(theirs, rel=1e-12, abs=1e-15)


def test_a_huge_epsilon_is_safe_and_at_most_twice_too_large() -> None:
    for multiplier in (0.02, 0.1, 0.3):
        ours = epsilon(1e8, 10_000, multiplier**2 * 1e8, DELTA, 5)
        exact = dp_accounting.pld.PLDAccountant() if multiplier == 0.3 else None
        rho = 5 / (2 * multiplier**2)
        best = rho + 2 * math.sqrt(rho * math.log(1 / DELTA))  # what any-order Rényi accounting shows
        assert 0.9 * rho < ours < 2 * best
        if exact is not None:
            exact.compose(dp_accounting.GaussianDpEvent(multiplier), 5)
            assert ours > exact.get_epsilon(DELTA)


def test_no_noise_means_infinite_epsilon() -> None:
    assert epsilon(100, 10, 0, DELTA, 1) == math.inf
    assert epsilon(100, 10, 0, DELTA, 1, 0.01) == math.inf


def test_no_participation_costs_nothing_even_without_noise() -> None:
    assert epsilon(100, 10, 0, DELTA, 0) == 0


def test_overwhelming_noise_costs_nothing() -> None:
    assert epsilon(100, 10, 1e20, DELTA, 3) == 0


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.2, 0.9])
def test_sampling_is_zhu_and_wangs_bound(rate: float) -> None:
    bound_sq, padded, mu = 1e6, 10_000, 4e6
    curve = release_rdp(bound_sq=bound_sq, padded=padded, variance=mu, sampling_rate=rate)
    for index in (0, 1, 10, 40, 62, len(ORDERS) - 1):
        order = int(ORDERS[index])
        whole = skellam_rdp(np.arange(2, order + 1), bound_sq=bound_sq, padded=padded, variance=mu)
        logs, weights = [0.0], [(1 - rate) ** (order - 1) * (order * rate - rate + 1)]
        for drawn in range(2, order + 1):
            logs.append((drawn - 1) * whole[drawn - 2] + math.log(special.comb(order, drawn, exact=True)))
            logs[-1] += drawn * math.log(rate) + (order - drawn) * math.log1p(-rate)
            weights.append(1.0 if drawn == 2 else 3.0)
        direct = special.logsumexp(logs, b=weights) / (order - 1)
        assert curve[index] == pytest.approx(min(direct, whole[-1]), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5])
def test_the_sampled_bound_is_never_below_what_normal_noise_gives_away(rate: float) -> None:
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(2.0))
    ours = epsilon(1e12, 1, 4e12, DELTA, 200, rate)
    assert spent_by(event, 200) <= ours <= epsilon(1e12, 1, 4e12, DELTA, 200)


def test_the_least_variance_meets_the_target_and_a_little_less_misses_it() -> None:
    for target in (0.01, 1.0, 8.0, 500.0, 20_000.0):
        for bound_sq in (10, 10**4, BOUND_SQ):
            variance = variance_for(target, bound_sq, 10_000, DELTA, 10)
            assert epsilon(bound_sq, 10_000, variance, DELTA, 10) <= target
            assert epsilon(bound_sq, 10_000, variance * (1 - 1e-6), DELTA, 10) > target


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"participations": -1}, "participations"),
        ({"bound_sq": 0}, "bound_sq"),
        ({"bound_sq": math.inf}, "bound_sq"),
        ({"padded": 0}, "padded"),
        ({"variance_total": -1.0}, "variance"),
        ({"variance_total": math.nan}, "variance"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 1.1}, "sampling_rate"),
    ],
)
def test_arguments_out_of_range_are_named(change: dict[str, float], word: str) -> None:
    good = {"bound_sq": 100, "padded": 10, "variance_total": 50.0, "delta": DELTA, "participations": 1}
    with pytest.raises(UsageError, match=word):
        epsilon(**{**good, **change})


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_target_that_is_no_epsilon_is_refused(target: float) -> None:
    with pytest.raises(UsageError, match="target epsilon"):
        noise_multiplier(target, DELTA, 1)


def test_a_target_for_no_participation_is_refused() -> None:
    with pytest.raises(UsageError, match="participations"):
        noise_multiplier(1.0, DELTA, 0)
