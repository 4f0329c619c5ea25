"""What a trainer was asked for, checked; and the order of its examples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel._data.examples import Examples
from umbel.train import SGD, Controls, Meter, TrainPlan
from umbel.train.descent import Work
from umbel_proto.answers import checked_answers
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.manifest import Manifest
from umbel_proto.prg import Keystream
from umbel_proto.privacy.gaussian import deviation_of

SHUFFLE_LABEL = "umbel/1/shuffle"


def prepare(
    manifest: Manifest,
    x: NDArray[Any],
    y: NDArray[Any],
    plan: TrainPlan,
    *,
    held_back: Examples | None,
    controls: Controls | None,
    meter: Meter,
    watch: Callable[[], object] | None = None,
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
    if plan.privacy is not None:
        deviation_of(
            plan.privacy.noise, plan.privacy.clip, manifest.dim
        )  # Refuses what it has no grains for.
    if controls is not None:
        if plan.optimizer != SGD or plan.momentum or plan.weight_decay or plan.fedprox_mu:
            raise UsageError(
                "SCAFFOLD takes plain steps: choose optimizer sgd, with momentum, weight_decay and fedprox_mu 0."
            )
        manifest.split(controls.server)
        manifest.split(controls.own)
    inputs, answers = checked(manifest, x, y)
    order = functools.partial(shuffled, plan.seed, len(answers))
    return Work(plan, inputs, answers, order, judge, controls, meter, watch)


def shuffled(seed: int, count: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of ``count`` examples in an epoch, from 0.

    It needs no secrecy. A keystream gives the same one under every version of numpy.
    """
    words = Keystream(digest(SHUFFLE_LABEL, seed, epoch)).uint64(count)
    return np.argsort(words, kind="stable")


def checked(manifest: Manifest, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return examples and their labels or targets as a model takes them.

    Raises:
        UsageError: They break the data contract, or the labels or targets are none.
    """
    inputs, single = manifest.contract.check(x)
    if single:
        raise UsageError(
            "Training needs a batch of inputs, and this is one example: give it a batch dimension."
        )
    return inputs, checked_answers(manifest, y, len(inputs))
