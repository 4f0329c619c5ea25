"""The difference between two arms, known however often somebody looks: while devices arrive, and while they go on.

A rollout's gates count devices (`umbel_server.rollouts.interval`). An experiment lasts weeks in which the same devices
tell ever more, and counting them would not notice. Here information is what counts, the inverse of the variance of
the difference: it grows with devices and with what each of them reports, up to what differs between them.

Source:
    Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of
    Statistics 2021, arXiv:1810.08240, section 3.2 (the normal mixture); Waudby-Smith et al., arXiv:2103.06476,
    theorem 2.2 (with an estimated variance); Jennison, Turnbull, "Group Sequential Analysis Incorporating Covariate
    Information", JASA 1997 (in information, successive estimates behave as a Brownian motion).
"""

from __future__ import annotations

import math

import numpy as np

from umbel_server.rollouts.interval import Interval, Values, mixture_boundary, welch, widened

MAX_VARIANCE = 1e100
LEAST_VARIED = 10
"""Devices that differ from the most common value before a variance is believed: of fewer, a mean is far from normal."""


def tuned_information(*, error: float, effect: float) -> float:
    """Return the information at which the interval is narrowest: where it reaches as far as the effect.

    It depends on nothing that is measured: whoever tuned it to the data would look twice.

    Args:
        error: Chance that the interval ever leaves the truth out, in (0, 1).
        effect: The smallest difference that matters, > 0.
    """
    return (mixture_boundary(1.0, error=error, tuned=1.0) / effect) ** 2


def arms_difference(treatment: Values, control: Values, *, error: float, effect: float) -> Interval | None:
    """Return how much higher the mean of the treatment is than that of the control.

    Args:
        treatment: One value of each device, shape (m,), m >= 2.
        control: The same of the others, shape (n,), n >= 2.
        error: Chance that the difference ever lies outside, in (0, 1).
        effect: The smallest difference that matters, > 0.

    Returns:
        The difference with bounds that hold at all looks together; None where so many devices say the same that
        their variance cannot be believed.
    """
    if _varied(treatment, control) < LEAST_VARIED:
        return None
    # What one device reports may be anything: without a bound nothing is told, and no warning either.
    with np.errstate(over="ignore", invalid="ignore"):
        variance, freedom = welch(treatment, control)
        estimate = float(treatment.mean() - control.mean())
    if not (0 < variance < MAX_VARIANCE and math.isfinite(estimate)):
        return None
    z = mixture_boundary(1 / variance, error=error, tuned=tuned_information(error=error, effect=effect))
    half = widened(z, freedom) * math.sqrt(variance)
    return Interval(estimate, estimate - half, estimate + half)


def _varied(treatment: Values, control: Values) -> int:
    values = np.concatenate((treatment, control))
    counts = np.unique(values, return_counts=True)[1]
    return int(len(values) - counts.max())
