"""Fairer training: weights, constraints and an adversary narrow the gap between cohorts, and cost little."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference
from fairlearn.reductions import EqualizedOdds, ExponentiatedGradient
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from cohort_tables import network, table
from umbel_models.fit import accuracy, fit, predict
from umbel_models.responsible.constrained import constrained, reduce_odds
from umbel_models.responsible.debias import against, debias
from umbel_models.responsible.fairness import gaps, rates
from umbel_models.responsible.reweight import reweigh
from umbel_models.task import cross_entropy
from umbel_proto.errors import UsageError

TRAIN, HELD_OUT = table(3000, seed=1), table(10_000, seed=2)
RECIPE: dict[str, Any] = {"epochs": 5, "batch_size": 64, "learning_rate": 1e-2, "seed": 0}
SHORT, LONG = RECIPE | {"epochs": 1}, RECIPE | {"epochs": 10}


def odds(module: nn.Module) -> float:
    return gaps(predict(module, HELD_OUT.x).argmax(1), HELD_OUT.y, HELD_OUT.cohort).odds


def parity(module: nn.Module) -> float:
    return gaps(predict(module, HELD_OUT.x).argmax(1), HELD_OUT.y, HELD_OUT.cohort).parity


@functools.cache
def plain() -> nn.Module:
    return fit(network(), cross_entropy, TRAIN, **RECIPE)


@given(seed=st.integers(0, 2**31), cohorts=st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_gaps_are_those_of_fairlearn(seed: int, cohorts: int) -> None:
    rng = np.random.default_rng(seed)
    y, predicted, cohort = (
        rng.integers(2, size=200),
        rng.integers(2, size=200),
        rng.integers(cohorts, size=200),
    )
    found = gaps(predicted, y, cohort)
    assert found.odds == pytest.approx(equalized_odds_difference(y, predicted, sensitive_features=cohort))
    assert found.parity == pytest.approx(
        demographic_parity_difference(y, predicted, sensitive_features=cohort)
    )


def test_a_perfect_model_has_a_parity_gap_but_no_odds_gap() -> None:
    y, cohort = np.array([0, 0, 0, 1, 0, 1, 1, 1]), np.repeat([0, 1], 4)
    found = gaps(y, y, cohort)
    assert (found.accuracy, found.parity, found.odds) == (0.0, 0.5, 0.0)


def test_the_gap_of_several_labels_is_the_worst_pair() -> None:
    y, cohort = np.array([2, 2, 2, 2, 0, 1]), np.array([0, 0, 1, 1, 0, 1])
    assert gaps(np.array([2, 2, 2, 1, 0, 1]), y, cohort).odds == 0.5


def test_rates_name_every_cohort() -> None:
    found = rates(
        np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), names=("north", "south")
    )
    assert found["north"] == {"examples": 2, "accuracy": 1.0, "recall of 0": 1.0, "recall of 1": 1.0}
    assert found["south"] == {"examples": 2, "accuracy": 0.5, "recall of 0": 0.0, "recall of 1": 1.0}


@given(
    counts=st.lists(st.lists(st.integers(1, 50), min_size=3, max_size=3), min_size=2, max_size=4),
)
def test_label_and_cohort_are_independent_under_the_weights(counts: list[list[int]]) -> None:
    cells = [
        (label, group) for group, row in enumerate(counts) for label, n in enumerate(row) for _ in range(n)
    ]
    y, cohort = np.array(cells).T
    weights = reweigh(y, cohort)
    weighted = np.array([[weights[(y == a) & (cohort == c)].sum() for a in range(3)] for c in set(cohort)])
    shares = np.array(counts)
    np.testing.assert_allclose(weighted, np.outer(shares.sum(1), shares.sum(0)) / len(y), rtol=1e-12)
    assert weights.sum() == pytest.approx(len(y))


def test_weights_cannot_make_up_for_examples_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="Cohort 1 holds no example of label 0"):
        reweigh(np.array([0, 1, 1]), np.array([0, 0, 1]))


def test_reweighing_halves_the_gap_in_how_often_each_label_is_given() -> None:
    fair = fit(network(), cross_entropy, TRAIN, weights=reweigh(TRAIN.y, TRAIN.cohort), **RECIPE)
    assert parity(plain()) > 0.2
    assert parity(fair) < parity(plain()) / 2
    assert accuracy(fair, HELD_OUT) > accuracy(plain(), HELD_OUT) - 0.03


# Pandas warns of how fairlearn writes to its tables.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_constraint_is_reached_as_by_fairlearn() -> None:
    def learn(y: np.ndarray, weights: np.ndarray) -> LogisticRegression:
        return LogisticRegression().fit(TRAIN.x, y, sample_weight=weights * len(y) / weights.sum())

    ours = reduce_odds(
        learn, lambda member: member.predict(TRAIN.x), TRAIN.y, TRAIN.cohort, slack=0.02, rounds=20
    ).single.predict(HELD_OUT.x)
    oracle = ExponentiatedGradient(LogisticRegression(), EqualizedOdds(difference_bound=0.02), eps=0.02)
    oracle.fit(TRAIN.x, TRAIN.y, sensitive_features=TRAIN.cohort)
    randomized = oracle._pmf_predict(HELD_OUT.x)[:, 1]
    theirs = [
        np.ptp([randomized[(HELD_OUT.y == y) & (HELD_OUT.cohort == c)].mean() for c in (0, 1)])
        for y in (0, 1)
    ]
    # Rates of 10,000 examples, a quarter of them in each cell, vary by 0.02.
    assert gaps(ours, HELD_OUT.y, HELD_OUT.cohort).odds < max(theirs) + 0.02
    assert (ours != HELD_OUT.y).mean() < np.abs(randomized - HELD_OUT.y).mean() + 0.01


def test_a_network_trained_under_the_constraint_keeps_it() -> None:
    done: list[int] = []
    reduced = constrained(plain(), cross_entropy, TRAIN, slack=0.03, rounds=8, progress=done.append, **SHORT)
    assert done == list(range(1, 9))
    assert reduced.gaps[reduced.best] <= 0.03
    assert odds(reduced.single) < 0.06
    assert accuracy(reduced.single, HELD_OUT) > accuracy(plain(), HELD_OUT) - 0.03


def test_the_member_shipped_is_the_most_accurate_within_the_slack() -> None:
    reduced = constrained(plain(), cross_entropy, TRAIN, slack=0.05, rounds=8, **SHORT)
    within = reduced.gaps <= 0.05
    assert reduced.errors[reduced.best] == reduced.errors[within].min()


@pytest.mark.parametrize(("y", "words"), [([0, 1, 2, 1], "two labels"), ([0, 1, 0, 0], "Cohort 1 holds no")])
def test_odds_that_cannot_be_equalized_are_refused(y: list[int], words: str) -> None:
    examples = table(4, seed=0)._replace(y=np.array(y), cohort=np.array([0, 0, 1, 1]))
    with pytest.raises(UsageError, match=words):
        constrained(network(), cross_entropy, examples, **RECIPE)


@given(seed=st.integers(0, 2**31), strength=st.floats(0, 5))
@settings(max_examples=50, deadline=None)
def test_whatever_the_labels_want_no_step_helps_the_adversary(seed: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (4,), (2, 2, 2)]
    wanted = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    telling = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    step = against(wanted, telling, strength)
    along = sum(float((p * q).sum()) for p, q in zip(step, telling, strict=True))
    squared = sum(float((q * q).sum()) for q in telling)
    # Descending the step moves the adversary's loss by minus this.
    assert along == pytest.approx(-strength * squared, abs=1e-9)


def test_without_an_adversary_the_labels_keep_their_gradient() -> None:
    wanted = [torch.ones(3)]
    assert torch.equal(against(wanted, [torch.zeros(3)], 1.0)[0], wanted[0])


def test_debiasing_narrows_the_gap_and_repeats() -> None:
    assert odds(plain()) > 0.1
    fair = debias(network(), cross_entropy, TRAIN, **LONG)
    assert odds(fair) < odds(plain()) / 2
    assert accuracy(fair, HELD_OUT) > accuracy(plain(), HELD_OUT) - 0.03
    again = debias(network(), cross_entropy, TRAIN, **LONG)
    for one, other in zip(fair.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_examples_without_cohorts_cannot_be_debiased() -> None:
    with pytest.raises(UsageError, match=r"set Examples\.cohort"):
        debias(network(), cross_entropy, TRAIN._replace(cohort=None), **RECIPE)
