"""How much a model's confidence is worth, and the temperature that makes it mean what it says; numpy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError

BINS = 15
# Confidence outside of these is a broken model, not a badly calibrated one.
COLDEST, HOTTEST = 0.01, 100.0

LEARNED = 0.1
"""Share of the entropy of labels that a model must explain to be calibrated at all."""

Labels = NDArray[np.int64]
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


def fitted(scores: Scores) -> float:
    """Return the temperature to ship a model with: 1 where it has not learned enough to be sure of anything.

    That is where even at its best temperature it takes less than a tenth off the entropy of the labels, as a
    model does that was never trained. Parameters that are learned later would be judged at a temperature that
    is none of theirs.

    Raises:
        UsageError: There are no examples.
    """
    found = temperature(scores)
    shares = np.bincount(scores.y) / len(scores.y)
    entropy = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    given = softmax(scores.logits / found)[np.arange(len(scores.y)), scores.y]
    loss = -float(np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean())
    return found if loss <= (1 - LEARNED) * entropy else 1.0


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
