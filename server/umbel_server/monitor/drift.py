"""Drift: are these values distributed as those were, and if not, how far are they from it?

Three figures say how far: the population stability index, the Jensen-Shannon distance, and the Wasserstein distance.
None has a threshold of its own. Chance makes each of them larger the fewer values there are and the more noise hides
them, so the threshold is what chance alone exceeds as often as the stated level says, for these very sample sizes and
this noise. What is a finding is decided over all features together, and must move more than a floor of all values:
of a hundred million values every trifle is significant.

Where nothing has changed, the first two are a quarter and an eighth of one quadratic form apart (Csiszar's
f-divergences agree to second order), and its distribution is a sum of chi-squares, of which the first two moments are
matched. The third is a sum of absolute normal variables, whose two moments are matched by a gamma distribution.

The p-value is of three questions together: of all cells (the quadratic form), of the direction in which values went
(the Wasserstein distance, where cells have an order), and of the one cell that is furthest off. The last finds one
label of many that has grown.

Source:
    Yurdakul, "Statistical Properties of Population Stability Index", Western Michigan University 2018: it is
    (1/n + 1/m) chi-square with cells - 1 degrees of freedom;
    Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin 2 (1946);
    Kairouz, Bonawitz, Ramage, arXiv:1602.07387, section 4.1 (the noise of randomized counts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_server.monitor import distance
from umbel_server.monitor.many import adjusted, combined
from umbel_server.monitor.sample import Sample, Shares
from umbel_server.monitor.tails import chi_square_above, chi_square_quantile, gamma_above, gamma_quantile

LEVEL = 0.05
FLOOR = 0.01
LEAST_VALUES = 30.0
"""Of fewer independent values on either side nothing is said."""
_EXPECTED = (
    5.0  # Cochran, "Some Methods for Strengthening the Common chi-square Tests", Biometrics 10 (1954).
)
_EXPECTED_ALONE = 25.0
"""Of fewer values in a cell, its share alone is further from normal than the tail that is asked for allows."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure of how far two distributions are apart.

    Args:
        value: What it is.
        threshold: What chance alone exceeds as often as the level says, of these sample sizes and this noise.
    """

    value: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two samples of one feature, compared.

    Args:
        stability_index: The population stability index.
        jensen_shannon: The Jensen-Shannon distance, in 0..1.
        wasserstein: The Wasserstein-1 distance in the feature's unit; None where its cells have no order.
        moved: The share of values that are in another cell than they would be, in 0..1, with what chance moves.
        p_value: The chance of being as far apart if nothing has changed.
        cells: How many cells were compared: those with few values are joined.
    """

    stability_index: Figure
    jensen_shannon: Figure
    wasserstein: Figure | None
    moved: float
    p_value: float
    cells: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of the drift of a feature.

    Args:
        feature: The feature.
        comparison: Both samples compared; None: there is not enough to compare.
        adjusted: Its p-value among all features of the question; None likewise.
        drifted: Whether it is a finding at the stated level, and moves more than the floor.
        why: What it rests on, or why nothing is said.
    """

    feature: str
    comparison: Comparison | None
    adjusted: float | None
    drifted: bool
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A feature as it was and as it is.

    Args:
        reference: As it was.
        current: As it is, over the same cells.
        edges: The cells' inner edges; None: cells have no order, as labels have none.
    """

    reference: Sample
    current: Sample
    edges: tuple[float, ...] | None

    def __post_init__(self) -> None:
        cells = len(self.reference.told)
        if len(self.current.told) != cells or (self.edges is not None and len(self.edges) + 1 != cells):
            raise UsageError("Two samples of a feature have different cells, and cannot be compared.")


def judge(pairs: Mapping[str, Pair], *, level: float = LEVEL, floor: float = FLOOR) -> tuple[Finding, ...]:
    """Return what is known of the drift of each feature, in the order given.

    If nothing has changed, there is any false alarm with a chance of ``level``; of the alarms there are, no more than
    that share are false on average.

    Args:
        pairs: By feature.
        level: In (0, 1).
        floor: The share of values that must have moved for a finding.
    """
    found: list[Finding] = []
    for feature, pair in pairs.items():
        few = min(pair.reference.values, pair.current.values)
        if few < LEAST_VALUES:
            why = f"worth {few:.0f} independent values: {LEAST_VALUES:.0f} on either side say something"
            found.append(Finding(feature, None, None, False, why))
        elif (comparison := compare(pair, level=level)) is None:
            found.append(Finding(feature, None, None, False, "all values are in one cell"))
        else:
            found.append(Finding(feature, comparison, None, False, ""))
    told = [each for each in found if each.comparison is not None]
    values = iter(adjusted([each.comparison.p_value for each in told if each.comparison is not None]))
    return tuple(
        each if each.comparison is None else _decided(each, each.comparison, next(values), level, floor)
        for each in found
    )


def compare(pair: Pair, *, level: float = LEVEL) -> Comparison | None:
    """Return how far two samples are apart; None if all their values are in one cell.

    Args:
        pair: Both.
        level: How often chance alone may exceed each threshold.
    """
    a, b = _Side.of(pair.reference), _Side.of(pair.current)
    pooled = _pooled(a, b)
    group = _groups(a, b, pooled, ordered=pair.edges is not None)
    cells = int(group.max()) + 1
    if cells < 2:
        return None
    sizes = np.bincount(group).astype(np.float64)
    pooled, left, right = (_together(group, shares) for shares in (pooled, a.true, b.true))
    noise = _Noise(
        *(side.covariance(group, pooled, sizes) for side in (a, b)),
        *(side.told(pooled, sizes) * side.scale for side in (a, b)),
    )
    gap = left - right
    quadratic = noise.quadratic(1 / noise.own)
    p_values = [quadratic.above(float(gap**2 @ (1 / noise.own)))]
    often = np.minimum(a.told(pooled, sizes) * a.values, b.told(pooled, sizes) * b.values) >= _EXPECTED_ALONE
    if often.any():
        p_values.append(noise.largest(gap, often))
    limit = noise.quadratic(1 / np.maximum(pooled, 1e-9)).quantile(level)
    transport = None
    if pair.edges is not None:
        middles = distance.centers(pair.edges)
        steps = np.diff(_together(group, middles) / sizes)
        value, ways = distance.wasserstein(left, right, steps), noise.transport(steps)
        p_values.append(ways.above(value))
        transport = Figure(value, ways.quantile(level))
    shown = _possible(left, a.values), _possible(right, b.values)
    return Comparison(
        stability_index=Figure(distance.stability_index(*shown), limit),
        jensen_shannon=Figure(distance.jensen_shannon(*shown), math.sqrt(limit / 8 / math.log(2))),
        wasserstein=transport,
        moved=distance.moved(*shown),
        p_value=combined(p_values),
        cells=cells,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One sample: its true shares without bias, and what noise made of them."""

    true: Shares
    gain: float
    noise: float
    values: float
    between: Shares | None

    @classmethod
    def of(cls, sample: Sample) -> _Side:
        gain, noise = sample.response()
        return cls((sample.told - noise) / gain, gain, noise, sample.values, sample.covariance)

    @property
    def scale(self) -> float:
        """What a told share's variance is multiplied by to be the true one's."""
        return 1 / (self.values * self.gain**2)

    def told(self, true: Shares, sizes: Shares) -> Shares:
        """Return how often groups of cells of these sizes are told."""
        return np.maximum(sizes * self.noise + self.gain * true, 0.0)

    def covariance(self, group: NDArray[np.intp], true: Shares, sizes: Shares) -> Shares:
        """Return the covariance of the true shares of groups of cells, of these shares and sizes."""
        if self.between is None:
            told = self.told(true, sizes)
            return np.asarray((np.diag(told) - np.outer(told, told)) * self.scale, np.float64)
        joined = np.zeros((len(sizes), len(sizes)))
        np.add.at(joined, (group[:, None], group[None, :]), self.between)
        return joined / self.gain**2


@dataclass(frozen=True, slots=True)
class _Chance:
    """What a figure is by chance: ``factor`` times a gamma variable of a shape."""

    factor: float
    shape: float
    squares: bool

    @classmethod
    def of(cls, mean: float, variance: float, *, squares: bool) -> _Chance:
        return cls(variance / mean, mean**2 / variance, squares)

    def above(self, value: float) -> float:
        if self.squares:
            return chi_square_above(2 * value / self.factor, 2 * self.shape)
        return gamma_above(value / self.factor, self.shape)

    def quantile(self, tail: float) -> float:
        if self.squares:
            return self.factor / 2 * chi_square_quantile(tail, 2 * self.shape)
        return self.factor * gamma_quantile(tail, self.shape)


class _Noise:
    """What chance adds to the gap between two samples' shares.

    Args:
        left: The covariance of one side's shares, shape (groups, groups).
        right: And of the other's.
        left_own: What the variances of one side's shares would be if they were independent of each other.
        right_own: And of the other's.
    """

    def __init__(self, left: Shares, right: Shares, left_own: Shares, right_own: Shares) -> None:
        self.own: Shares = np.maximum(left_own + right_own, 1e-300)
        self._full: Shares = left + right

    def quadratic(self, weights: Shares) -> _Chance:
        """Return what the weighted sum of squared gaps is by chance: trace, and twice the trace of the square."""
        mean = float(weights @ np.diag(self._full))
        squares = float(weights @ self._full**2 @ weights)
        return _Chance.of(mean, 2 * squares, squares=True)

    def largest(self, gap: Shares, of: NDArray[np.bool_]) -> float:
        """Return the chance that any of some groups is as far off as the one that is furthest: Bonferroni's bound."""
        variance = np.maximum(np.diag(self._full), 1e-300)[of]
        furthest = float((np.abs(gap[of]) / np.sqrt(variance)).max())
        return min(1.0, len(variance) * math.erfc(furthest / math.sqrt(2)))

    def transport(self, steps: Shares) -> _Chance:
        """Return what the sum of absolute gaps between distribution functions, times steps, is by chance."""
        below = np.cumsum(np.cumsum(self._full, 0), 1)[:-1, :-1]
        deviation = np.sqrt(np.maximum(np.diag(below), 1e-300))
        alike = np.clip(below / np.outer(deviation, deviation), -1.0, 1.0)
        weight = steps * deviation
        mean = math.sqrt(2 / math.pi) * float(weight.sum())
        # E|X||Y| of normal variables: Nabeya, Annals of the Institute of Statistical Mathematics 3 (1951).
        both = 2 / math.pi * (np.sqrt(1 - alike**2) + alike * np.arcsin(alike))
        return _Chance.of(mean, float(weight @ both @ weight) - mean**2, squares=False)


def _pooled(a: _Side, b: _Side) -> Shares:
    """Return the shares of both sides together, each as heavy as it is sure, as shares can be."""
    shares = np.maximum((a.true / a.scale + b.true / b.scale) / (1 / a.scale + 1 / b.scale), 0.0)
    return np.asarray(shares / shares.sum(), np.float64)


def _possible(shares: Shares, values: float) -> Shares:
    """Return shares that could be: of an empty cell, half a value."""
    least = np.maximum(shares, 0.5 / values)
    return np.asarray(least / least.sum(), np.float64)


def _groups(a: _Side, b: _Side, pooled: Shares, *, ordered: bool) -> NDArray[np.intp]:
    """Return the group of each cell, such that each is told often enough on both sides."""
    one = np.ones(len(pooled))
    expected = np.minimum(a.told(pooled, one) * a.values, b.told(pooled, one) * b.values)
    if not ordered:
        # Rare ones together, with the rarest of the others if they are too few even then.
        order = np.argsort(expected, kind="stable")
        group = np.empty(len(expected), np.intp)
        group[order] = _filled(expected[order])
        return group
    return _filled(expected)


def _together(group: NDArray[np.intp], of: Shares) -> Shares:
    return np.asarray(np.bincount(group, of), np.float64)


def _filled(expected: Shares) -> NDArray[np.intp]:
    group, number, inside = np.zeros(len(expected), np.intp), 0, 0.0
    for cell, often in enumerate(expected):
        if inside >= _EXPECTED:
            number, inside = number + 1, 0.0
        group[cell] = number
        inside += often
    if inside < _EXPECTED and number:
        group[group == number] = number - 1
    return group


def _decided(each: Finding, comparison: Comparison, value: float, level: float, floor: float) -> Finding:
    significant, large = value <= level, comparison.moved >= floor
    if not significant:
        why = "chance explains it"
    elif not large:
        why = f"certain, and less than the {floor:.1%} of values that matter"
    else:
        why = "more than chance"
    return replace(each, adjusted=value, drifted=significant and large, why=why)
