"""What is known of a difference of two means, however often somebody looks: confidence sequences.

An ordinary interval holds at one moment that was chosen beforehand. A rollout looks every few seconds, and would stop
a good version sooner or later. The bounds here hold at all looks together.

Source:
    Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of
    Statistics 2021, arXiv:1810.08240, section 3.2 (the normal mixture); Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas,
    "Time-uniform central limit theory and asymptotic confidence sequences", 2021, arXiv:2103.06476, theorem 2.2 and
    section 2.6 (the same with an estimated variance).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, and bounds that hold at all looks together.

    Args:
        estimate: The mean or difference.
        low: Its lower bound.
        high: Its upper bound.
    """

    estimate: float
    low: float
    high: float


def mixture_boundary(n: float, *, error: float, tuned: float) -> float:
    """Return how many standard errors a mean of n values may be off, at every n at once.

    Args:
        n: How many values there are, > 0.
        error: Chance that it is off by more at any n, in (0, 1).
        tuned: The n at which the boundary is narrowest.
    """
    # arXiv:2103.06476, section 2.6: the rho that makes the boundary narrowest at one n.
    rho2 = (-2 * math.log(error) + math.log(-2 * math.log(error) + 1)) / tuned
    return math.sqrt((1 + 1 / (n * rho2)) * (math.log1p(n * rho2) - 2 * math.log(error)))


def difference(
    candidate: Values, control: Values, *, error: float, tuned: float, floor: float = 0.0
) -> Interval:
    """Return how much higher the mean of one group is than that of another.

    Args:
        candidate: One value of each device, shape (m,), m >= 2.
        control: The same of others, shape (n,), n >= 2.
        error: Chance that the difference ever lies outside, in (0, 1).
        tuned: The size of the smaller group at which the interval is narrowest.
        floor: Variance that the difference has at least: values that are all alike look surer than they are.
    """
    variance, freedom = welch(candidate, control)
    n = 1 / (1 / len(candidate) + 1 / len(control))
    return _around(
        float(candidate.mean() - control.mean()),
        max(variance, floor),
        widened(mixture_boundary(n, error=error, tuned=tuned), freedom),
    )


def share_evidence(hits: int, n: int, *, share: float) -> float:
    """Return the evidence against "no more than a share are hits": it exceeds 1/e with chance e at most, ever.

    A mixture of likelihood ratios, even over all shares above.

    Args:
        hits: How many were.
        n: How many there are.
        share: The share, in [0, 1).

    Source:
        Robbins, "Statistical methods related to the law of the iterated logarithm", Annals of Mathematical Statistics
        1970; Ville's inequality.
    """
    if not hits:
        return 0.0
    if share <= 0:
        return math.inf
    cells = 2000
    p = share + (1 - share) * (np.arange(cells) + 0.5) / cells
    logs = hits * np.log(p / share) + (n - hits) * (np.log1p(-p) - math.log1p(-share))
    top = float(logs.max())
    return math.exp(min(700.0, top + math.log(float(np.exp(logs - top).mean()))))


def student_quantile(tail: float, freedom: float) -> float:
    """Return what Student's t exceeds in absolute value with a chance.

    Args:
        tail: The chance, in (0, 1).
        freedom: Degrees of freedom, 1 or more, or infinite.

    Source:
        Hill, "Algorithm 396: Student's t-quantiles", Communications of the ACM 13 (10), 1970.
    """
    if math.isinf(freedom):
        return -NormalDist().inv_cdf(tail / 2)
    n = freedom
    if n == 1:
        return 1 / math.tan(tail * math.pi / 2)
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * tail) ** (2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(tail / 2)
        y = x * x
        if n < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (
            n + 1
        ) / (n + 2) + 1 / y
    return math.sqrt(n * y)


def welch(left: Values, right: Values) -> tuple[float, float]:
    """Return the variance of the difference of two means, and with how many degrees of freedom it is known.

    Source:
        Welch, "The generalization of 'Student's' problem", Biometrika 1947.
    """
    parts = left.var(ddof=1) / len(left), right.var(ddof=1) / len(right)
    variance = parts[0] + parts[1]
    if not variance:
        return 0.0, math.inf
    freedom = variance**2 / sum(
        part**2 / (len(group) - 1) for part, group in zip(parts, (left, right), strict=True)
    )
    return float(variance), float(freedom)


def widened(z: float, freedom: float) -> float:
    """Return the quantile of Student's t at the tail of a normal one: few values know their variance badly."""
    return student_quantile(max(math.erfc(z / math.sqrt(2)), 1e-300), max(freedom, 1.0))


def _around(estimate: float, variance: float, z: float) -> Interval:
    half = z * math.sqrt(variance)
    return Interval(estimate, estimate - half, estimate + half)
