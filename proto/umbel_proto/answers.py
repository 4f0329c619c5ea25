"""What a model's answers are compared with: labels of a classification, targets of a regression.

Source: docs/spec/package.md, 2.11.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.manifest import CLASSIFICATION, REGRESSION, Manifest

ACCURACY, R2, RMSE = "accuracy", "r2", "rmse"
SCORES = {CLASSIFICATION: ACCURACY, REGRESSION: R2}
"""What ``score`` is, by kind of model."""

LEAST_PROBABILITY = 1e-12
"""A label given less counts as given this: one impossible example must not make a mean infinite."""


def checked_answers(manifest: Manifest, y: object, count: int) -> NDArray[Any]:
    """Return the right answers to some examples as graphs take them.

    Args:
        manifest: The model's.
        y: Of a classification, labels, whole numbers, shape (count,); of a regression, numbers, shape
            (count, *answer).
        count: How many examples there are.

    Returns:
        Labels, int64; or targets, float32.

    Raises:
        UsageError: They have another shape or type, or no such class or finite number.
    """
    answers = np.asarray(y)
    if manifest.kind == REGRESSION:
        wanted = (count, *manifest.answer_shape)
        if answers.shape != wanted or answers.dtype.kind not in "fiu":
            raise UsageError(
                f"Model {manifest.model} needs numbers y of shape {wanted}, its targets; y has shape "
                f"{answers.shape} and type {answers.dtype}."
            )
        with np.errstate(over="ignore"):
            targets = answers.astype(np.float32)
        if not np.isfinite(targets).all():
            raise UsageError("Targets must be finite numbers of float32: leave examples without one out.")
        return targets
    if answers.shape != (count,):
        raise UsageError(f"A batch of inputs needs one label for each: y has shape {answers.shape}.")
    classes = len(manifest.labels)
    if answers.dtype.kind not in "iu" or (count and not 0 <= answers.min() <= answers.max() < classes):
        raise UsageError(f"Labels must be whole numbers in 0..{classes - 1}.")
    return answers.astype(np.int64)


def loss(manifest: Manifest, said: NDArray[np.float32], y: NDArray[Any]) -> float:
    """Return how wrong a model is: mean cross-entropy in nats, or the mean squared error of a number.

    Args:
        manifest: The model's.
        said: Its answers, shape (n, *answer), n >= 1.
        y: The right ones, as ``checked_answers`` returns them.
    """
    if manifest.kind == REGRESSION:
        return float(np.mean((said.astype(np.float64) - y) ** 2))
    given = said[np.arange(len(said)), y].astype(np.float64)
    return -float(np.log(np.maximum(given, LEAST_PROBABILITY)).mean())


def figure(manifest: Manifest, y: NDArray[Any]) -> str:
    """Return the name of what tells how good a model is on some examples: accuracy, R^2, or RMSE.

    R^2 says nothing where all targets are alike, such as the zeros of pretraining. There it is the root mean squared
    error, and the smaller the better.

    Args:
        manifest: The model's.
        y: The right answers, as ``checked_answers`` returns them.
    """
    alike = manifest.kind == REGRESSION and bool((y == y[:1]).all())
    return RMSE if alike else SCORES[manifest.kind]


def measured(manifest: Manifest, said: NDArray[np.float32], y: NDArray[Any]) -> float:
    """Return what ``figure`` names; see ``score`` for what it takes."""
    return math.sqrt(loss(manifest, said, y)) if figure(manifest, y) == RMSE else score(manifest, said, y)


def score(manifest: Manifest, said: NDArray[np.float32], y: NDArray[Any]) -> float:
    """Return how good a model is, at most 1: the share of right labels, or R^2.

    R^2 is 1 less the squared error over that of always saying the mean of ``y``, over all numbers of an answer
    together: 0 for who knows no more than the mean, below 0 for who knows less. It is not a number where all
    targets are alike.

    Args:
        manifest: The model's.
        said: Its answers, shape (n, *answer), n >= 1.
        y: The right ones, as ``checked_answers`` returns them.
    """
    if manifest.kind == REGRESSION:
        spread = float(np.sum((y - y.mean(0, dtype=np.float64)) ** 2))
        error = float(np.sum((said.astype(np.float64) - y) ** 2))
        return 1 - error / spread if spread else float("nan")
    return float((said.argmax(1) == y).mean())
