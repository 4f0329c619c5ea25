"""Gradient descent with momentum, plain and with noise; whatever computes the gradients.

Momentum is torch's: ``v = momentum * v + g; p = p - learning_rate * v``, v = 0 at the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel.train import DivergedError, TrainPlan, TrainResult
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.manifest import FloatVector, Manifest
from umbel_proto.prg import Keystream
from umbel_proto.privacy.gaussian import noised, poisson_sample

SHUFFLE_LABEL = "umbel/1/shuffle"

SLACK = 1 - 2.0**-10
"""Gradients are clipped to this share of the clip; the rest covers the rounding of float32.

Source: docs/spec/privacy.md, 9.3."""

MAX_ROWS = 64
"""Most gradients that are summed in float32. Source: docs/spec/privacy.md, 9.3."""

_ROWS = 8  # Batches of a few sizes only: the runtime plans its memory once for each.

Weights = NDArray[np.float32]


class Gradients(Protocol):
    """Computes gradients at the parameters of one training, which change between calls.

    Rows of weight 0 change nothing; all other weights are 1. What is returned holds until the next call.
    """

    def mean(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights) -> tuple[FloatVector, float]:
        """Return the gradient of the weighted mean of losses, shape (dim,), and that mean."""

    def clipped(
        self, x: NDArray[Any], y: NDArray[np.int64], w: Weights, clip: float
    ) -> tuple[FloatVector, float]:
        """Return the weighted sum of gradients, each clipped to an L2 norm of ``clip``, and of losses."""


def checked(manifest: Manifest, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return examples and labels as a model takes them.

    Raises:
        UsageError: They break the data contract, or the labels are none.
    """
    inputs, single = manifest.contract.check(x)
    labels = np.asarray(y)
    if single or labels.shape != (len(inputs),):
        raise UsageError(
            f"Training needs a batch of inputs and one label for each: y has shape {labels.shape}."
        )
    classes = len(manifest.labels)
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise UsageError(f"Labels must be whole numbers in 0..{classes - 1}.")
    return inputs, labels.astype(np.int64)


def descend(
    current: FloatVector, gradients: Gradients, x: NDArray[Any], y: NDArray[np.int64], plan: TrainPlan
) -> TrainResult:
    """Change parameters in place, as the plan says.

    Args:
        current: The parameters, shape (dim,); ``gradients`` sees them change.
        gradients: Computes gradients.
        x: Examples, shape (n, *example), n >= 1.
        y: Labels, shape (n,).
        plan: What to do.

    Raises:
        DivergedError: Training diverged.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # What overflows is found at the end.
        return _descend(current, gradients, x, y, plan)


def _descend(
    current: FloatVector, gradients: Gradients, x: NDArray[Any], y: NDArray[np.int64], plan: TrainPlan
) -> TrainResult:
    velocity = np.zeros_like(current)
    rate, momentum = np.float32(plan.learning_rate), np.float32(plan.momentum)
    per_epoch = plan.steps(len(y)) // plan.epochs
    total, seen, steps = 0.0, 0, 0
    private = plan.privacy is not None
    taken = _private(gradients, len(current), x, y, plan) if private else _plain(gradients, x, y, plan)
    for gradient, loss, rows in taken:
        if steps % per_epoch == 0:
            total, seen = 0.0, 0
        velocity *= momentum
        velocity += gradient
        current -= rate * velocity
        total, seen, steps = total + loss, seen + rows, steps + 1
    # A private result is judged by its parameters alone, which have noise: refusing it tells of no example.
    if not (np.isfinite(current).all() and (private or np.isfinite(total))):
        raise DivergedError(f"Training diverged at learning rate {plan.learning_rate:g}: choose a lower one.")
    return TrainResult(current, total / max(seen, 1), len(y), steps)


def _plain(
    gradients: Gradients, x: NDArray[Any], y: NDArray[np.int64], plan: TrainPlan
) -> Iterator[tuple[FloatVector, float, int]]:
    """Yield each step's gradient, sum of losses and number of examples.

    Every batch has ``batch_size`` rows; those that only fill up the last one weigh nothing.
    """
    for epoch in range(plan.epochs):
        # The order needs no secrecy. A keystream gives the same one under every version of numpy.
        words = Keystream(digest(SHUFFLE_LABEL, plan.seed, epoch)).uint64(len(y))
        order = np.argsort(words, kind="stable")
        for begin in range(0, len(y), plan.batch_size):
            rows = order[begin : begin + plan.batch_size]
            padded, weights = _pad(rows, plan.batch_size)
            gradient, loss = gradients.mean(x[padded], y[padded], weights)
            yield gradient, loss * len(rows), len(rows)


def _private(
    gradients: Gradients, dim: int, x: NDArray[Any], y: NDArray[np.int64], plan: TrainPlan
) -> Iterator[tuple[FloatVector, float, int]]:
    """Yield each step's noised gradient, sum of losses and number of examples drawn.

    Source: docs/spec/privacy.md, 9.2 to 9.5.
    """
    release, privacy = plan.release(len(y)), plan.privacy
    assert release is not None
    assert privacy is not None
    for _ in range(release.steps):
        chance = Keystream()
        rows = poisson_sample(len(y), release.rate, chance)
        total, loss = _clipped_sum(gradients, dim, x, y, rows, privacy.clip * SLACK)
        if privacy.noise:
            total = noised(total, deviation=privacy.noise * privacy.clip, stream=chance)
        # By the size that was planned: how many were drawn is a secret.
        total /= plan.batch_size
        yield total.astype(np.float32), loss, len(rows)


def _clipped_sum(
    gradients: Gradients,
    dim: int,
    x: NDArray[Any],
    y: NDArray[np.int64],
    rows: NDArray[np.int64],
    clip: float,
) -> tuple[NDArray[np.float64], float]:
    total, losses = np.zeros(dim), 0.0
    for begin in range(0, len(rows), MAX_ROWS):
        part = rows[begin : begin + MAX_ROWS]
        padded, weights = _pad(part, -(-len(part) // _ROWS) * _ROWS)
        summed, loss = gradients.clipped(x[padded], y[padded], weights, clip)
        if np.isfinite(summed).all():
            total += summed
        else:
            # One example's overflow must show neither in the others' part nor as a refusal.
            for row in part:
                summed, _ = gradients.clipped(x[[row]], y[[row]], np.ones(1, np.float32), clip)
                if np.isfinite(summed).all():
                    total += summed
        losses += loss
    return total, losses


def _pad(rows: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], Weights]:
    weights = np.zeros(size, np.float32)
    weights[: len(rows)] = 1.0
    return np.pad(rows, (0, size - len(rows)), mode="edge"), weights
