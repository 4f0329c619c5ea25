"""Synthetic data that keep the marginals and correlations of real ones, and the checks they must pass.

They are **not differentially private**: the copula is fitted on real rows without noise, and says nothing
formal about any of them. ``validate`` measures whether rows were copied; it proves no secrecy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from umbel_models.responsible.figures import Figures, Interval, wilson
from umbel_models.task import Examples
from umbel_proto.errors import UsageError

# A column with fewer values is taken as discrete, and only values that occurred are drawn.
DISCRETE = 20
MIN_ROWS = 10

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Copula:
    """A Gaussian copula for each label: the marginals as they were, the dependence as of normal scores.

    Args:
        shape: Shape of one example.
        labels: The labels, shape (k,).
        shares: How frequent each is, shape (k,).
        columns: For each label the values of every column in order, shape (rows of the label, columns).
        factors: For each label a matrix whose product with itself is the correlation of the normal scores.

    Source: Patki, Wedge, Veeramachaneni, "The Synthetic Data Vault", DSAA 2016, section III; the shrinkage is
    Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
    """

    shape: tuple[int, ...]
    labels: NDArray[np.int64]
    shares: NDArray[np.float64]
    columns: tuple[Rows, ...]
    factors: tuple[Rows, ...]

    def sample(self, count: int, *, seed: int) -> Examples:
        """Return so many synthetic examples, without cohort and source."""
        rng = np.random.default_rng(seed)
        y = rng.choice(self.labels, size=count, p=self.shares)
        x = np.empty((count, self.columns[0].shape[1]), np.float32)
        for label, columns, factor in zip(self.labels, self.columns, self.factors, strict=True):
            rows = np.flatnonzero(y == label)
            normal = rng.standard_normal((len(rows), len(factor))) @ factor.T
            x[rows] = _values(columns, torch.special.ndtr(torch.from_numpy(normal)).numpy())
        return Examples(x.reshape(count, *self.shape), y)


def fit_copula(examples: Examples) -> Copula:
    """Return the copula of real examples, tables or windows.

    Raises:
        UsageError: A label has fewer than 10 examples: their correlations would be guesses.
    """
    labels, counts = np.unique(examples.y, return_counts=True)
    if not len(counts) or counts.min() < MIN_ROWS:
        raise UsageError(f"Every label needs {MIN_ROWS} examples to imitate: collect more, or join labels.")
    columns, factors = [], []
    for label in labels:
        rows = examples.x[examples.y == label].reshape(counts[labels == label][0], -1).astype(np.float64)
        columns.append(np.sort(rows, axis=0))
        covariance = LedoitWolf().fit(_scores(rows)).covariance_
        spread = np.sqrt(np.diag(covariance)).clip(min=1e-9)
        factors.append(np.linalg.cholesky(covariance / np.outer(spread, spread) + 1e-9 * np.eye(len(spread))))
    return Copula(examples.x.shape[1:], labels, counts / counts.sum(), tuple(columns), tuple(factors))


@dataclass(frozen=True, slots=True)
class Likeness:
    """How like real data synthetic ones are, and whether they copy.

    Args:
        distance: Kolmogorov-Smirnov distance of each column, the mean of them, in [0, 1].
        worst: The greatest of them.
        correlation: Mean absolute difference of the correlations of all pairs of columns, in [0, 2].
        told_apart: How often a forest tells real from synthetic: 0.5 is perfect, 1 is plainly false.
        copies: Synthetic rows equal to a training row.
        nearer: How often a synthetic row lies nearer to the training data than to as many unseen real rows:
            0.5 where none was memorized.
    """

    distance: float
    worst: float
    correlation: float
    told_apart: Interval
    copies: int
    nearer: Interval

    def figures(self) -> Figures:
        """Return the section of the card."""
        return {
            "Kolmogorov-Smirnov distance, mean": round(self.distance, 4),
            "Kolmogorov-Smirnov distance, worst column": round(self.worst, 4),
            "correlation distance": round(self.correlation, 4),
            **self.told_apart.figures("told apart by a forest"),
            "copies of training rows": self.copies,
            **self.nearer.figures("nearer to training than to unseen rows"),
            "differential privacy": "none",
        }


def validate(synthetic: Examples, train: Examples, unseen: Examples, *, seed: int = 0) -> Likeness:
    """Compare synthetic examples with the real ones they imitate, and with real ones they never saw.

    Args:
        synthetic: What a copula drew.
        train: What it was fitted on.
        unseen: Real examples that it was not.
        seed: Which rows are drawn where parts differ in size, and the forest's.

    Source: Lopez-Paz, Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017 (arXiv:1610.06545v4), for
    the forest's part; Zhao et al., "CTAB-GAN", ACML 2021, section 4.1, for the distance to the closest record.
    """
    made, known, fresh = (
        part.x.reshape(len(part.x), -1).astype(np.float64) for part in (synthetic, train, unseen)
    )
    varied = (made.std(0) > 0) & (known.std(0) > 0)
    distances = [kolmogorov_smirnov(a, b) for a, b in zip(made.T, known.T, strict=True)]
    rng = np.random.default_rng(seed)
    copied = {row.tobytes() for row in known}
    return Likeness(
        distance=float(np.mean(distances)),
        worst=float(np.max(distances)),
        correlation=_correlation_distance(made[:, varied], known[:, varied]),
        told_apart=_told_apart(made, fresh, rng),
        copies=sum(row.tobytes() in copied for row in made),
        nearer=_nearer(made, known, fresh, rng),
    )


def kolmogorov_smirnov(one: Rows, other: Rows) -> float:
    """Return the greatest difference of two samples' distribution functions, in [0, 1]."""
    every = np.concatenate([one, other])
    shares = (np.searchsorted(np.sort(part), every, side="right") / len(part) for part in (one, other))
    return float(np.abs(next(shares) - next(shares)).max())


def _scores(rows: Rows) -> Rows:
    # Normal scores of middle ranks: equal values get equal scores.
    shares = np.empty_like(rows)
    for column, values in enumerate(rows.T):
        order = np.sort(values)
        middle = np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right")
        shares[:, column] = middle / (2 * len(rows))
    scores: Rows = torch.special.ndtri(torch.from_numpy(shares)).numpy()
    return scores


def _values(columns: Rows, shares: Rows) -> Rows:
    # Where in each ordered column the shares fall.
    values = np.empty_like(shares)
    for column, order in enumerate(columns.T):
        if len(np.unique(order)) < DISCRETE:
            values[:, column] = np.quantile(order, shares[:, column], method="inverted_cdf")
        else:
            values[:, column] = np.quantile(order, shares[:, column])
    return values


def _correlation_distance(made: Rows, known: Rows) -> float:
    if made.shape[1] < 2:
        return 0.0
    apart = np.abs(np.corrcoef(made.T) - np.corrcoef(known.T))
    return float(apart[np.triu_indices(len(apart), 1)].mean())


def _told_apart(made: Rows, fresh: Rows, rng: np.random.Generator) -> Interval:
    # As many of each, so that guessing is right in half of the cases; real ones that the copula did not see.
    count = min(len(made), len(fresh))
    x = np.concatenate([rng.permutation(part)[:count] for part in (made, fresh)])
    truth = np.repeat([0, 1], count)
    forest = RandomForestClassifier(100, min_samples_leaf=2, random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    guesses = cross_val_predict(forest, x, truth, cv=folds)
    return wilson(int((guesses == truth).sum()), len(truth))


def _nearer(made: Rows, known: Rows, fresh: Rows, rng: np.random.Generator) -> Interval:
    count = min(len(known), len(fresh))
    spread = np.where(known.std(0) > 0, known.std(0), 1.0)
    to_known, to_fresh = (
        NearestNeighbors(n_neighbors=1, algorithm="brute")
        .fit(rng.permutation(part)[:count] / spread)
        .kneighbors(made / spread)[0][:, 0]
        for part in (known, fresh)
    )
    differ = to_known != to_fresh
    return wilson(int((to_known < to_fresh)[differ].sum()), max(1, int(differ.sum())))
