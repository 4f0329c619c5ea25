"""Data before training: annotators who agree, parts that share nothing, and synthetic rows that copy nobody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn.metrics import cohen_kappa_score

from cohort_tables import table
from umbel_models.responsible.agreement import (
    Level,
    agreement,
    cohen_kappa,
    fleiss_kappa,
    interval,
    krippendorff_alpha,
)
from umbel_models.responsible.leakage import ahead, before_the_last, leakage, near_duplicates, telling
from umbel_models.responsible.synthetic import fit_copula, kolmogorov_smirnov, validate
from umbel_models.task import Examples, Split
from umbel_proto.errors import UsageError

NONE = np.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section C: four observers, twelve units.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
).T


@given(seed=st.integers(0, 2**31), labels=st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_cohens_kappa_is_that_of_scikit_learn(seed: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(labels, size=60)
    second = np.where(rng.random(60) < 0.5, first, rng.integers(labels, size=60))
    assert cohen_kappa(np.stack([first, second], 1)) == pytest.approx(cohen_kappa_score(first, second))


def test_fleiss_kappa_is_that_of_the_worked_example() -> None:
    # Ten subjects, 14 raters, 5 categories: kappa is 0.210 (en.wikipedia.org/wiki/Fleiss'_kappa, "Worked example").
    counts = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert fleiss_kappa([np.repeat(np.arange(5), row) for row in counts]) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize(
    ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_krippendorffs_alpha_is_that_of_his_example(level: Level, published: float) -> None:
    assert krippendorff_alpha(OBSERVERS, level) == pytest.approx(published, abs=5e-4)


def test_perfect_agreement_is_1_and_chance_is_about_0() -> None:
    same = np.repeat(np.arange(4), 50)[:, None].repeat(3, 1)
    chance = np.random.default_rng(0).integers(4, size=(2000, 3))
    assert fleiss_kappa(same) == krippendorff_alpha(same) == cohen_kappa(same[:, :2]) == 1.0
    # The deviation of kappa is about 1/sqrt(6000 pairs * 3): six of them.
    assert max(abs(fleiss_kappa(chance)), abs(krippendorff_alpha(chance, "ordinal"))) < 0.05


def test_agreement_on_one_label_says_nothing() -> None:
    assert np.isnan(cohen_kappa(np.zeros((5, 2))))
    assert np.isnan(krippendorff_alpha(np.zeros((5, 2))))


def test_the_interval_holds_the_value_and_narrows_with_units() -> None:
    few, many = (
        interval(krippendorff_alpha, OBSERVERS),
        interval(krippendorff_alpha, np.tile(OBSERVERS, (9, 1))),
    )
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 2


def test_the_card_tells_what_the_ratings_allow() -> None:
    assert "Fleiss' kappa" not in agreement(OBSERVERS)
    told = agreement(np.array([[0, 0], [1, 1], [0, 1], [1, 1]]))
    assert {"Cohen's kappa", "Fleiss' kappa", "Krippendorff's alpha, nominal low"} <= set(told)


@pytest.mark.parametrize(
    ("statistic", "ratings"),
    [
        (cohen_kappa, np.zeros((4, 3))),
        (fleiss_kappa, OBSERVERS),
        (krippendorff_alpha, np.array([[1, NONE], [NONE, 2]])),
        (krippendorff_alpha, np.zeros(4)),
    ],
)
def test_ratings_a_statistic_cannot_judge_are_refused(statistic: object, ratings: np.ndarray) -> None:
    with pytest.raises(UsageError):
        statistic(ratings)  # type: ignore[operator]


def split(train: Examples, held_out: Examples) -> Split:
    return Split(train, held_out, table(50, seed=9))


def test_parts_that_share_nothing_are_clean() -> None:
    found = leakage(split(table(800, seed=1), table(400, seed=2)))
    assert found.clean
    assert found.figures()["sources in several parts"] == "not told"


def test_copies_and_near_copies_are_counted() -> None:
    train, held_out = table(800, seed=1), table(400, seed=2)
    held_out.x[:3] = train.x[:3]
    held_out.x[3:8] = train.x[3:8] + np.float32(0.01)
    found = leakage(split(train, held_out))
    assert (found.exact, found.near) == (3, 5)
    assert near_duplicates(train, held_out).nonzero()[0].tolist() == [3, 4, 5, 6, 7]


def test_inputs_with_two_labels_are_counted() -> None:
    train = table(100, seed=1)
    train.x[1], train.y[0], train.y[1] = train.x[0], 0, 1
    assert leakage(split(train, table(50, seed=2))).contradictions == 2


def test_sources_in_two_parts_are_counted() -> None:
    parts = [
        part._replace(source=np.arange(len(part.y)) % 7 + start)
        for part, start in ((table(100, seed=1), 0), (table(50, seed=2), 5), (table(50, seed=3), 20))
    ]
    assert leakage(Split(*parts)).sources == 2


def test_an_input_made_from_the_label_is_named() -> None:
    train, held_out = table(800, seed=1), table(400, seed=2)
    for part in (train, held_out):
        part.x[:, 6] = part.y * 3 + part.x[:, 6] * 0.1
    assert list(telling(train, held_out)) == [6]
    names = ("a", "b", "c", "d", "e", "f", "late fee")
    assert (
        leakage(split(train, held_out)).figures(names)["inputs that tell the label alone"]
        == "late fee (1.00)"
    )


def test_a_column_written_after_the_fact_runs_ahead_of_its_target() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=500)
    series = np.stack([target, np.roll(target, 2), np.roll(target, -3), rng.normal(size=500)], 1)
    # Column 2 shows at t what the target will be at t + 3; column 1 repeats its past.
    assert ahead(series, target, horizon=5) == {2: 3}


def test_a_column_that_knows_the_present_best_is_no_leak_though_it_foretells_a_little() -> None:
    rng = np.random.default_rng(0)
    slow = np.convolve(rng.normal(size=520), np.ones(20), "valid")
    assert np.corrcoef(slow[:-1], slow[1:])[0, 1] > 0.9
    assert ahead((slow + 0.1 * rng.normal(size=len(slow)))[:, None], slow, horizon=5) == {}


def test_a_test_on_the_past_is_told() -> None:
    assert before_the_last(np.array([1.0, 5.0]), np.array([2.0, 4.0, 4.5, 7.0])) == 0.75


@given(seed=st.integers(0, 2**31), discrete=st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_distance_of_distributions_is_that_of_scipy(seed: int, discrete: bool) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=80), rng.normal(0.3, 1.2, size=50)
    if discrete:
        one, other = one.round(), other.round()
    assert kolmogorov_smirnov(one, other) == pytest.approx(ks_2samp(one, other).statistic)


def mixed(count: int, seed: int) -> Examples:
    """A table with a skewed column, a column of three values and correlated ones."""
    examples = table(count, seed=seed)
    examples.x[:, 5] = np.exp(examples.x[:, 0] + examples.x[:, 5])
    examples.x[:, 6] = np.digitize(examples.x[:, 6], [-0.5, 1.0])
    return examples


def test_synthetic_rows_keep_marginals_and_correlations_and_copy_nobody() -> None:
    train, unseen = mixed(1500, 1), mixed(1500, 2)
    made = fit_copula(train).sample(1500, seed=3)
    likeness = validate(made, train, unseen)
    # Two samples of 1,500 of one law differ by 0.05 once in 40 columns, and twice that almost never.
    assert likeness.worst < 0.08
    assert likeness.correlation < 0.05
    assert likeness.told_apart.value < 0.6
    assert likeness.copies == 0
    assert likeness.nearer.low < 0.5 < likeness.nearer.high + 0.02
    assert abs(made.y.mean() - train.y.mean()) < 0.06
    assert set(np.unique(made.x[:, 6])) <= {0.0, 1.0, 2.0}


def test_a_copy_of_the_training_data_is_called_one() -> None:
    train, unseen = mixed(400, 1), mixed(400, 2)
    likeness = validate(train, train, unseen)
    assert likeness.copies == 400
    assert likeness.nearer.low > 0.9


def test_columns_drawn_independently_are_told_apart() -> None:
    train, unseen = mixed(1500, 1), mixed(1500, 2)
    rng = np.random.default_rng(0)
    shuffled = train._replace(x=rng.permuted(train.x, axis=0))
    likeness = validate(shuffled, train, unseen)
    assert likeness.worst < 0.01
    assert likeness.correlation > 0.05
    assert likeness.told_apart.low > 0.6


def test_windows_are_imitated_in_their_shape_and_by_label() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=200)
    x = np.sin(np.arange(16)[None, :, None] * (0.3 + 0.3 * y[:, None, None])) + 0.1 * rng.normal(
        size=(200, 16, 2)
    )
    made = fit_copula(Examples(x.astype(np.float32), y)).sample(100, seed=1)
    assert made.x.shape == (100, 16, 2)
    assert made.x.dtype == np.float32
    for label in (0, 1):
        np.testing.assert_allclose(made.x[made.y == label].mean(0), x[y == label].mean(0), atol=0.08)


def test_the_seed_says_which_rows_are_drawn() -> None:
    copula = fit_copula(mixed(100, 1))
    np.testing.assert_array_equal(copula.sample(20, seed=1).x, copula.sample(20, seed=1).x)
    assert not np.array_equal(copula.sample(20, seed=1).x, copula.sample(20, seed=2).x)


def test_a_label_seen_too_seldom_is_not_imitated() -> None:
    few = mixed(100, 1)._replace(y=np.arange(100) // 95)
    with pytest.raises(UsageError, match="needs 10 examples"):
        fit_copula(few)
