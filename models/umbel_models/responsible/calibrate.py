"""Temperatures that make confidence mean what it says, and how well it does before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from umbel_models.responsible.figures import Figures, Interval, Labels, bootstrap
from umbel_proto.errors import UsageError

BINS = 15
# Confidence outside of these is a broken model, not a badly calibrated one.
COLDEST, HOTTEST = 0.01, 100.0

Probabilities = NDArray[np.float64]


class Scores(NamedTuple):
    """What a model made of examples with known labels.

    Args:
        logits: Shape (n, labels).
        y: True labels, shape (n,).
        cohort: Cohort of each, shape (n,).
    """

    logits: NDArray[np.floating]
    y: Labels
    cohort: Labels | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Temperatures, and what they are worth on examples they were not fitted on.

    Args:
        temperature: What to divide every logit by, > 0; above 1 the model was too sure.
        by_cohort: The same for each cohort, where that was allowed.
        error: Expected calibration error before and after.
        brier: Brier score before and after: the squared distance of the probabilities from the truth, in [0, 2].
        error_by_cohort: The error in each cohort after the one temperature and after its own.
    """

    temperature: float
    by_cohort: Mapping[int, float]
    error: tuple[Interval, Interval]
    brier: tuple[Interval, Interval]
    error_by_cohort: Mapping[int, tuple[float, float]]

    def figures(self) -> Figures:
        """Return the section of the card."""
        told: Figures = {"temperature": round(self.temperature, 4)}
        for when, error, brier in zip(("before", "after"), self.error, self.brier, strict=True):
            told |= error.figures(f"calibration error {when}") | brier.figures(f"Brier score {when}")
        for group, own in self.by_cohort.items():
            one, after = self.error_by_cohort[group]
            told[f"temperature of cohort {group}"] = round(own, 4)
            told[f"calibration error of cohort {group}, one temperature"] = round(one, 4)
            told[f"calibration error of cohort {group}, its own"] = round(after, 4)
        return told


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature: the same labels, another confidence."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.scale = 1.0 / temperature

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, labels)."""
        return cast(Tensor, self.network(x)) * self.scale


def calibrate(
    fitted_on: Scores, measured_on: Scores, *, by_cohort: bool = False, seed: int = 0
) -> Calibration:
    """Fit one temperature, and say what it is worth on other examples.

    Args:
        fitted_on: Examples that neither trained the model nor measure it: a task's calibration set.
        measured_on: The held-out ones.
        by_cohort: Also fit one for each cohort. Off by default, as whoever decides must then know the cohort
            of the person decided on: law or policy often forbid it, and devices seldom know. Allow it where
            the cohort is a legitimate input, such as the kind of sensor.
        seed: Which resamples the intervals are made from.

    Raises:
        UsageError: There are no examples, or no cohorts where temperatures by cohort are asked for.
    """
    general = temperature(fitted_on)
    before, after = softmax(measured_on.logits), softmax(measured_on.logits / general)
    own: dict[int, float] = {}
    errors: dict[int, tuple[float, float]] = {}
    if by_cohort:
        if fitted_on.cohort is None or measured_on.cohort is None:
            raise UsageError("Temperatures by cohort need Examples.cohort in every part of the data.")
        for group in map(int, np.unique(measured_on.cohort)):
            rows, known = measured_on.cohort == group, fitted_on.cohort == group
            own[group] = temperature(Scores(fitted_on.logits[known], fitted_on.y[known]))
            y, logits = measured_on.y[rows], measured_on.logits[rows]
            errors[group] = (
                calibration_error(after[rows], y),
                calibration_error(softmax(logits / own[group]), y),
            )

    def both(probabilities: Probabilities) -> tuple[Interval, Interval]:
        y = measured_on.y
        return (
            bootstrap(lambda rows: calibration_error(probabilities[rows], y[rows]), len(y), seed=seed),
            bootstrap(lambda rows: brier_score(probabilities[rows], y[rows]), len(y), seed=seed),
        )

    (error, brier), (error_after, brier_after) = both(before), both(after)
    return Calibration(general, own, (error, error_after), (brier, brier_after), errors)


def temperature(scores: Scores) -> float:
    """Return the temperature under which the labels are likeliest.

    A prior that the model is right as it is, worth about one example, keeps it finite: a few examples that are
    all right would otherwise ask for infinite confidence.

    Raises:
        UsageError: There are no examples.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599v2), section 4.2.
        The prior on 1 / temperature is a gamma distribution of shape 2 and rate 1: its mode is 1.
    """
    count = len(scores.y)
    if count == 0:
        raise UsageError("There are no examples to calibrate with: give some that trained nothing.")
    logits = scores.logits.astype(np.float64)
    wanted = logits[np.arange(count), scores.y].sum()

    def slope(inverse: float) -> float:
        # Of the cross entropy and the prior along 1 / temperature: it only rises, so that its zero is the minimum.
        return float((softmax(logits * inverse) * logits).sum() - wanted + 1 - 1 / inverse)

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


def softmax(logits: NDArray[np.floating]) -> Probabilities:
    """Return probabilities, shape (n, labels), of logits."""
    raised = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares: Probabilities = raised / raised.sum(1, keepdims=True)
    return shares


def calibration_error(probabilities: Probabilities, y: Labels) -> float:
    """Return the expected calibration error: how far confidence is from the share that is right, on average.

    It is measured in 15 equal ranges of confidence, and is never 0 for finitely many examples: compare it
    before and after on the same ones.

    Source: Guo et al. 2017, section 2, equation 3.
    """
    sure = probabilities.max(1)
    surplus = sure - (probabilities.argmax(1) == y)
    cell = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    return float(np.abs(np.bincount(cell, surplus, BINS)).sum() / len(y))


def brier_score(probabilities: Probabilities, y: Labels) -> float:
    """Return the mean squared distance of the probabilities from the truth, in [0, 2].

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950: all labels are summed.
    """
    right = probabilities[np.arange(len(y)), y]
    return float(((probabilities**2).sum(1) - 2 * right + 1).mean())
