"""Why a model decides as it does: over all examples, and for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from umbel_models.fit import predict, repeatable
from umbel_models.responsible.fairness import by_name
from umbel_models.responsible.figures import Figures, Interval, Labels, mean
from umbel_models.responsible.robustness import channel_axis
from umbel_models.task import Examples

STEPS = 32
MAX_INPUTS = 128
TOLD = 8  # A card names the most important ones.
MIN_SLICE = 10  # Of fewer examples, as of fewer devices or rows elsewhere, nothing is told.


@dataclass(frozen=True, slots=True, eq=False)
class Attributions:
    """What each input adds to a logit, compared with a baseline.

    Args:
        values: In units of the logit, shape of the inputs.
        residual: How far they miss the difference of the logits that they share out, shape (n,).
    """

    values: NDArray[np.float32]
    residual: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Slice:
    """What decides within a part of the data.

    Args:
        examples: How many held-out examples the part has.
        lost: Accuracy lost there without each input, the greatest first.
    """

    examples: int
    lost: Mapping[str, Interval]


def integrated_gradients(
    module: nn.Module,
    x: NDArray[np.float32],
    *,
    baseline: NDArray[np.float32],
    target: Labels,
    steps: int = STEPS,
) -> Attributions:
    """Return what each input adds to the logit of ``target``: integrated gradients, at midpoints.

    Args:
        module: Maps x to logits.
        x: Inputs to explain, shape (n, *example).
        baseline: What they are compared with, shape of one example: the training data's mean, or silence.
        target: The label to explain for each, shape (n,).
        steps: Points on the way from the baseline, >= 1.

    Source:
        Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (arXiv:1703.01365v2),
        section 3; completeness is proposition 1.
    """
    start, end = torch.from_numpy(baseline).expand(x.shape), torch.from_numpy(x)
    number = torch.from_numpy(target)[:, None]
    total = torch.zeros_like(end)
    with repeatable(0):
        for step in range(steps):
            point = torch.lerp(start, end, (step + 0.5) / steps).requires_grad_()
            total += torch.autograd.grad(module(point).gather(1, number).sum(), [point])[0]
        with torch.no_grad():
            risen = (module(end) - module(start)).gather(1, number)[:, 0]
    values = (end - start) * total / steps
    return Attributions(values.numpy(), (risen - values.flatten(1).sum(1)).numpy())


def importance(
    module: nn.Module,
    examples: Examples,
    groups: Mapping[str, NDArray[np.int64]],
    *,
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return how much accuracy is lost when inputs are shuffled among examples, the greatest first.

    The intervals are over examples: they say how sure the loss is on others like them. Inputs that carry the
    same information hide each other's importance.

    Args:
        module: Maps x to logits.
        examples: Held-out ones, >= 2.
        groups: Inputs that are shuffled together, by name: numbers in the flattened example.
        repeats: How many times to shuffle.
        seed: How.

    Source: Breiman, "Random Forests", Machine Learning 45, 2001, section 10.
    """
    rng = np.random.default_rng(seed)
    flat = examples.x.reshape(len(examples.x), -1)
    right = (predict(module, examples.x).argmax(1) == examples.y).astype(np.float64)
    lost = {}
    for name, columns in groups.items():
        still = np.zeros(len(right))
        for _ in range(repeats):
            shuffled = flat.copy()
            shuffled[:, columns] = flat[rng.permutation(len(flat))][:, columns]
            still += predict(module, shuffled.reshape(examples.x.shape)).argmax(1) == examples.y
        lost[name] = mean(right - still / repeats)
    return dict(sorted(lost.items(), key=lambda item: -item[1].value))


def by_cohort(
    module: nn.Module,
    examples: Examples,
    groups: Mapping[str, NDArray[np.int64]],
    *,
    names: Sequence[str] = (),
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, Slice]:
    """Return for each cohort what ``importance`` gives on its own examples; of fewer than 10, nothing.

    An input is shuffled among the examples of the cohort alone: what it tells of the cohort itself is not lost.

    Args:
        module: Maps x to logits.
        examples: Held-out ones; without cohorts, nothing is returned.
        groups: As of ``importance``.
        names: Of the cohorts; their numbers where there are none.
        repeats: As of ``importance``.
        seed: As of ``importance``.
    """
    if examples.cohort is None:
        return {}
    return {
        name: Slice(
            int(rows.sum()), importance(module, examples.take(rows), groups, repeats=repeats, seed=seed)
        )
        for name, rows in by_name(examples.cohort, names)
        if rows.sum() >= MIN_SLICE
    }


def groups_of(shape: Sequence[int], columns: Sequence[str] = ()) -> dict[str, NDArray[np.int64]]:
    """Return which inputs to judge together: each by itself, or by channel where they are more than 128.

    Args:
        shape: Of one example.
        columns: Names of the inputs or of the channels, where they have some.
    """
    numbers = np.arange(int(np.prod(shape)))
    if len(columns) == len(numbers):
        return {name: numbers[[each]] for each, name in enumerate(columns)}
    if len(numbers) <= MAX_INPUTS:
        return {f"input {each}": numbers[[each]] for each in numbers}
    parts = np.moveaxis(numbers.reshape(tuple(shape)), channel_axis(shape), 0)
    names = columns if len(columns) == len(parts) else [f"channel {each}" for each in range(len(parts))]
    return {name: part.ravel() for name, part in zip(names, parts, strict=True)}


def figures(
    lost: Mapping[str, Interval], local: Attributions, slices: Mapping[str, Slice] | None = None
) -> Figures:
    """Return the section of the card: the most important inputs, and how complete local explanations are.

    Args:
        lost: Accuracy lost without each input, the greatest first.
        local: Explanations of single decisions.
        slices: What decides within each cohort, by its name: the same figures, after ``cohort NAME, ``.
    """
    told = _most_important(lost)
    for name, of in (slices or {}).items():
        told[f"cohort {name}, examples"] = of.examples
        told |= _most_important(of.lost, f"cohort {name}, ")
    told["integrated gradients, greatest completeness residual"] = round(
        float(np.abs(local.residual).max()), 4
    )
    return told


def _most_important(lost: Mapping[str, Interval], prefix: str = "") -> Figures:
    told: Figures = {}
    named = {f"{prefix}accuracy lost without {name}": lost[name] for name in list(lost)[:TOLD]}
    for figure, interval in named.items():
        told |= interval.figures(figure)
    # An input may be called as an end of another's interval: the input's own figure goes before.
    for figure, interval in named.items():
        told |= {figure: interval.figures(figure)[figure]}
    return told
