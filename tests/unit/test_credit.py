"""The credit task: each knob of its gap does what it says, and nothing else.

Seeds are fixed. Bounds are four standard errors (a false alarm in 16,000) or wider, where they say so.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from umbel_models.task import Examples
from umbel_models.tasks.credit.data import (
    BRANCHES,
    DEFAULTS,
    FAIR,
    KNOWABLE,
    SHARE_B,
    TRAITS,
    A,
    B,
    Gap,
    applications,
    split,
)
from umbel_models.tasks.credit.features import FEATURES
from umbel_models.tasks.credit.task import CREDIT
from umbel_proto.errors import UsageError

N = 40_000
NAMES = [feature.name for feature in FEATURES]
FILED = [feature.filed for feature in FEATURES]
PLACE = ["place" in feature.causes for feature in FEATURES]


def cohort(examples: Examples, which: int) -> Examples:
    assert examples.cohort is not None
    return examples.take(examples.cohort == which)


def column(examples: Examples, name: str) -> NDArray[np.float32]:
    return examples.x[:, NAMES.index(name)]


def label_gap(examples: Examples) -> float:
    return float(cohort(examples, B).y.mean() - cohort(examples, A).y.mean())


def standard_error(examples: Examples) -> float:
    return math.sqrt(
        sum(c.y.mean() * (1 - c.y.mean()) / len(c.y) for c in (cohort(examples, A), cohort(examples, B)))
    )


@pytest.mark.parametrize("gap", [FAIR, Gap(0, 1, 0), Gap(0, 0, 1), Gap(0, 0.7, 0.7)], ids=str)
def test_without_a_base_rate_gap_labels_show_demographic_parity(gap: Gap) -> None:
    people = applications(1, N, gap=gap)
    assert abs(label_gap(people)) < 4 * standard_error(people)


@pytest.mark.parametrize("base_rate", [0.05, 0.2, 0.4])
def test_the_base_rate_knob_is_the_gap_of_default_rates(base_rate: float) -> None:
    people = applications(2, 4 * N, gap=Gap(base_rate, 0, 0))
    assert label_gap(people) == pytest.approx(base_rate, abs=4 * standard_error(people))
    assert people.y.mean() == pytest.approx(DEFAULTS, abs=4 * math.sqrt(DEFAULTS * (1 - DEFAULTS) / (4 * N)))


def test_the_base_rate_shows_in_no_column() -> None:
    fair, shocked = applications(3, 500, gap=FAIR), applications(3, 500, gap=Gap(0.4, 0, 0))
    np.testing.assert_array_equal(fair.x, shocked.x)
    assert (fair.y != shocked.y).any()


def test_the_measurement_knob_leaves_every_columns_distribution_alone() -> None:
    people = applications(4, N, gap=Gap(0, 1, 0))
    for name in NAMES:
        same = stats.ks_2samp(column(cohort(people, A), name), column(cohort(people, B), name))
        assert same.pvalue > 1e-4, name


def test_the_measurement_knob_takes_from_files_of_b_only_what_it_says() -> None:
    # A column's correlation with default goes through prudence alone, which the file shows sqrt(1 - m^2) of.
    def told(m: float, which: int) -> float:
        people = cohort(applications(5, 4 * N, gap=Gap(0, m, 0)), which)
        return float(np.corrcoef(column(people, "utilization"), people.y)[0, 1])

    for m in (0.5, 0.8):
        assert told(m, B) / told(0, B) == pytest.approx(math.sqrt(1 - m**2), abs=0.03)
        assert told(m, A) == told(0, A)
    assert abs(told(1, B)) < 4 / math.sqrt(SHARE_B * 4 * N)


def test_worse_files_change_only_columns_of_the_file_and_only_for_b() -> None:
    good, bad = (applications(5, 500, gap=Gap(0, m, 0)) for m in (0.0, 1.0))
    assert good.cohort is not None
    for index, filed in enumerate(FILED):
        changed = good.x[:, index] != bad.x[:, index]
        assert not changed[good.cohort == A].any()
        assert changed[good.cohort == B].any() == (filed and "prudence" in FEATURES[index].causes)


def test_worse_files_make_b_harder_to_judge() -> None:
    def judged(m: float, which: int) -> float:
        people = cohort(applications(6, N, gap=Gap(0, m, 0)), which)
        x = np.log1p(people.x[:, FILED])
        model = LogisticRegression(max_iter=300).fit(x, people.y)
        return float(roc_auc_score(people.y, model.predict_proba(x)[:, 1]))

    areas = [judged(m, B) for m in (0.0, 0.4, 0.7, 1.0)]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] == pytest.approx(judged(0, A), abs=0.02)
    assert areas[-1] < 0.55


def test_the_proxy_knob_is_the_correlation_of_place_with_the_cohort() -> None:
    for proxy in (0.0, 0.3, 0.9):
        people = applications(7, N, gap=Gap(0, 0, proxy))
        assert people.cohort is not None
        correlation = np.corrcoef(column(people, "neighborhood"), people.cohort)[0, 1]
        # Living apart narrows or widens the cohorts' shares by branch, not the overall one.
        assert correlation == pytest.approx(proxy, abs=4 / math.sqrt(N))


def test_only_columns_of_place_tell_the_cohort() -> None:
    people = applications(8, N, gap=Gap(0, 1, 1))
    for index, name in enumerate(NAMES):
        same = stats.ks_2samp(cohort(people, A).x[:, index], cohort(people, B).x[:, index])
        assert (same.pvalue < 1e-6) == PLACE[index], name


def test_columns_have_the_medians_they_state() -> None:
    people = applications(9, N, gap=FAIR)
    for feature in FEATURES:
        # The standard error of a median of a normal variable is 1.2533 deviations / sqrt(n).
        spread = feature.spread if feature.normal else feature.spread * feature.middle
        bound = 4 * 1.2533 * spread / math.sqrt(N)
        found = float(np.median(column(people, feature.name)))
        expected = math.floor(feature.middle) if feature.whole else feature.middle
        assert found == pytest.approx(expected, abs=bound), feature.name


def test_what_cannot_be_known_bounds_what_can_be_learned() -> None:
    # With the traits themselves, the best ranking has the area of two normals' threshold model.
    people = applications(10, N, gap=FAIR)
    rng = np.random.default_rng(0)
    known = rng.standard_normal(10 * N)
    y = KNOWABLE * known + math.sqrt(1 - KNOWABLE**2) * rng.standard_normal(10 * N) < stats.norm.ppf(DEFAULTS)
    x = np.log1p(people.x)
    model = LogisticRegression(max_iter=300).fit(x, people.y)
    learned = roc_auc_score(people.y, model.predict_proba(x)[:, 1])
    assert 0.85 < learned < roc_auc_score(y, -known)


def test_branches_differ_in_labels_though_cohorts_do_not() -> None:
    people = applications(11, N, gap=FAIR)
    assert people.source is not None
    table = [
        [int(((people.source == b) & (people.y == label)).sum()) for label in (0, 1)] for b in range(BRANCHES)
    ]
    assert stats.chi2_contingency(table).pvalue < 1e-12


def test_the_seed_says_who_applies() -> None:
    first, again, other = (applications(seed, 50) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first.x, other.x)


def test_the_parts_are_different_people_who_keep_the_contract() -> None:
    parts = split()
    assert [len(part.y) for part in parts] == [12_000, 4_000, 300]
    whole = np.concatenate([part.x for part in parts])
    assert len(np.unique(whole, axis=0)) == len(whole)
    for part in parts:
        CREDIT.contract.check(part.x)
        assert part.cohort is not None
        assert set(part.cohort) == {A, B}


def test_no_trait_is_explained_beyond_its_variance() -> None:
    for feature in FEATURES:
        assert sum(weight**2 for weight in feature.causes.values()) <= 1
        assert set(feature.causes) <= {*TRAITS, "place"}


@pytest.mark.parametrize("knobs", [(-0.1, 0, 0), (0.6, 0, 0), (0, 1.1, 0), (0, 0, 2), (math.nan, 0, 0)])
def test_a_gap_that_makes_no_sense_is_refused(knobs: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="no gap"):
        Gap(*knobs)


def test_each_column_is_held_to_what_is_documented_of_it() -> None:
    (field,) = CREDIT.contract.fields
    assert [column.name for column in field.columns] == [each.name.replace(" ", "-") for each in FEATURES]
    person = split().train.x[0].copy()
    names = [each.name for each in FEATURES]
    person[names.index("income")], person[names.index("utilization")] = 900, -3
    cut, _, breach = field.examine(person)
    assert (cut[0, names.index("income")], cut[0, names.index("utilization")]) == (200, 0)
    assert breach is not None
    assert breach.counts == {"income.above": 1, "utilization.below": 1}
    person[names.index("late payments")] = 1.5
    with pytest.raises(UsageError, match=r"column 'late-payments'.* 1 unknown"):
        field.check(person)
