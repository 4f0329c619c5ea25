"""Credit applications, generated: who repays is drawn first, what the lender sees of it after.

Nobody's data is in it. Every person has four standard normal traits that no one observes (means, prudence,
stability, burden), and defaults where solvency, a weighted sum of them and of chance, falls under a threshold.
The columns of ``features.FEATURES`` depend on the same traits. What a cohort suffers is set by the three
knobs of ``Gap``, each of which does one thing and can be turned off.

Source:
    One-factor threshold model of default: Vasicek, "The Distribution of Loan Portfolio Value", Risk,
    December 2002. Kinds of unfairness: Barocas, Hardt, Narayanan, "Fairness and Machine Learning", MIT
    Press 2023, chapters 3 and 5. The numbers are chosen, not estimated from any population.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from umbel_models.task import Examples, Split
from umbel_models.tasks.credit.features import FEATURES, Feature
from umbel_proto.errors import UsageError

REPAID, DEFAULT = 0, 1
A, B = 0, 1
SHARE_B = 0.3
DEFAULTS = 0.25  # of all people, whatever the gap
BRANCHES = 20
ECONOMY = np.linspace(0.05, 0.4, BRANCHES // 2)  # how far a pair of branches lies apart from the average
TRAITS = {"means": 0.35, "prudence": 0.6, "stability": 0.3, "burden": -0.45}
KNOWABLE = 0.9  # correlation of solvency with the traits: the rest is chance, which nothing predicts
SIZES = (12_000, 4_000, 300)


@dataclass(frozen=True, slots=True)
class Gap:
    """How differently the model's world treats cohort B from cohort A.

    Args:
        base_rate: How much likelier B is to default, through shocks that no column shows, in 0..0.5.
        measurement: How little the bureau's file of a person of B tells of that person's prudence, in 0..1:
            the file's correlation with it is sqrt(1 - measurement**2) times that of A. Columns are
            distributed the same in both cohorts whatever it is.
        proxy: How much the columns of place tell of the cohort: the correlation of the first with it, in
            0..1. Cohorts also live apart by it: they divide unequally over branches.
    """

    base_rate: float = 0.2
    measurement: float = 0.6
    proxy: float = 0.8

    def __post_init__(self) -> None:
        if not (0 <= self.base_rate <= 0.5 and 0 <= self.measurement <= 1 and 0 <= self.proxy <= 1):
            raise UsageError(f"{self} is no gap: give a base rate in 0..0.5 and the others in 0..1.")


FAIR = Gap(0.0, 0.0, 0.0)


def applications(seed: int, count: int, *, gap: Gap | None = None) -> Examples:
    """Generate applications: x (count, 20), y repaid or default, the cohort A or B, and the branch as source.

    The same seed gives the same people under any gap, so that two gaps compare person by person.

    Args:
        seed: Who applies.
        count: How many, >= 1.
        gap: What cohort B suffers; by default ``Gap()``.
    """
    gap = gap or Gap()
    draw = np.random.default_rng([seed, 0])
    branch = draw.integers(BRANCHES, size=count)
    pair = branch // 2
    share = SHARE_B * (1 + 0.8 * gap.proxy * np.linspace(-1, 1, BRANCHES // 2)[pair])
    cohort = np.where(draw.random(count) < share, B, A)
    traits = {name: draw.standard_normal(count) for name in TRAITS}
    solvency = sum(weight * traits[name] for name, weight in TRAITS.items())
    solvency = solvency / np.sqrt(sum(weight**2 for weight in TRAITS.values()))
    solvency = KNOWABLE * solvency + np.sqrt(1 - KNOWABLE**2) * draw.standard_normal(count)

    # The two branches of a pair hold the cohorts alike and lie as far above as below the average economy, so
    # that branches make devices differ in labels without making cohorts differ.
    economy = np.where(branch % 2 == 0, 1, -1) * ECONOMY[pair]
    rates = {A: DEFAULTS - SHARE_B * gap.base_rate, B: DEFAULTS + (1 - SHARE_B) * gap.base_rate}
    threshold = np.where(cohort == B, _threshold(rates[B]), _threshold(rates[A]))
    y = np.where(solvency + economy < threshold, DEFAULT, REPAID)

    thin = np.where(cohort == B, gap.measurement, 0.0)
    filed = np.sqrt(1 - thin**2) * traits["prudence"] + thin * draw.standard_normal(count)
    apart = (cohort - SHARE_B) / np.sqrt(SHARE_B * (1 - SHARE_B))
    place = gap.proxy * apart + np.sqrt(1 - gap.proxy**2) * draw.standard_normal(count)
    seen = {**traits, "place": place}
    columns = [
        _column(feature, {**seen, "prudence": filed} if feature.filed else seen, draw.standard_normal(count))
        for feature in FEATURES
    ]
    x = np.stack(columns, axis=1).astype(np.float32)
    return Examples(x, y.astype(np.int64), cohort.astype(np.int64), branch.astype(np.int64))


def split(gap: Gap | None = None, *, seed: int = 0) -> Split:
    """Return 12,000 applications to train on, 4,000 held out and 300 for calibration, of different people.

    Args:
        gap: What cohort B suffers; by default ``Gap()``.
        seed: Who applies.
    """
    whole = applications(seed, sum(SIZES), gap=gap)
    bounds = np.cumsum((0, *SIZES))
    return Split(*(whole.take(np.arange(start, end)) for start, end in pairwise(bounds)))


def _threshold(rate: float) -> float:
    # Branches widen the spread of solvency.
    return NormalDist(sigma=float(np.sqrt(1 + np.mean(ECONOMY**2)))).inv_cdf(rate)


def _column(
    feature: Feature, causes: dict[str, NDArray[np.float64]], own: NDArray[np.float64]
) -> NDArray[np.float64]:
    explained = sum(weight**2 for weight in feature.causes.values())
    level = np.sqrt(1 - explained) * own
    for name, weight in feature.causes.items():
        level = level + weight * causes[name]
    values = (
        feature.middle + feature.spread * level
        if feature.normal
        else feature.middle * np.exp(feature.spread * level)
    )
    values = np.clip(values, 0, feature.maximum)
    return np.asarray(np.floor(values) if feature.whole else values)
