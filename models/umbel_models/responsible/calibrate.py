"""Temperatures that make confidence mean what it says, and how well it does before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor, nn

from umbel_models.calibration import (
    Probabilities,
    Scores,
    brier_score,
    calibration_error,
    softmax,
    temperature,
)
from umbel_models.responsible.figures import Figures, Interval, bootstrap
from umbel_proto.errors import UsageError


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
