"""Epsilon, against known answers, dp_accounting, Opacus and divergences computed outright."""

from __future__ import annotations

import math
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp as oracle
from opacus.accountants import RDPAccountant
from scipy import integrate, special

from umbel_proto.errors import UsageError
from umbel_proto.privacy.accounting import (
    LEAST_VARIANCE,
    ORDERS,
    SKELLAM_ORDERS,
    epsilon,
    l1_bound,
    noise_multiplier,
    rdp_to_epsilon,
    real_order_rdp,
    release_rdp,
    rounded_l2_bound_sq,
    skellam_rdp,
    variance_for,
)

BOUND_SQ = rounded_l2_bound_sq(3428, 10**6)
DELTA = 1e-6


def spent_by(
    event: dp_accounting.DpEvent, count: int, delta: float = DELTA, orders: np.ndarray = SKELLAM_ORDERS
) -> float:
    accountant = oracle.RdpAccountant(orders=orders.tolist())
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
    ("target", "participations", "multiplier"), [(8, 10, 2.1802), (4, 10, 4.0107), (1, 1, 4.5309)]
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
    # The event is the first branch of the bound; the second, and more orders, can only lower it.
    theirs = spent_by(event, 10, orders=ORDERS)
    assert ours <= theirs * (1 + 1e-9)
    if multiplier >= 2 and scaled_clip >= 50:
        assert ours == pytest.approx(theirs, rel=1e-9 if multiplier > 3 else 1e-3)


def test_a_fine_grid_costs_what_normal_noise_costs() -> None:
    for multiplier in (0.8, 2.0, 8.0):
        normal = spent_by(dp_accounting.GaussianDpEvent(multiplier), 7)
        assert epsilon(1e12, 1, multiplier**2 * 1e12, DELTA, 7) == pytest.approx(normal, rel=1e-6)


def test_the_skellam_formula_is_the_papers_term_by_term() -> None:
    # D = 9, B**2 = 16, so Delta_1 = 12; mu = 5, order 3: 4.8 + min((80 + 72) / 100, 36 / 10)
    assert skellam_rdp(np.array([3]), bound_sq=16, padded=9, variance=5)[0] == pytest.approx(4.8 + 1.52)
    # mu = 1/2: 48 + min(152 / 1, 36)
    assert skellam_rdp(np.array([3]), bound_sq=16, padded=9, variance=0.5)[0] == pytest.approx(48 + 36)


@pytest.mark.parametrize("bits", [52, 54, 60, 62, 63, 64, 70, 130])
def test_a_bound_of_any_size_costs_what_exact_numbers_say(bits: int) -> None:
    bound_sq, padded, variance = 2**bits + 1, 1000, 2 ** (bits - 1)
    exact = [
        Fraction(order * bound_sq, 2 * variance)
        + min(
            ((2 * order - 1) * bound_sq + 6 * Fraction(math.sqrt(padded * bound_sq))) / (4 * variance**2),
            3 * Fraction(math.sqrt(padded * bound_sq)) / (2 * variance),
        )
        for order in ORDERS.tolist()
    ]
    found = skellam_rdp(ORDERS, bound_sq=bound_sq, padded=padded, variance=float(variance))
    assert found.tolist() == pytest.approx([float(each) for each in exact], rel=1e-12)
    curve = release_rdp(bound_sq=bound_sq, padded=padded, variance=float(variance))
    assert (np.diff(curve[np.argsort(SKELLAM_ORDERS)]) >= 0).all()


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


# Below the least variance nothing is claimed; up to 400 the noise and the shift are of one size.
@pytest.mark.parametrize("mu", [LEAST_VARIANCE, 400.0, 10_000.0])
@pytest.mark.parametrize("shift", [1, 2, 7, 30, 99])
def test_no_exact_divergence_at_a_real_order_exceeds_the_bound(mu: float, shift: int) -> None:
    reach = 10 * math.sqrt(mu) + 200
    values = np.arange(-int(reach), int(reach) + shift)
    log_p = np.log(special.ive(np.abs(values), mu))
    log_q = np.log(special.ive(np.abs(values - shift), mu))
    assert np.isfinite(log_p).all()
    assert np.isfinite(log_q).all()
    orders = SKELLAM_ORDERS[SKELLAM_ORDERS < 2.8]
    bound = real_order_rdp(orders, bound_sq=shift**2, padded=1, variance=mu)
    for order, limit in zip(orders, bound, strict=True):
        if math.isfinite(limit):
            terms = order * log_p - (order - 1) * log_q
            assert terms[[0, -1]].max() < terms.max() - 20
            exact = special.logsumexp(terms) / (order - 1)
            assert 0.3 * limit < exact <= limit


def test_the_bound_at_real_orders_meets_the_published_one() -> None:
    # On a fine grid both are alpha / (2 z**2).
    orders = np.array([1.001, 1.5, 2.0, 3.0])
    ours = real_order_rdp(orders, bound_sq=BOUND_SQ, padded=10**6, variance=4 * BOUND_SQ)
    assert ours == pytest.approx(orders / 8, rel=1e-3)


def test_nothing_is_claimed_at_real_orders_for_little_noise_or_long_shifts() -> None:
    orders = np.array([1.5, 2.0])
    little = math.nextafter(LEAST_VARIANCE, 0)
    assert np.isinf(real_order_rdp(orders, bound_sq=1, padded=1, variance=little)).all()
    far = real_order_rdp(orders, bound_sq=200**2, padded=1, variance=150)
    assert np.isfinite(far).tolist() == [True, False]


def test_the_lemmas_behind_the_bound_at_real_orders_hold() -> None:
    """docs/spec/privacy.md, 5.5: (a) Amos' bounds on ratios, (b) 1 - sech u <= 0.4 u, (c) the integral."""
    for mu in (100.0, 1e3, 1e5):
        v = np.arange(1, int(4 * mu) if mu < 1e4 else 20_000)
        ive = special.ive(v, mu)
        v, ratio = v[ive > 1e-280], (special.ive(v - 1, mu) / np.maximum(ive, 1e-300))[ive > 1e-280]
        y = (v - 0.5) / mu
        step = np.log(ratio)
        assert (np.arcsinh(y) <= step + 1e-12).all()
        assert (step <= y * (1 + 2 / mu) + 1e-12).all()
    # The slope of 0.4 u - (1 - sech u) is below 0.4 in size, so that a grid of 0.001 with 0.0004 to spare proves
    # it; below 0.8, 1 - sech u <= u^2 / 2 does, and above 2.5 it is at most 1.
    u = np.arange(0.8, 2.5, 0.001)
    assert (0.4 * u - (1 - 1 / np.cosh(u)) > 0.02).all()
    whole, _ = integrate.quad(lambda y: (y * y / 2 + 2) * math.exp(-0.2802 * y * y + 0.2 * y), 0, 60)
    assert whole < 6.6


@pytest.mark.parametrize("alpha", [1.01, 1.5, 2.0, 5.0, 40.0])
def test_sampling_hides_the_update_least_in_the_direction_that_is_summed(alpha: float) -> None:
    """Mironov, Talwar, Zhang, theorem 5, for each pair of outcomes that the reflection exchanges."""
    rng = np.random.default_rng(1)
    a, b = 10 ** rng.uniform(-6, 0, (2, 50_000))
    q = rng.uniform(0, 1, 50_000)
    m, n = (1 - q) * a + q * b, (1 - q) * b + q * a
    hidden = a * (a / m) ** (alpha - 1) + b * (b / n) ** (alpha - 1)
    summed = m * (m / a) ** (alpha - 1) + n * (n / b) ** (alpha - 1)
    assert (hidden <= summed * (1 + 1e-12)).all()


@pytest.mark.parametrize("shift", [1, 5, 20])
@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_no_exact_divergence_of_a_sampled_sum_exceeds_the_bound(shift: int, rate: float) -> None:
    mu = 150.0
    values = np.arange(-330, 331 + shift)
    zero = special.ive(np.abs(values), mu)
    log_q = np.log(zero)
    log_m = np.log((1 - rate) * zero + rate * special.ive(np.abs(values - shift), mu))
    bound = release_rdp(bound_sq=shift**2, padded=1, variance=mu, sampling_rate=rate)
    for order, limit in zip(SKELLAM_ORDERS, bound, strict=True):
        for one, other in ((log_m, log_q), (log_q, log_m)):
            terms = order * one - (order - 1) * other
            if terms[[0, -1]].max() > terms.max() - 30:
                continue  # the sum has not converged where ive ends
            assert special.logsumexp(terms) / (order - 1) <= limit * (1 + 1e-9) + 1e-13


@pytest.mark.parametrize("delta", [1e-9, 1e-6, 1e-3, 0.3])
def test_the_conversion_is_dp_accountings(delta: float) -> None:
    for scale in (1e-14, 1e-6, 1e-3, 0.02, 1.0, 50.0):
        curve = scale * ORDERS.astype(float) + 0.1 * scale
        theirs, _ = oracle.rdp_privacy_accountant.compute_epsilon(ORDERS.tolist(), curve.tolist(), delta)
        assert rdp_to_epsilon(curve, delta) == pytest.approx(theirs, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("multiplier", "participations"),
    [(0.3, 5), (0.8, 7), (2.0, 10), (4.0107, 10), (4.5309, 1), (12.0, 100), (30.0, 10)],
)
def test_epsilon_is_above_the_tightest_for_normal_noise_by_less_than_a_tenth(
    multiplier: float, participations: int
) -> None:
    tight = dp_accounting.pld.PLDAccountant()
    tight.compose(dp_accounting.GaussianDpEvent(multiplier), participations)
    ours = epsilon(1e12, 1, multiplier**2 * 1e12, DELTA, participations)
    assert tight.get_epsilon(DELTA) <= ours <= 1.09 * tight.get_epsilon(DELTA)


@pytest.mark.parametrize(
    ("multiplier", "participations"), [(0.05, 8), (0.1, 8), (0.1, 1), (0.3, 8), (1.0, 10)]
)
def test_a_large_epsilon_on_a_real_grid_is_that_of_normal_noise_at_any_order(
    multiplier: float, participations: int
) -> None:
    orders = 1 + np.geomspace(1e-3, 100, 5000)
    curve = orders * participations / (2 * multiplier**2)
    any_order = rdp_to_epsilon(curve, 1e-5, orders)
    ours = epsilon(5000**2, 13_826, (5000 * multiplier) ** 2, 1e-5, participations)
    assert any_order <= ours <= 1.003 * any_order


def test_no_noise_means_infinite_epsilon() -> None:
    assert epsilon(100, 10, 0, DELTA, 1) == math.inf
    assert epsilon(100, 10, 0, DELTA, 1, 0.01) == math.inf


def test_no_participation_costs_nothing_even_without_noise() -> None:
    assert epsilon(100, 10, 0, DELTA, 0) == 0


def test_overwhelming_noise_costs_nothing() -> None:
    assert epsilon(100, 10, 1e20, DELTA, 3) == 0


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.2, 0.9])
def test_sampling_is_the_binomial_sum_over_integer_orders(rate: float) -> None:
    bound_sq, padded, mu = 1e6, 10_000, 4e6
    curve = release_rdp(bound_sq=bound_sq, padded=padded, variance=mu, sampling_rate=rate)
    for order in (2, 3, 12, 42, 64, 512):
        whole = skellam_rdp(np.arange(2, order + 1), bound_sq=bound_sq, padded=padded, variance=mu)
        logs, weights = [0.0], [(1 - rate) ** (order - 1) * (order * rate - rate + 1)]
        for drawn in range(2, order + 1):
            logs.append((drawn - 1) * whole[drawn - 2] + math.log(special.comb(order, drawn, exact=True)))
            logs[-1] += drawn * math.log(rate) + (order - drawn) * math.log1p(-rate)
            weights.append(1.0)
        direct = special.logsumexp(logs, b=weights) / (order - 1)
        found = curve[SKELLAM_ORDERS.tolist().index(order)]
        assert found == pytest.approx(min(direct, whole[-1]), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("rate", "multiplier", "rounds"),
    [(1.0, 2.0, 10), (1.0, 0.8, 7), (0.1, 2.0, 100), (0.01, 1.0, 1000), (0.05, 4.0, 1000), (0.5, 6.0, 50)],
)
def test_a_fine_grid_costs_what_opacus_says_with_and_without_sampling(
    rate: float, multiplier: float, rounds: int
) -> None:
    accountant = RDPAccountant()
    accountant.history = [(multiplier, rate, rounds)]
    theirs = accountant.get_epsilon(DELTA, alphas=SKELLAM_ORDERS.tolist())
    ours = epsilon(1e12, 1, multiplier**2 * 1e12, DELTA, rounds, rate)
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert ours <= epsilon(1e12, 1, multiplier**2 * 1e12, DELTA, rounds)


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
