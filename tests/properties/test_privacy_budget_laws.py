"""Accounting: more noise never costs more, more rounds never cost less, ledgers add up."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from umbel_proto.errors import BudgetError
from umbel_proto.ids import RunId
from umbel_proto.privacy.accounting import SKELLAM_ORDERS, epsilon, l1_bound, release_rdp
from umbel_proto.privacy.ledger import Charge, check, spent
from umbel_proto.privacy.plan import MAX_INFLATION, plan

bounds = st.integers(1, 10**12)
coordinates = st.integers(1, 10**8)
multipliers = st.floats(0.02, 50)
deltas = st.floats(1e-12, 0.1)


@given(bounds, coordinates, multipliers, deltas, st.integers(1, 50))
def test_more_noise_never_costs_more(
    bound_sq: int, padded: int, multiplier: float, delta: float, participations: int
) -> None:
    less, more = (
        epsilon(bound_sq, padded, factor * multiplier**2 * bound_sq, delta, participations)
        for factor in (1, 2)
    )
    assert more <= less


@given(bounds, coordinates, multipliers, deltas, st.integers(0, 50))
def test_one_more_round_never_costs_less(
    bound_sq: int, padded: int, multiplier: float, delta: float, rounds: int
) -> None:
    variance = multiplier**2 * bound_sq
    few, more = (epsilon(bound_sq, padded, variance, delta, rounds + extra) for extra in (0, 1))
    assert few <= more


@given(bounds, coordinates, st.floats(0.5, 50), deltas, st.floats(0.001, 1))
def test_sampling_never_costs_more(
    bound_sq: int, padded: int, multiplier: float, delta: float, rate: float
) -> None:
    variance = multiplier**2 * bound_sq
    assert epsilon(bound_sq, padded, variance, delta, 5, rate) <= epsilon(
        bound_sq, padded, variance, delta, 5
    ) * (1 + 1e-12)


@settings(max_examples=40)
@given(st.floats(0.5, 3000), st.integers(1, 40), st.floats(0.05, 1))
def test_no_exact_divergence_of_one_coordinate_exceeds_its_curve(mu: float, shift: int, rate: float) -> None:
    reach = int(12 * math.sqrt(mu)) + 40
    values = np.arange(-reach, reach + shift + 1)
    zero = special.ive(np.abs(values), mu)
    moved = special.ive(np.abs(values - shift), mu)
    seen = (zero > 1e-290) & (moved > 1e-290)
    log_q = np.log(zero[seen])
    log_p = np.log((1 - rate) * zero[seen] + rate * moved[seen])
    curve = release_rdp(bound_sq=shift**2, padded=1, variance=mu, sampling_rate=rate)
    for order, limit in zip(SKELLAM_ORDERS, curve, strict=True):
        for one, other in ((log_p, log_q), (log_q, log_p)):
            # Terms that are left out only make the sum smaller: what is left is a lower bound.
            exact = special.logsumexp(order * one - (order - 1) * other) / (order - 1)
            assert exact <= limit * (1 + 1e-9) + 1e-12


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=50))
def test_the_l1_bound_holds_for_integers(values: list[int]) -> None:
    bound_sq = sum(value**2 for value in values)
    assert sum(map(abs, values)) <= l1_bound(bound_sq, len(values)) * (1 + 1e-12)


@given(bounds, coordinates, multipliers, deltas, st.integers(1, 30))
def test_a_ledger_of_equal_rounds_is_epsilon_of_them(
    bound_sq: int, padded: int, multiplier: float, delta: float, rounds: int
) -> None:
    variance = Fraction(math.ceil(multiplier**2 * bound_sq * 1024), 1024)
    charges = [
        Charge(RunId("r"), each, 0, bytes(32), bound_sq, padded, variance, 0.0) for each in range(rounds)
    ]
    expected = epsilon(bound_sq, padded, float(variance), delta, rounds)
    assert spent(charges, delta) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.floats(0.3, 20), min_size=1, max_size=12), st.floats(0.5, 30))
def test_no_sequence_of_accepted_rounds_overspends(noise: list[float], budget: float) -> None:
    charges: list[Charge] = []
    for number, multiplier in enumerate(noise):
        variance = Fraction(multiplier**2 * 1e6).limit_denominator(1000)
        new = Charge(RunId("r"), number, 0, bytes(32), 10**6, 1000, variance, 0.0)
        try:
            after = check(charges, new, budget_epsilon=budget, budget_delta=1e-6)
        except BudgetError:
            assert spent([*charges, new], 1e-6) > budget
            continue
        charges.append(new)
        assert after == spent(charges, 1e-6) <= budget


@given(
    st.integers(1, 10**6),
    st.floats(1e-3, 1e3),
    st.integers(1, 3000),
    st.floats(0.05, 1),
    st.sampled_from([0.0, 0.02, 0.3, 2.0]),
)
def test_plans_for_ordinary_fleets_hold_their_promises(
    dim: int, clip: float, devices: int, part: float, multiplier: float
) -> None:
    honest = max(1, int(part * devices))
    made = plan(
        dim=dim,
        clip=clip,
        devices=devices,
        honest=honest,
        participations=5,
        delta=1e-6,
        noise_multiplier=multiplier,
    )
    assert made.inflation <= MAX_INFLATION or made.encoding.noise > 0.98 * 2**28
    assert made.noise_multiplier >= multiplier * (1 - 1e-12)
    assert made.encoding.clip == clip
    ideal = multiplier * clip / math.sqrt(devices * honest)
    assert made.error >= ideal
