"""How a model fares where the world is worse than its data: attacks, broken sensors, shift, rare events.

Every strength is in standard deviations of each input on the training data, so that one number suits sensors
and columns of any unit. Disturbed inputs are cut to the data contract, as a device refuses all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umbel_models.fit import Loss, predict, repeatable
from umbel_models.responsible.figures import Figures, Interval, Labels, wilson
from umbel_models.task import Examples
from umbel_proto.errors import UsageError

STRENGTHS = (0.1, 0.25, 0.5)
STEPS = 10
MIN_GROUP = 20  # Of fewer examples an interval spans most of what an accuracy can be.

FloatArray = NDArray[np.floating]
Batch = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """What inputs may look like.

    Args:
        middle: Mean of each input on the training data, shape of one example.
        spread: Their standard deviations, of the same shape.
        low: Least legal value.
        high: Greatest legal value.
    """

    middle: Batch
    spread: Batch
    low: float
    high: float

    def legal(self, x: FloatArray) -> Batch:
        """Return inputs cut to their legal range."""
        return np.clip(x, self.low, self.high).astype(np.float32)


def channel_axis(shape: Sequence[int]) -> int:
    """Return the axis of one example whose parts are channels: the shortest one that has several parts."""
    several = [axis for axis, size in enumerate(shape) if size > 1]
    return min(several, key=lambda axis: shape[axis], default=0)


def fgsm(module: nn.Module, loss: Loss, x: Batch, y: Labels, *, strength: float, world: World) -> Batch:
    """Return each input moved one step up the slope of its own loss, by ``strength`` deviations everywhere.

    Source: Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015
    (arXiv:1412.6572v3), section 4.
    """
    return world.legal(x + strength * world.spread * np.sign(_slope(module, loss, x, y)))


def pgd(
    module: nn.Module, loss: Loss, x: Batch, y: Labels, *, strength: float, world: World, seed: int = 0
) -> Batch:
    """Return each input moved in ten steps to where its loss is greatest, within ``strength`` deviations.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018
    (arXiv:1706.06083v4), section 2.1: from a random start, with steps of 2.5 strengths / steps.
    """
    reach = strength * world.spread
    moved = world.legal(x + np.random.default_rng(seed).uniform(-1, 1, x.shape) * reach)
    for _ in range(STEPS):
        uphill = moved + 2.5 / STEPS * reach * np.sign(_slope(module, loss, moved, y))
        moved = world.legal(np.clip(uphill, x - reach, x + reach))
    return moved


def _noise(x: Batch, strength: float, world: World, rng: np.random.Generator) -> FloatArray:
    return x + strength * world.spread * rng.standard_normal(x.shape)


def _dropout(x: Batch, strength: float, world: World, rng: np.random.Generator) -> FloatArray:
    # A dead channel gives what it gives on average.
    return np.where(rng.random(_per_channel(x)) < strength, world.middle, x)


def _shift(x: Batch, strength: float, world: World, rng: np.random.Generator) -> FloatArray:
    signs: FloatArray = rng.choice((-1.0, 1.0), _per_channel(x))
    return x + strength * world.spread * signs


def _scale(x: Batch, strength: float, world: World, rng: np.random.Generator) -> FloatArray:
    gain: FloatArray = 1 + strength * rng.choice((-1.0, 1.0), _per_channel(x))
    return x * gain


def _missing(x: Batch, strength: float, world: World, rng: np.random.Generator) -> FloatArray:
    return np.where(rng.random(x.shape) < strength, world.middle, x)


CORRUPTIONS: Mapping[str, Callable[[Batch, float, World, np.random.Generator], FloatArray]] = (
    MappingProxyType(
        {
            "noise": _noise,
            "dead channels": _dropout,
            "offset": _shift,
            "gain": _scale,
            "missing values": _missing,
        }
    )
)
"""Ways for sensors to fail. The strength is the share of channels that are dead or values that are missing,
the relative error of a gain, and otherwise in deviations; offset and gain err by channel and example."""


@dataclass(frozen=True, slots=True)
class Robustness:
    """Accuracy where nothing, something or a lot is wrong.

    Args:
        clean: On held-out data as it is.
        disturbed: For each attack and corruption the accuracy at each strength.
        shifted: On each group of examples, and each shifted data set that was given.
        rare: Recall of labels that are rare.
    """

    clean: Interval
    disturbed: Mapping[str, Mapping[float, float]]
    shifted: Mapping[str, Interval]
    rare: Mapping[str, Interval]

    def figures(self) -> Figures:
        """Return the section of the card."""
        told = self.clean.figures("accuracy")
        for kind, by_strength in self.disturbed.items():
            for strength, accuracy in by_strength.items():
                told[f"accuracy under {kind} {strength:g}"] = round(accuracy, 4)
        for name, found in self.shifted.items():
            told |= found.figures(f"accuracy on {name}")
        for name, found in self.rare.items():
            told |= found.figures(f"recall of rare label {name}")
        return told


def robustness(
    module: nn.Module,
    loss: Loss,
    held_out: Examples,
    world: World,
    *,
    labels: Sequence[str],
    shifted: Mapping[str, Examples] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> Robustness:
    """Measure a model under attacks, corruptions and shift, and on rare labels.

    Args:
        module: Maps x to logits.
        loss: One loss per example, whose slope attackers climb.
        held_out: What it is measured on.
        world: What inputs may look like.
        labels: Name of each label.
        shifted: Other data to measure it on, by name: another season, another place, another sensor.
        strengths: How much to disturb.
        seed: What is disturbed.
    """
    x, y = held_out.x, held_out.y

    def accuracy(moved: Batch) -> float:
        return float((predict(module, moved).argmax(1) == y).mean())

    disturbed = {
        "FGSM": {each: accuracy(fgsm(module, loss, x, y, strength=each, world=world)) for each in strengths},
        "PGD": {each: accuracy(pgd(module, loss, x, y, strength=each, world=world)) for each in strengths},
    }
    for name, corrupt in CORRUPTIONS.items():
        disturbed[name] = {
            each: accuracy(world.legal(corrupt(x, each, world, np.random.default_rng(seed))))
            for each in strengths
        }
    right = predict(module, x).argmax(1) == y
    found = {**_worst(right, held_out.source, "source")}
    for name, examples in (shifted or {}).items():
        hits = predict(module, examples.x).argmax(1) == examples.y
        found[name] = wilson(int(hits.sum()), len(hits))
    return Robustness(wilson(int(right.sum()), len(y)), disturbed, found, rare_recalls(right, y, labels))


def world_of(train: Examples, *, low: float, high: float) -> World:
    """Return the world as training data and the contract's range show it."""
    if not low < high:
        raise UsageError(f"Inputs from {low:g} to {high:g} leave nothing to disturb: give a range.")
    middle, spread = train.x.mean(0, dtype=np.float64), train.x.std(0, dtype=np.float64)
    return World(middle.astype(np.float32), spread.astype(np.float32), low, high)


def rare_recalls(right: NDArray[np.bool_], y: Labels, labels: Sequence[str]) -> dict[str, Interval]:
    """Return the recall of labels half as frequent as their even share, or of the rarest if none is.

    Args:
        right: Which examples are decided rightly, shape (n,).
        y: Their labels, shape (n,).
        labels: Name of each label.
    """
    counts = np.bincount(y, minlength=len(labels))
    present = np.flatnonzero(counts).tolist()
    rare = [label for label in present if counts[label] < len(y) / len(labels) / 2]
    rare = rare or [present[int(counts[present].argmin())]]
    return {str(labels[label]): wilson(int(right[y == label].sum()), int(counts[label])) for label in rare}


def _worst(right: NDArray[np.bool_], group: Labels | None, what: str) -> dict[str, Interval]:
    if group is None:
        return {}
    numbers, counts = np.unique(group, return_counts=True)
    found = [
        wilson(int(right[group == each].sum()), int(n))
        for each, n in zip(numbers, counts, strict=True)
        if n >= MIN_GROUP
    ]
    return {f"the worst of {len(found)} {what}s": min(found)} if len(found) > 1 else {}


def _per_channel(x: Batch) -> tuple[int, ...]:
    axis = channel_axis(x.shape[1:]) + 1
    return tuple(size if each in (0, axis) else 1 for each, size in enumerate(x.shape))


def _slope(module: nn.Module, loss: Loss, x: Batch, y: Labels) -> Batch:
    parts: list[Tensor] = []
    with repeatable(0):
        for rows in torch.split(torch.arange(len(x)), 512):
            batch = torch.from_numpy(x)[rows].requires_grad_()
            parts += torch.autograd.grad(loss(module(batch), torch.from_numpy(y)[rows]).sum(), [batch])
    slopes: Batch = torch.cat(parts).numpy()
    return slopes
