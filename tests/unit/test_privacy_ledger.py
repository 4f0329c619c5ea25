"""The ledger's rules: charges add up, budgets hold, refusals say which number to change."""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction

import pytest

from umbel_proto.errors import BudgetError, UsageError
from umbel_proto.ids import RunId
from umbel_proto.privacy.accounting import epsilon
from umbel_proto.privacy.ledger import Charge, check, course, spent

DELTA = 1e-6
CHARGE = Charge(RunId("digits-1"), 3, 0, bytes(32), 12_005_111, 10**6, Fraction(193_110_000), 1_800_000_000.0)


def charges(count: int) -> list[Charge]:
    return [dataclasses.replace(CHARGE, round=number, sid=bytes([number]) * 32) for number in range(count)]


def test_an_empty_ledger_has_spent_nothing() -> None:
    assert spent([], DELTA) == 0


def test_equal_rounds_cost_what_epsilon_says() -> None:
    for count in (1, 2, 10, 100):
        single = epsilon(CHARGE.bound_sq, CHARGE.padded, float(CHARGE.variance), DELTA, count)
        assert spent(charges(count), DELTA) == pytest.approx(single, rel=1e-12)


def test_different_rounds_cost_less_than_their_sum_and_more_than_the_worst() -> None:
    other = dataclasses.replace(CHARGE, bound_sq=10**6, padded=1000, variance=Fraction(3 * 10**7, 2))
    alone = spent([CHARGE], DELTA), spent([other], DELTA)
    assert max(alone) < spent([CHARGE, other], DELTA) < sum(alone)


def test_the_same_session_charged_twice_counts_twice() -> None:
    assert spent([CHARGE, CHARGE], DELTA) > spent([CHARGE], DELTA)


def test_the_order_of_charges_does_not_matter() -> None:
    other = dataclasses.replace(CHARGE, variance=Fraction(10**8))
    assert spent([CHARGE, other], DELTA) == pytest.approx(spent([other, CHARGE], DELTA), rel=1e-14)


def test_the_course_says_what_was_spent_after_each_charge() -> None:
    other = dataclasses.replace(CHARGE, variance=Fraction(10**8))
    mixed = [CHARGE, other, CHARGE, CHARGE, other, dataclasses.replace(CHARGE, variance=Fraction(0)), other]
    each = [spent(mixed[:count], DELTA) for count in range(1, len(mixed) + 1)]
    assert course(mixed, DELTA) == pytest.approx(each, rel=1e-12)
    assert course([], DELTA) == []


def test_a_round_without_noise_costs_everything() -> None:
    assert spent([CHARGE, dataclasses.replace(CHARGE, variance=Fraction(0))], DELTA) == math.inf


def test_a_budget_lets_in_just_what_it_covers() -> None:
    before = charges(9)
    covered = spent(charges(10), DELTA)
    new = dataclasses.replace(CHARGE, round=9, sid=bytes([9]) * 32)
    assert check(before, new, budget_epsilon=covered, budget_delta=DELTA) == covered
    with pytest.raises(BudgetError):
        check(before, new, budget_epsilon=math.nextafter(covered, 0), budget_delta=DELTA)


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_a_refusal_names_a_budget_that_would_do(count: int) -> None:
    with pytest.raises(BudgetError) as caught:
        check(charges(count), CHARGE, budget_epsilon=0.5, budget_delta=DELTA)
    named = re.search(r"raise budget_epsilon in the fleet's policy to at least ([\d.]+)", str(caught.value))
    assert named is not None
    enough = float(named[1].rstrip("."))
    after = check(charges(count), CHARGE, budget_epsilon=enough, budget_delta=DELTA)
    assert enough == pytest.approx(after, rel=2e-3)
    assert "Round 3 of run digits-1" in str(caught.value)


def test_a_finite_budget_refuses_a_round_without_noise_and_says_so() -> None:
    silent = dataclasses.replace(CHARGE, variance=Fraction(0))
    with pytest.raises(BudgetError, match=r"adds no noise.*noise_multiplier above 0"):
        check([], silent, budget_epsilon=1e9, budget_delta=DELTA)
    with pytest.raises(BudgetError, match="follows a round without noise"):
        check([silent], CHARGE, budget_epsilon=1e9, budget_delta=DELTA)


def test_an_infinite_budget_only_keeps_count() -> None:
    silent = dataclasses.replace(CHARGE, variance=Fraction(0))
    assert check([], silent, budget_epsilon=math.inf, budget_delta=DELTA) == math.inf


@pytest.mark.parametrize(
    ("budget", "delta"), [(0.0, DELTA), (-1.0, DELTA), (math.nan, DELTA), (8.0, 0.0), (8.0, 1.0)]
)
def test_a_budget_that_is_none_is_refused(budget: float, delta: float) -> None:
    with pytest.raises(UsageError):
        check([], CHARGE, budget_epsilon=budget, budget_delta=delta)


@pytest.mark.parametrize(
    "change",
    [
        {"round": -1},
        {"attempt": -1},
        {"sid": b"short"},
        {"bound_sq": 0},
        {"padded": 0},
        {"variance": Fraction(-1)},
        {"variance": 2.5},
    ],
)
def test_a_charge_out_of_range_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(CHARGE, **change)
