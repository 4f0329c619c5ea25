"""Calibration: of the predictions that a label arrived for, were those that were 90 % sure right nine times of ten?

Devices count the confidences of labeled predictions, right and wrong apart. Of each cell of confidences the share that
was right is set against the confidence; the expected calibration error is the mean distance, each cell as heavy as it
is frequent. Chance alone keeps that mean above zero, so what chance gives a calibrated model is told beside it, and the
interval allows for it.

Source:
    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, section 2;
    Roelofs et al., "Mitigating Bias in Calibration Error Estimation", AISTATS 2022, arXiv:2012.08668 (the bias).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel_proto.histogram import CONFIDENCE as EDGES
from umbel_proto.histogram import Histogram, whole_edges
from umbel_proto.privacy.response import Response
from umbel_server.monitor.confidences import confidences
from umbel_server.monitor.rates import Z, wilson
from umbel_server.monitor.sample import Sample, Shares
from umbel_server.store.reports import Report

RIGHT, WRONG = "feedback.right", "feedback.wrong"
CELLS = len(EDGES) + 1
LEAST_LABELS = 30.0
"""Of fewer independent labels nothing is said."""


@dataclass(frozen=True, slots=True)
class CalibrationCell:
    """Predictions that were about as sure.

    Args:
        confidence: How sure they were: the middle of the cell's log-odds, in 0..1.
        low: Where the cell begins.
        high: Where it ends.
        labels: How many labels arrived for them; an estimate, as no device counts for more than a few usual ones.
        right: The share that was right.
        right_low: Where its interval of 95 % begins.
        right_high: Where it ends.
    """

    confidence: float
    low: float
    high: float
    labels: float
    right: float
    right_low: float
    right_high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far confidences are from what they promise, by labels that arrived.

    Args:
        error: The expected calibration error, in 0..1.
        low: Where its interval of 95 % begins; 0 where chance explains the error.
        high: Where it ends.
        chance: What the error of a calibrated model would be on average, of so many labels.
        labels: How many labels it is of.
        worth: Of how many independent ones.
        devices: Of how many devices.
        epsilon: With what confidences are randomized; None: they are not.
        cells: By confidence, those with labels.
    """

    error: float
    low: float
    high: float
    chance: float
    labels: int
    worth: float
    devices: int
    epsilon: float | None
    cells: tuple[CalibrationCell, ...]

    @property
    def certain(self) -> bool:
        """Whether chance does not explain the error."""
        return self.low > 0


def calibration(reports: Sequence[Report]) -> Calibration | None:
    """Return how far confidences are from what they promise; None: too few labels arrived to say.

    No device counts for more than a few usual ones, and what devices differ by widens the intervals.

    Args:
        reports: One of each device.
    """
    judged = [each for report in reports if (each := _judged(report)) is not None]
    if not judged:
        return None
    epsilons = Counter(epsilon for _, epsilon in judged)
    usual = max(epsilons, key=lambda kind: (epsilons[kind], kind is None))
    sample = Sample.of_devices([told for told, epsilon in judged if epsilon == usual])
    if sample.values < LEAST_LABELS:
        return None
    middles, undo = confidences(), _undo(usual)
    # Each gap is linear in the shares: those that were right less those that should have been.
    gap_of = np.hstack((np.diag(1 - middles) @ undo, -np.diag(middles) @ undo))
    gaps, covariance = gap_of @ sample.told, _covariance(sample)
    noise = gap_of @ covariance @ gap_of.T
    spread = np.sqrt(np.maximum(np.diag(noise), 0.0))
    signs = np.sign(gaps)
    error, half = float(np.abs(gaps).sum()), Z * math.sqrt(max(float(signs @ noise @ signs), 0.0))
    chance = math.sqrt(2 / math.pi) * float(spread.sum())
    # Chance adds to the mean distance at most what it gives a calibrated model, and at least nothing.
    return Calibration(
        error=error,
        low=max(error - chance - half, 0.0),
        high=min(error + half, 1.0),
        chance=chance,
        labels=sample.count,
        worth=sample.values,
        devices=sample.devices,
        epsilon=usual,
        cells=_cells(sample, undo, covariance, middles),
    )


def _judged(report: Report) -> tuple[Histogram, float | None] | None:
    """Return a device's labels, right then wrong, and their epsilon; None: it told of none that add."""
    found = [report.histograms.get(name) for name in (RIGHT, WRONG)]
    there = [each for each in found if each is not None and each.edges == EDGES]
    if not there or len({each.epsilon for each in there}) > 1:
        return None
    empty = (0,) * CELLS
    counts = [each.counts if each in there and each is not None else empty for each in found]
    return Histogram("judged", whole_edges(2 * CELLS), (*counts[0], *counts[1])), there[0].epsilon


def _undo(epsilon: float | None) -> Shares:
    """Return what makes true shares of those of one histogram that were told, shape (cells, cells)."""
    if epsilon is None:
        return np.eye(CELLS)
    noise = Response(CELLS, epsilon).other / 2**64
    undone: Shares = (np.eye(CELLS) - noise) / (1 - CELLS * noise)
    return undone


def _covariance(sample: Sample) -> Shares:
    if sample.covariance is not None:
        return sample.covariance
    told = sample.told
    independent: Shares = (np.diag(told) - np.outer(told, told)) / sample.values
    return independent


def _cells(
    sample: Sample, undo: Shares, covariance: Shares, middles: NDArray[np.float64]
) -> tuple[CalibrationCell, ...]:
    right, wrong = undo @ sample.told[:CELLS], undo @ sample.told[CELLS:]
    edges = (0.0, *EDGES, 1.0)
    found = []
    for cell in range(CELLS):
        share = float(right[cell] + wrong[cell])
        if share * sample.values < 1:
            continue
        value = min(max(float(right[cell]) / share, 0.0), 1.0)
        # The delta method: of a ratio, by what both of its parts vary together.
        slope = np.concatenate((undo[cell] * (1 - value), -undo[cell] * value)) / share
        variance = float(slope @ covariance @ slope)
        plain = value * (1 - value) / (share * sample.values)
        worth = share * sample.values * min(1.0, plain / variance if variance > 0 and plain > 0 else 1.0)
        low, high = wilson(value, max(worth, 1e-3))
        found.append(
            CalibrationCell(
                float(middles[cell]), edges[cell], edges[cell + 1], share * sample.count, value, low, high
            )
        )
    return tuple(found)
