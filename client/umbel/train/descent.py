"""Descent along gradients, plain and with noise; whatever computes the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from umbel.train import METER, Controls, DivergedError, Ended, Meter, TrainPlan, TrainResult
from umbel.train.blocks import LONG, second_thread
from umbel.train.optimizer import clip_norm, optimizer_of, pull
from umbel.train.summed import Summed, finite

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from umbel_proto.manifest import FloatVector

SLACK = 1 - 2.0**-10
"""Gradients are clipped to this share of the clip; the rest covers the rounding of float32.

Source: docs/spec/privacy.md, 9.3."""

MAX_ROWS = 64
"""Most gradients that are summed in float32. Source: docs/spec/privacy.md, 9.3."""

NOISY = 1 << 17
"""Values of noise from which on a second thread gains time by drawing them."""

Weights = NDArray[np.float32]


class Gradients(Protocol):
    """Computes gradients at the parameters of one training, which change between calls.

    Rows of weight 0 change nothing; all other weights are 1. What is returned is the caller's to change, until
    the next call.
    """

    def mean(self, x: NDArray[Any], y: NDArray[Any], w: Weights) -> tuple[FloatVector, float]:
        """Return the gradient of the weighted mean of losses, shape (dim,), and that mean."""

    def clipped(self, x: NDArray[Any], y: NDArray[Any], w: Weights, clip: float) -> tuple[Summed, float]:
        """Return the weighted sum of gradients, each clipped to an L2 norm of ``clip``, and of losses."""

    def loss(self, x: NDArray[Any], y: NDArray[Any], w: Weights) -> float:
        """Return the weighted mean of losses."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a training is to do, checked.

    Args:
        plan: How.
        x: Examples, shape (n, *example), n >= 1.
        y: Labels, int64 (n,), or targets, float32 (n, *answer).
        order: Returns an epoch's order of the examples, shape (n,), from 0; a private training draws its own.
        held_back: Examples and labels to judge by, where the plan has ``patience``; else None.
        controls: SCAFFOLD's terms, or None.
        meter: What limits are measured with.
        watch: Called after every step; what it raises ends the training. None: nobody watches.
    """

    plan: TrainPlan
    x: NDArray[Any] = field(repr=False)
    y: NDArray[Any] = field(repr=False)
    order: Callable[[int], NDArray[np.int64]] = field(repr=False)
    held_back: tuple[NDArray[Any], NDArray[Any]] | None = field(default=None, repr=False)
    controls: Controls | None = None
    meter: Meter = METER
    watch: Callable[[], object] | None = None


def descend(current: FloatVector, gradients: Gradients, work: Work) -> TrainResult:
    """Change parameters in place, as the plan says.

    Args:
        current: The parameters, shape (dim,); ``gradients`` sees them change.
        gradients: Computes gradients.
        work: What to do.

    Raises:
        DivergedError: Training diverged.
    """
    private = work.plan.privacy is not None and work.plan.privacy.noise > 0
    with (
        np.errstate(over="ignore", invalid="ignore"),  # What overflows is found at the end.
        second_thread(len(current), NOISY if private else LONG) as pool,
    ):
        return _descend(current, gradients, work, pool)


def _descend(
    current: FloatVector, gradients: Gradients, work: Work, pool: ThreadPoolExecutor | None
) -> TrainResult:
    plan, controls = work.plan, work.controls
    optimizer = optimizer_of(plan, len(current), pool)
    start = current.copy() if plan.fedprox_mu or controls is not None else current
    drift = None if controls is None else controls.server - controls.own
    per_epoch = plan.steps(len(work.y)) // plan.epochs
    total, seen, steps = 0.0, 0, 0
    private = plan.privacy is not None
    stop = _Stop(work, gradients, per_epoch)
    for gradient, loss, rows in (
        _private(gradients, len(current), work, pool) if private else _plain(gradients, work)
    ):
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
        if work.watch is not None:
            work.watch()
        if stop.now(steps):
            break
    # A private result is judged by its parameters alone, which have noise: refusing it tells of no example.
    if not (finite(current) and (private or np.isfinite(total))):
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


def _mean_loss(gradients: Gradients, x: NDArray[Any], y: NDArray[Any], size: int) -> float:
    total = 0.0
    for begin in range(0, len(y), size):
        rows = np.arange(begin, min(begin + size, len(y)))
        padded, weights = _pad(rows, size)
        total += gradients.loss(x[padded], y[padded], weights) * len(rows)
    return total / len(y)


def _plain(gradients: Gradients, work: Work) -> Iterator[tuple[FloatVector, float, int]]:
    """Yield each step's gradient, sum of losses and number of examples.

    Every batch has ``batch_size`` rows; those that only fill up the last one weigh nothing.
    """
    x, y, plan = work.x, work.y, work.plan
    for epoch in range(plan.epochs):
        order = work.order(epoch)
        for begin in range(0, len(y), plan.batch_size):
            rows = order[begin : begin + plan.batch_size]
            padded, weights = _pad(rows, plan.batch_size)
            gradient, loss = gradients.mean(x[padded], y[padded], weights)
            yield gradient, loss * len(rows), len(rows)


def _private(
    gradients: Gradients, dim: int, work: Work, pool: ThreadPoolExecutor | None
) -> Iterator[tuple[FloatVector, float, int]]:
    """Yield each step's noised gradient, sum of losses and number of examples drawn.

    Source: docs/spec/privacy.md, 9.2 to 9.5.
    """
    # Only noise needs cryptography, which is 8 MB: a plain training in a process of its own goes without.
    from umbel.train.ahead import Ahead
    from umbel_proto.prg import Keystream
    from umbel_proto.privacy.gaussian import deviation_of, poisson_sample

    plan = work.plan
    release, privacy = plan.release(len(work.y)), plan.privacy
    assert release is not None
    assert privacy is not None
    deviation = deviation_of(privacy.noise, privacy.clip, dim)
    noise = Ahead(pool, dim) if privacy.noise else None
    for _ in range(release.steps):
        if noise is not None:
            noise.begin()
        chance = Keystream()
        rows = poisson_sample(len(work.y), release.rate, chance)
        summed, loss = _clipped_sum(gradients, dim, work, rows, privacy.clip * SLACK)
        # By the size that was planned: how many were drawn is a secret.
        if noise is not None:
            total = noise.onto(summed, deviation=deviation, stream=chance, divisor=plan.batch_size)
        else:
            total = summed.whole()
            total /= plan.batch_size
        yield total.astype(np.float32, copy=False), loss, len(rows)


def _clipped_sum(
    gradients: Gradients, dim: int, work: Work, rows: NDArray[np.int64], clip: float
) -> tuple[Summed, float]:
    """Return the sum of clipped gradients, shape (dim,), and of losses; float32 where it is of few rows.

    A draw that is much larger than planned is taken in equal parts: its memory would stay taken afterwards. One that
    is somewhat larger takes less of it than a second vector to add parts to, and half of all draws are.
    """
    x, y = work.x, work.y
    most = min(work.plan.batch_size * 3 // 2, MAX_ROWS)
    parts = np.array_split(rows, -(-len(rows) // most)) if len(rows) else []
    total: NDArray[np.floating] | None = None
    losses = 0.0
    for part in parts:
        summed, loss = gradients.clipped(x[part], y[part], np.ones(len(part), np.float32), clip)
        losses += loss
        whole = summed.finite()
        if len(parts) == 1 and whole:
            return summed, losses
        if total is None:
            total = np.zeros(dim, np.float32) if len(rows) <= MAX_ROWS else np.zeros(dim)
        if whole:
            total += summed.whole()
            continue
        # One example's overflow must show neither in the others' part nor as a refusal.
        for row in part:
            summed, _ = gradients.clipped(x[[row]], y[[row]], np.ones(1, np.float32), clip)
            if summed.finite():
                total += summed.whole()
    return Summed(np.zeros(dim, np.float32) if total is None else total), losses


def _pad(rows: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], Weights]:
    weights = np.zeros(size, np.float32)
    weights[: len(rows)] = 1.0
    return np.pad(rows, (0, size - len(rows)), mode="edge"), weights
