"""Descent along gradients, plain and with noise; whatever computes the gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel._data import Examples
from umbel.train import METER, SGD, Controls, DivergedError, Ended, Meter, TrainPlan, TrainResult
from umbel.train.optimizer import clip_norm, optimizer_of, pull
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

    Rows of weight 0 change nothing; all other weights are 1. What is returned is the caller's to change, until
    the next call.
    """

    def mean(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights) -> tuple[FloatVector, float]:
        """Return the gradient of the weighted mean of losses, shape (dim,), and that mean."""

    def clipped(
        self, x: NDArray[Any], y: NDArray[np.int64], w: Weights, clip: float
    ) -> tuple[FloatVector, float]:
        """Return the weighted sum of gradients, each clipped to an L2 norm of ``clip``, and of losses."""

    def loss(self, x: NDArray[Any], y: NDArray[np.int64], w: Weights) -> float:
        """Return the weighted mean of losses."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a training is to do, checked.

    Args:
        plan: How.
        x: Examples, shape (n, *example), n >= 1.
        y: Labels, shape (n,).
        held_back: Examples and labels to judge by, where the plan has ``patience``; else None.
        controls: SCAFFOLD's terms, or None.
        meter: What limits are measured with.
    """

    plan: TrainPlan
    x: NDArray[Any] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    held_back: tuple[NDArray[Any], NDArray[np.int64]] | None = field(default=None, repr=False)
    controls: Controls | None = None
    meter: Meter = METER


def prepare(
    manifest: Manifest,
    x: NDArray[Any],
    y: NDArray[Any],
    plan: TrainPlan,
    *,
    held_back: Examples | None,
    controls: Controls | None,
    meter: Meter,
) -> Work:
    """Return what a trainer was asked for, as ``descend`` takes it; see ``Trainer.train``.

    Raises:
        UsageError: The data breaks the contract, or the settings do not fit together.
    """
    judge = None
    if plan.patience:
        if held_back is None or held_back.y is None:
            raise UsageError("patience needs labelled examples to judge by: hold some back from training.")
        judge = checked(manifest, held_back.x, held_back.y)
    if plan.energy_limit_j and meter.joules is None:
        raise UsageError(
            "energy_limit_j needs a counter of joules, and this trainer has none: give it a meter, or no limit."
        )
    if controls is not None:
        if plan.optimizer != SGD or plan.momentum or plan.weight_decay or plan.fedprox_mu:
            raise UsageError(
                "SCAFFOLD takes plain steps: choose optimizer sgd, with momentum, weight_decay and fedprox_mu 0."
            )
        manifest.split(controls.server)
        manifest.split(controls.own)
    return Work(plan, *checked(manifest, x, y), judge, controls, meter)


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


def descend(current: FloatVector, gradients: Gradients, work: Work) -> TrainResult:
    """Change parameters in place, as the plan says.

    Args:
        current: The parameters, shape (dim,); ``gradients`` sees them change.
        gradients: Computes gradients.
        work: What to do.

    Raises:
        DivergedError: Training diverged.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # What overflows is found at the end.
        return _descend(current, gradients, work)


def _descend(current: FloatVector, gradients: Gradients, work: Work) -> TrainResult:
    plan, controls = work.plan, work.controls
    optimizer = optimizer_of(plan, len(current))
    start = current.copy() if plan.fedprox_mu or controls is not None else current
    drift = None if controls is None else controls.server - controls.own
    per_epoch = plan.steps(len(work.y)) // plan.epochs
    total, seen, steps = 0.0, 0, 0
    private = plan.privacy is not None
    stop = _Stop(work, gradients, per_epoch)
    for gradient, loss, rows in (_private if private else _plain)(gradients, len(current), work):
        if steps % per_epoch == 0:
            total, seen = 0.0, 0
        if plan.fedprox_mu:
            pull(gradient, current, start, plan.fedprox_mu)
        if plan.gradient_clip:
            clip_norm(gradient, plan.gradient_clip)
        if drift is not None:
            gradient += drift
        optimizer.step(current, gradient)
        total, seen, steps = total + loss, seen + rows, steps + 1
        if stop.now(steps):
            break
    # A private result is judged by its parameters alone, which have noise: refusing it tells of no example.
    if not (np.isfinite(current).all() and (private or np.isfinite(total))):
        raise DivergedError(f"Training diverged at learning rate {plan.learning_rate:g}: choose a lower one.")
    return TrainResult(
        current,
        total / max(seen, 1),
        len(work.y),
        steps,
        stop.why,
        stop.seconds,
        stop.joules,
        # Option II: the mean of the gradients that were taken, from how far they led.
        None if drift is None else (start - current) / np.float32(steps * plan.learning_rate) - drift,
    )


class _Stop:
    """Says after which step a training ends, and why."""

    def __init__(self, work: Work, gradients: Gradients, per_epoch: int) -> None:
        self._work, self._gradients, self._per_epoch = work, gradients, per_epoch
        self._best, self._in_vain = math.inf, 0
        joules = work.meter.joules
        self._begin_s, self._begin_j = work.meter.clock(), 0.0 if joules is None else joules()
        self.why = Ended.EPOCHS

    @property
    def seconds(self) -> float:
        """How long training has taken."""
        return self._work.meter.clock() - self._begin_s

    @property
    def joules(self) -> float | None:
        """How much energy training has taken; None where nobody knows."""
        joules = self._work.meter.joules
        return None if joules is None else joules() - self._begin_j

    def now(self, steps: int) -> bool:
        """Return whether the step just taken, the ``steps``-th, was the last by anything but the epochs."""
        plan = self._work.plan
        if steps == plan.epochs * self._per_epoch:
            return False
        if plan.time_limit_s and self.seconds >= plan.time_limit_s:
            self.why = Ended.TIME
        elif plan.energy_limit_j and (self.joules or 0.0) >= plan.energy_limit_j:
            self.why = Ended.ENERGY
        elif plan.patience and steps % self._per_epoch == 0 and self._out_of_patience():
            self.why = Ended.PATIENCE
        return self.why is not Ended.EPOCHS

    def _out_of_patience(self) -> bool:
        assert self._work.held_back is not None
        loss = _mean_loss(self._gradients, *self._work.held_back, self._work.plan.batch_size)
        # What is not a number is lower than nothing.
        self._best, self._in_vain = (loss, 0) if loss < self._best else (self._best, self._in_vain + 1)
        return self._in_vain >= self._work.plan.patience


def _mean_loss(gradients: Gradients, x: NDArray[Any], y: NDArray[np.int64], size: int) -> float:
    total = 0.0
    for begin in range(0, len(y), size):
        rows = np.arange(begin, min(begin + size, len(y)))
        padded, weights = _pad(rows, size)
        total += gradients.loss(x[padded], y[padded], weights) * len(rows)
    return total / len(y)


def _plain(gradients: Gradients, _dim: int, work: Work) -> Iterator[tuple[FloatVector, float, int]]:
    """Yield each step's gradient, sum of losses and number of examples.

    Every batch has ``batch_size`` rows; those that only fill up the last one weigh nothing.
    """
    x, y, plan = work.x, work.y, work.plan
    for epoch in range(plan.epochs):
        # The order needs no secrecy. A keystream gives the same one under every version of numpy.
        words = Keystream(digest(SHUFFLE_LABEL, plan.seed, epoch)).uint64(len(y))
        order = np.argsort(words, kind="stable")
        for begin in range(0, len(y), plan.batch_size):
            rows = order[begin : begin + plan.batch_size]
            padded, weights = _pad(rows, plan.batch_size)
            gradient, loss = gradients.mean(x[padded], y[padded], weights)
            yield gradient, loss * len(rows), len(rows)


def _private(gradients: Gradients, dim: int, work: Work) -> Iterator[tuple[FloatVector, float, int]]:
    """Yield each step's noised gradient, sum of losses and number of examples drawn.

    Source: docs/spec/privacy.md, 9.2 to 9.5.
    """
    x, y, plan = work.x, work.y, work.plan
    release, privacy = plan.release(len(y)), plan.privacy
    assert release is not None
    assert privacy is not None
    for _ in range(release.steps):
        chance = Keystream()
        rows = poisson_sample(len(y), release.rate, chance)
        total, loss = _clipped_sum(gradients, dim, x, y, rows, privacy.clip * SLACK)
        if privacy.noise:
            noised(total, deviation=privacy.noise * privacy.clip, stream=chance, out=total)
        # By the size that was planned: how many were drawn is a secret.
        total /= plan.batch_size
        yield total.astype(np.float32, copy=False), loss, len(rows)


def _clipped_sum(
    gradients: Gradients,
    dim: int,
    x: NDArray[Any],
    y: NDArray[np.int64],
    rows: NDArray[np.int64],
    clip: float,
) -> tuple[NDArray[np.floating], float]:
    """Return the sum of clipped gradients, shape (dim,), and of losses; float32 where one sum took all rows."""
    parts = [rows[begin : begin + MAX_ROWS] for begin in range(0, len(rows), MAX_ROWS)]
    total, losses = None, 0.0
    for part in parts:
        padded, weights = _pad(part, -(-len(part) // _ROWS) * _ROWS)
        summed, loss = gradients.clipped(x[padded], y[padded], weights, clip)
        losses += loss
        if len(parts) == 1 and np.isfinite(summed).all():
            return summed, losses
        total = np.zeros(dim) if total is None else total
        if np.isfinite(summed).all():
            total += summed
            continue
        # One example's overflow must show neither in the others' part nor as a refusal.
        for row in part:
            summed, _ = gradients.clipped(x[[row]], y[[row]], np.ones(1, np.float32), clip)
            if np.isfinite(summed).all():
                total += summed
    return np.zeros(dim, np.float32) if total is None else total, losses


def _pad(rows: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], Weights]:
    weights = np.zeros(size, np.float32)
    weights[: len(rows)] = 1.0
    return np.pad(rows, (0, size - len(rows)), mode="edge"), weights
