"""How far annotators agree beyond chance: what the labels a model learns from are worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from umbel_models.responsible.figures import Figures, Interval, bootstrap
from umbel_proto.errors import UsageError

Level = Literal["nominal", "ordinal", "interval", "ratio"]
Ratings = NDArray[np.float64]
"""A row for each unit that was rated, a column for each annotator; NaN where one did not rate it."""


def cohen_kappa(ratings: ArrayLike) -> float:
    """Return Cohen's kappa of two annotators, shape (units, 2): 1 for full agreement, 0 for chance.

    NaN where both gave one and the same label to everything: nothing tells agreement from chance then.

    Source: Cohen, "A Coefficient of Agreement for Nominal Scales", 1960.
    """
    table = _ratings(ratings)
    if table.shape[1] != 2 or np.isnan(table).any():
        raise UsageError("Cohen's kappa compares two annotators who both rated every unit.")
    values = np.unique(table)
    observed = float((table[:, 0] == table[:, 1]).mean())
    first, second = (_counts(table[:, [each]], values).mean(0) for each in (0, 1))
    return _beyond(observed, float(first @ second))


def fleiss_kappa(ratings: ArrayLike) -> float:
    """Return Fleiss' kappa of units that were rated equally often, shape (units, annotators).

    Source: Fleiss, "Measuring nominal scale agreement among many raters", 1971.
    """
    table = _ratings(ratings)
    raters = table.shape[1]
    if raters < 2 or np.isnan(table).any():
        raise UsageError("Fleiss' kappa takes the same number of ratings, two or more, for every unit.")
    counts = _counts(table)
    observed = float(((counts**2).sum(1) - raters).mean() / (raters * (raters - 1)))
    return _beyond(observed, float(((counts.sum(0) / counts.sum()) ** 2).sum()))


def krippendorff_alpha(ratings: ArrayLike, level: Level = "nominal") -> float:
    """Return Krippendorff's alpha: any number of annotators, ratings that are missing, any level of measurement.

    Args:
        ratings: Shape (units, annotators); NaN where one did not rate the unit.
        level: Whether ratings are names, ranks, numbers, or numbers with a zero.

    Raises:
        UsageError: No unit was rated twice.

    Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section C and D.
    """
    table = _ratings(ratings)
    values = np.unique(table[~np.isnan(table)])
    counts = _counts(table, values)
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        raise UsageError("No unit was rated twice: agreement needs two ratings of the same thing.")
    pairs = (counts / (counts.sum(1, keepdims=True) - 1)).T @ counts
    totals = counts.sum(0)
    # Pairs of equal values, a rating with itself among them, count nothing: their distance is 0.
    chance = np.outer(totals, totals)
    distance = _distances(values, totals, level)
    expected = float((chance * distance).sum() / (totals.sum() - 1))
    return 1.0 - float((pairs * distance).sum()) / expected if expected > 0 else float("nan")


def interval(statistic: Callable[[Ratings], float], ratings: ArrayLike, *, seed: int = 0) -> Interval:
    """Return one of these statistics with its bootstrap interval over the units that were rated."""
    table = _ratings(ratings)

    def resampled(rows: NDArray[np.int64]) -> float:
        return statistic(table[rows])

    return bootstrap(resampled, len(table), seed=seed)


def agreement(ratings: ArrayLike, *, level: Level = "nominal", seed: int = 0) -> Figures:
    """Return the section of the card: every statistic that these ratings allow."""
    table = _ratings(ratings)
    whole = not np.isnan(table).any()
    told: Figures = {"units": len(table), "annotators": table.shape[1]}
    if whole and table.shape[1] == 2:
        told |= interval(cohen_kappa, table, seed=seed).figures("Cohen's kappa")
    if whole:
        told |= interval(fleiss_kappa, table, seed=seed).figures("Fleiss' kappa")
    alpha = interval(lambda some: krippendorff_alpha(some, level), table, seed=seed)
    return told | alpha.figures(f"Krippendorff's alpha, {level}")


def _ratings(ratings: ArrayLike) -> Ratings:
    table = np.asarray(ratings, np.float64)
    if table.ndim != 2 or not len(table):
        raise UsageError(
            f"Ratings of shape {table.shape} are no table: give a row a unit, a column an annotator."
        )
    return table


def _counts(table: Ratings, values: Ratings | None = None) -> NDArray[np.float64]:
    # How often each unit was given each value.
    values = np.unique(table[~np.isnan(table)]) if values is None else values
    counts: NDArray[np.float64] = (table[:, :, None] == values).sum(1).astype(np.float64)
    return counts


def _beyond(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def _distances(values: Ratings, totals: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    one, other = values[:, None], values[None, :]
    if level == "nominal":
        return np.asarray(one != other, np.float64)
    if level == "ordinal":
        # The values between the two, each counted as often as it was given, the ends by half.
        upto = np.cumsum(totals) - totals / 2
        return (upto[:, None] - upto[None, :]) ** 2
    if level == "interval":
        return (one - other) ** 2
    if (values < 0).any():
        raise UsageError("A ratio scale has no negative values: choose level interval.")
    with np.errstate(invalid="ignore"):
        ratio: NDArray[np.float64] = np.nan_to_num((one - other) / (one + other)) ** 2
        return ratio
