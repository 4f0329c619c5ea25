"""What degree and threshold promise: laws of 6.1 to 6.5 of docs/spec/secure-aggregation.md, exact or by experiment.

Tails are counted in integers here, so no rounding is on both sides of a comparison. The experiment uses a
fixed seed; with another it would raise a false alarm once in 30,000 runs.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel_proto.errors import UsageError
from umbel_proto.secagg.graph import Parameters, parameters, search

SETTINGS = list(
    itertools.product(
        (24, 100, 256, 700), ((0.0, 0.1), (0.05, 0.05), (0.1, 0.1), (0.1, 0.3), (0.2, 0.2)), (True, False)
    )
)


def choose_more(n: int, marked: int, drawn: int, x: int) -> Fraction:
    """P[X > x] for X marked ones among those drawn of n, exact."""
    ways = sum(
        math.comb(marked, i) * math.comb(n - marked, drawn - i) for i in range(x + 1, min(marked, drawn) + 1)
    )
    return Fraction(ways, math.comb(n, drawn))


def cut_bound(n: int, gone: int, k: int) -> Fraction:
    """The bound of 6.1 on the chance that a circulant falls apart, exact."""
    if k > gone:
        return Fraction(0)
    ways = math.factorial(gone) * math.factorial(n - k)
    return Fraction(n * (n - k - 1) * ways, 2 * math.factorial(n) * math.factorial(gone - k))


def thresholds(n: int, gamma: float, delta: float, k: int, *, malicious: bool) -> tuple[int, int]:
    """(t1, t2) of 6.1: from t1 shares the corrupt learn a secret, up to t2 holders survive."""
    corrupt, dropped = math.floor((gamma + 1e-14) * n), math.floor((delta + 1e-14) * n)
    t1 = next(x for x in range(k + 1) if choose_more(n, corrupt, k, x) <= Fraction(1, n << 41))
    t2 = max(x for x in range(k + 1) if choose_more(n, dropped, k, k - x) <= Fraction(1, n << 20))
    return (math.ceil((t1 + k - 1.25) / 2) if malicious else t1), t2


def is_safe(n: int, gamma: float, delta: float, k: int, *, malicious: bool) -> bool:
    gone = math.floor((gamma + 1e-14) * n) + math.floor((delta + 1e-14) * n)
    t1, t2 = thresholds(n, gamma, delta, k, malicious=malicious)
    return cut_bound(n, gone, k) < Fraction(1, 1 << 41) and t2 > t1


@pytest.mark.parametrize(("n", "fractions", "malicious"), SETTINGS)
def test_degree_and_threshold_are_the_least_that_are_safe(
    n: int, fractions: tuple[float, float], malicious: bool
) -> None:
    found = search(n, *fractions, malicious)
    if found is None:
        assert not any(is_safe(n, *fractions, k, malicious=malicious) for k in range(2, n - 1, 2))
        return
    k, t = found
    t1, t2 = thresholds(n, *fractions, k, malicious=malicious)
    assert t1 < t <= max(t2, 2)
    assert t == max(t1 + 1, 2)
    assert is_safe(n, *fractions, k, malicious=malicious)
    assert not any(is_safe(n, *fractions, less, malicious=malicious) for less in range(max(2, k - 4), k, 2))


@pytest.mark.parametrize(("n", "fractions", "malicious"), SETTINGS)
def test_neither_the_corrupt_nor_a_split_view_get_to_a_secret(
    n: int, fractions: tuple[float, float], malicious: bool
) -> None:
    """But for 2^-40 over all devices: t - 1 corrupt holders at most; and of two views, one lacks t signers."""
    try:
        p = parameters(
            n, corrupt_fraction=fractions[0], dropout_fraction=fractions[1], server_malicious=malicious
        )
    except UsageError:
        return
    corrupt, k, t = math.floor((fractions[0] + 1e-14) * n), p.degree, p.threshold
    if p.complete:
        assert corrupt < t
        assert not malicious or 2 * t > n + corrupt
        return
    # A corrupt holder serves both views, an honest one a single one: 2t <= k + corrupt opens both.
    most = 2 * t - k - 1 if malicious else t - 1
    assert n * choose_more(n, corrupt, k, most) <= Fraction(1, 1 << 40)


@pytest.mark.parametrize(("n", "gone", "k"), [(40, 5, 4), (60, 12, 6), (100, 8, 4), (200, 40, 8)])
def test_a_random_circulant_falls_apart_no_more_often_than_the_bound_says(n: int, gone: int, k: int) -> None:
    """Removing devices cuts it where k/2 neighbors in a row are gone, in two places with some left between."""
    trials, chance = 20_000, np.random.default_rng(6)
    apart = 0
    for _ in range(trials):
        left = np.sort(chance.permutation(n)[gone:])
        gaps = np.diff(left, append=left[0] + n) - 1
        apart += np.count_nonzero(gaps >= k // 2) >= 2
    bound = float(cut_bound(n, gone, k))
    assert 0.01 < bound < 0.1
    slack = 4 * math.sqrt(bound * (1 - bound) / trials)
    assert apart / trials <= bound + slack
    assert apart / trials >= bound / 4  # The bound is no empty one.


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(3, 2000),
    gamma=st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.45]),
    delta=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.33]),
    malicious=st.booleans(),
)
def test_every_session_there_is_can_be_opened_after_the_planned_losses(
    n: int, gamma: float, delta: float, malicious: bool
) -> None:
    try:
        p = parameters(n, corrupt_fraction=gamma, dropout_fraction=delta, server_malicious=malicious)
    except UsageError:
        assert n >= 16, "a small fleet always has a graph"
        assert gamma + delta > 0.3, "only large fractions have none"
        return
    corrupt, dropped = math.floor((gamma + 1e-14) * n), math.floor((delta + 1e-14) * n)
    holders = p.degree + p.complete
    assert 2 <= p.threshold <= holders
    assert p.complete or p.degree % 2 == 0
    assert p.complete == (n < 16 or p.degree == n - 1)
    assert n > 512 or p.complete or 4 * p.degree < 3 * (n - 1), "a dense graph is made complete"
    if n >= 16:
        assert p.min_survivors <= n - dropped
    if n < 16:
        assert p.threshold == max(2 * n // 3, (n + corrupt) // 2) + 1


def test_small_fleets_need_two_thirds_and_no_committee() -> None:
    for n in range(3, 16):
        found = parameters(n, corrupt_fraction=1 / 3, dropout_fraction=0.1, server_malicious=True)
        assert found == Parameters(n, n - 1, 2 * n // 3 + 1, 2 * n // 3 + 1)
