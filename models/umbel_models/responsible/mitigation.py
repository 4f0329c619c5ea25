"""What each way of fairer training costs and gains on one task, measured on the same held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from umbel_models.fit import fit, predict
from umbel_models.responsible.constrained import constrained
from umbel_models.responsible.debias import debias
from umbel_models.responsible.fairness import cohorts, gaps
from umbel_models.responsible.figures import Figures, Interval, Labels, bootstrap, wilson
from umbel_models.responsible.reweight import reweigh
from umbel_models.task import Examples, Split, Task

_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast to train.

    Args:
        epochs: Passes over the examples.
        batch_size: Examples in a step.
        learning_rate: Of the first step.
        seed: Order of the examples.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    def train(
        self,
        task: Task,
        examples: Examples,
        *,
        weights: NDArray[np.floating] | None = None,
        progress: Callable[[str], object],
    ) -> nn.Module:
        """Return the task's module, trained plainly, or on examples that count by weights, shape (n,)."""
        how = "training" if weights is None else "training with weights"
        return fit(
            task.module(),
            task.loss,
            examples,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
            weights=weights,
            progress=self.told(how, progress),
        )

    def told(self, how: str, progress: Callable[[str], object]) -> Callable[[int, float], object]:
        """Return what tells each epoch that is done."""
        return lambda epoch, _: progress(f"{how}, epoch {epoch} of {self.epochs}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way of training.

    Args:
        accuracy: On held-out data.
        odds: Its equalized odds gap there.
        parity: Its demographic parity gap there.
    """

    accuracy: Interval
    odds: Interval
    parity: Interval


def compare(
    task: Task,
    parts: Split,
    plain: nn.Module,
    recipe: Recipe,
    *,
    slack: float = 0.03,
    strength: float = 1.0,
    progress: Callable[[str], object],
) -> dict[str, Outcome]:
    """Train a task reweighed, under a constraint and against an adversary, and measure each.

    Args:
        task: The task; the constraint is left out where it has more than two labels.
        parts: Its data, with cohorts.
        plain: Its module, trained plainly.
        recipe: How to train the others; the constraint's 20 rounds go on from ``plain``, a tenth as long each.
        slack: See ``constrained``.
        strength: See ``debias``.
        progress: Told what is done now.
    """
    train = parts.train
    outcomes = {"plain": measure(plain, parts.held_out)}
    reweighed = recipe.train(task, train, weights=reweigh(train.y, cohorts(train)), progress=progress)
    outcomes["reweighed"] = measure(reweighed, parts.held_out)
    if len(task.labels) == 2:
        under = constrained(
            plain,
            task.loss,
            train,
            slack=slack,
            rounds=_ROUNDS,
            epochs=max(1, recipe.epochs // 10),
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            seed=recipe.seed,
            progress=lambda done: progress(f"training under a constraint, round {done} of {_ROUNDS}"),
        )
        outcomes["constrained"] = measure(under.single, parts.held_out)
    debiased = debias(
        task.module(),
        task.loss,
        train,
        strength=strength,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        progress=recipe.told("training against an adversary", progress),
    )
    outcomes["adversarial"] = measure(debiased, parts.held_out)
    return outcomes


def measure(module: nn.Module, held_out: Examples, *, seed: int = 0) -> Outcome:
    """Return a module's accuracy and gaps; a gap is a greatest difference, so that chance alone makes some."""
    said: Labels = predict(module, held_out.x).argmax(1)
    y, cohort = held_out.y, cohorts(held_out)
    right = int((said == y).sum())
    return Outcome(
        accuracy=wilson(right, len(y)),
        odds=bootstrap(lambda rows: gaps(said[rows], y[rows], cohort[rows]).odds, len(y), seed=seed),
        parity=bootstrap(lambda rows: gaps(said[rows], y[rows], cohort[rows]).parity, len(y), seed=seed),
    )


def figures(outcomes: Mapping[str, Outcome]) -> Figures:
    """Return the section of the card."""
    told: Figures = {}
    for name, each in outcomes.items():
        told |= each.accuracy.figures(f"{name}, accuracy")
        told |= each.odds.figures(f"{name}, equalized odds gap")
        told |= each.parity.figures(f"{name}, demographic parity gap")
    return told
