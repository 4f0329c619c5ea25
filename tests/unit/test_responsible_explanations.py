"""Explanations: importances, integrated gradients and a readable tree tell what a known model does."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.inspection import permutation_importance
from torch import nn

from cohort_tables import network, table
from umbel_models.fit import fit, predict
from umbel_models.responsible.explanations import (
    MIN_SLICE,
    Attributions,
    by_cohort,
    figures,
    groups_of,
    importance,
    integrated_gradients,
)
from umbel_models.responsible.figures import Interval
from umbel_models.responsible.surrogate import imitate
from umbel_models.task import cross_entropy

TRAIN, HELD_OUT = table(3000, seed=1), table(2000, seed=2)


@functools.cache
def trained() -> nn.Module:
    return fit(network(), cross_entropy, TRAIN, epochs=5, batch_size=64, learning_rate=1e-2, seed=0)


class Fitted(BaseEstimator):  # type: ignore[misc]
    """The trained network as scikit-learn's oracle wants it."""

    def fit(self, x: Any, y: Any) -> None: ...

    def predict(self, x: np.ndarray) -> np.ndarray:
        return predict(trained(), x).argmax(1)


def test_importances_are_those_of_scikit_learn() -> None:
    ours = importance(trained(), HELD_OUT, groups_of((7,)), repeats=20)
    theirs = permutation_importance(
        Fitted(), HELD_OUT.x, HELD_OUT.y, scoring="accuracy", n_repeats=20, random_state=1
    )
    for column in range(7):
        # Each mean of 20 shuffles is known to within four of its deviations.
        sure = 4 * theirs.importances_std[column] / np.sqrt(20) * np.sqrt(2)
        assert ours[f"input {column}"].value == pytest.approx(
            theirs.importances_mean[column], abs=sure + 1e-3
        )


def test_the_columns_that_decide_come_first_and_noise_loses_nothing() -> None:
    ours = importance(trained(), HELD_OUT, groups_of((7,), tuple("abcdefg")))
    assert next(iter(ours)) == "a"
    assert list(ours.values()) == sorted(ours.values(), key=lambda each: -each.value)
    for noise in "fg":
        assert abs(ours[noise].value) < 0.02


def test_a_column_the_model_cannot_see_has_no_importance_at_all() -> None:
    blind = nn.Linear(7, 2)
    with torch.no_grad():
        blind.weight[:, 3] = 0
    found = importance(blind, HELD_OUT, groups_of((7,)))["input 3"]
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_many_inputs_are_judged_by_channel() -> None:
    groups = groups_of((128, 9))
    assert len(groups) == 9
    assert groups["channel 2"].tolist() == [2 + 9 * each for each in range(128)]
    assert sorted(np.concatenate(list(groups.values()))) == list(range(128 * 9))
    assert list(groups_of((128, 9), tuple("abcdefghi"))) == list("abcdefghi")


def test_a_linear_models_gradients_share_out_exactly() -> None:
    module = nn.Linear(7, 3)
    baseline = TRAIN.x.mean(0)
    target = np.arange(50) % 3
    found = integrated_gradients(module, HELD_OUT.x[:50], baseline=baseline, target=target, steps=1)
    weights = module.weight.detach().numpy()[target]
    np.testing.assert_allclose(found.values, weights * (HELD_OUT.x[:50] - baseline), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.residual, 0, atol=1e-5)


def test_attributions_add_up_to_the_logit_they_explain_and_finer_steps_fit_better() -> None:
    smooth = nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 2))
    x, target = HELD_OUT.x[:100], HELD_OUT.y[:100]
    baseline = np.zeros(7, np.float32)
    residuals = []
    for steps in (4, 32):
        found = integrated_gradients(smooth, x, baseline=baseline, target=target, steps=steps)
        risen = (predict(smooth, x) - predict(smooth, baseline[None]))[np.arange(100), target]
        np.testing.assert_allclose(found.values.sum(1) + found.residual, risen, atol=1e-5)
        residuals.append(np.abs(found.residual).max())
    assert residuals[1] < 1e-3
    # The midpoint rule errs with the square of the step: 64 times less, down to rounding.
    assert residuals[1] < residuals[0] / 20


def test_attributions_are_the_integral_of_the_slope() -> None:
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([(x**2).sum(1), (x**3).sum(1)], 1)

    x = HELD_OUT.x[:10]
    zero = np.zeros(7, np.float32)
    found = integrated_gradients(Square(), x, baseline=zero, target=np.zeros(10, np.int64))
    np.testing.assert_allclose(found.values, x**2, rtol=1e-5)
    cubes = integrated_gradients(Square(), x, baseline=zero, target=np.ones(10, np.int64))
    np.testing.assert_allclose(cubes.values, x**3, rtol=1e-3)


def test_a_tree_finds_the_rules_of_a_model_that_has_some() -> None:
    class Rule(nn.Module):
        """Yes where column 1 is over 0.5 and column 4 under 0."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            yes = ((x[:, 1] > 0.5) & (x[:, 4] < 0)).float()
            return torch.stack([1 - yes, yes], 1)

    found = imitate(Rule(), TRAIN, HELD_OUT, labels=("no", "yes"), columns=tuple("abcdefg"))
    assert found.fidelity.value > 0.99
    assert "b <= 0.5" in found.rules
    assert "class: yes" in found.rules
    assert not set("acdfg") & {line.split()[-3] for line in found.rules.splitlines() if "<=" in line}


def test_fidelity_is_to_the_model_and_not_to_the_truth() -> None:
    found = imitate(trained(), TRAIN, HELD_OUT, labels=("no", "yes"), leaves=16)
    said = predict(trained(), HELD_OUT.x).argmax(1)
    assert found.fidelity.low > max(said.mean(), 1 - said.mean()) == found.majority
    assert found.fidelity.value > found.accuracy


def test_no_rule_asks_what_changes_nothing() -> None:
    found = imitate(trained(), TRAIN, HELD_OUT, labels=("no", "yes"), leaves=16)
    lines = found.rules.splitlines()
    assert 4 < found.rules.count("class:") < 16
    # Both leaves of a question follow it one after the other, with the opposite question between them.
    pairs = [(one, other) for one, other in zip(lines, lines[2:], strict=False) if "class" in one + other]
    assert pairs
    assert all(one != other for one, other in pairs)


def test_a_model_that_gives_one_label_is_imitated_by_no_rule() -> None:
    module = nn.Linear(7, 2)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.copy_(torch.tensor([0.0, 1.0]))
    found = imitate(module, TRAIN, HELD_OUT, labels=("no", "yes"))
    assert (found.fidelity.value, found.majority) == (1.0, 1.0)


def test_the_card_names_the_most_important_inputs() -> None:
    lost = importance(trained(), HELD_OUT, groups_of((7,)))
    local = integrated_gradients(trained(), HELD_OUT.x[:10], baseline=TRAIN.x.mean(0), target=HELD_OUT.y[:10])
    told = figures(lost, local)
    assert f"accuracy lost without {next(iter(lost))}" in told
    assert "integrated gradients, greatest completeness residual" in told


def test_an_input_that_is_called_as_the_end_of_anothers_interval_keeps_its_own_figure() -> None:
    named = {"tide low": Interval(0.1, 0.08, 0.12), "tide": Interval(0.2, 0.18, 0.22)}
    for lost in (named, dict(reversed(named.items()))):
        told = figures(lost, Attributions(np.zeros((1, 2), np.float32), np.zeros(1, np.float32)))
        own = {name: told[f"accuracy lost without {name}"] for name in (*named, "tide high", "tide low low")}
        assert own == {"tide low": 0.1, "tide": 0.2, "tide high": 0.22, "tide low low": 0.08}


def test_what_decides_within_a_cohort_is_what_decides_on_its_rows_alone() -> None:
    groups = groups_of((7,), tuple("abcdefg"))
    found = by_cohort(trained(), HELD_OUT, groups, names=("old town", "new town"), seed=3)
    assert HELD_OUT.cohort is not None
    assert list(found) == ["old town", "new town"]
    for number, each in enumerate(found.values()):
        alone = HELD_OUT.take(np.flatnonzero(HELD_OUT.cohort == number))
        assert each.examples == len(alone.y)
        assert each.lost == importance(trained(), alone, groups, seed=3)
    # What tells the cohort decides over all and not within one, where nobody differs by it.
    whole = importance(trained(), HELD_OUT, groups, seed=3)
    assert all(each.lost["d"].value < whole["d"].value for each in found.values())


def test_of_a_cohort_with_few_examples_and_of_none_nothing_is_told() -> None:
    groups = groups_of((7,))
    for few, told in ((MIN_SLICE - 1, ["0"]), (MIN_SLICE, ["0", "1"])):
        cohort = np.repeat([0, 1], [100 - few, few])
        assert (
            list(by_cohort(trained(), HELD_OUT.take(np.arange(100))._replace(cohort=cohort), groups)) == told
        )
    assert by_cohort(trained(), HELD_OUT._replace(cohort=None), groups) == {}


def test_the_card_tells_of_a_cohort_as_of_all() -> None:
    groups = groups_of((7,))
    lost, slices = importance(trained(), HELD_OUT, groups), by_cohort(trained(), HELD_OUT, groups)
    local = integrated_gradients(trained(), HELD_OUT.x[:10], baseline=TRAIN.x.mean(0), target=HELD_OUT.y[:10])
    told, plain = figures(lost, local, slices), figures(lost, local)
    assert {name: value for name, value in told.items() if not name.startswith("cohort ")} == plain
    for name, each in slices.items():
        alone = figures(each.lost, local)
        del alone["integrated gradients, greatest completeness residual"]
        own = {key: value for key, value in told.items() if key.startswith(f"cohort {name}, ")}
        assert own.pop(f"cohort {name}, examples") == each.examples
        assert own == {f"cohort {name}, {key}": value for key, value in alone.items()}
