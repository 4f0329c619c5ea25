"""What a task is: a model with its data contract, labels and graphs, complete without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbel_proto.contract import DataContract
from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName

if TYPE_CHECKING:
    from torch import Tensor, nn


class Examples(NamedTuple):
    """Labelled examples.

    Args:
        x: Inputs, float32, shape (n, *example), in the contract's unit.
        y: Labels, int64, shape (n,).
        cohort: Number of the cohort each belongs to, int64, shape (n,), for judging fairness; no model sees it.
        source: Who or what each was measured on, int64, shape (n,): examples of one source belong on one device.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    cohort: NDArray[np.int64] | None = None
    source: NDArray[np.int64] | None = None

    def take(self, rows: NDArray[Any]) -> Examples:
        """Return the examples of some rows: their numbers, or a mask."""
        return Examples(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


class Split(NamedTuple):
    """A data set in three parts that share no example.

    Args:
        train: What devices learn from.
        held_out: What accuracy is measured on, and nothing else.
        calibration: A few examples for quantization and golden vectors.
    """

    train: Examples
    held_out: Examples
    calibration: Examples


@dataclass(frozen=True, slots=True)
class About:
    """What a model card says and no program can find out.

    Args:
        purpose: What the model is for, in one sentence.
        data: Where its data comes from, with the source to cite.
        limits: What it must not be used for, and what it is known to get wrong.
        license: Of the data, an SPDX identifier where there is one.
        datasheet: More about the data, Markdown, for who wants to use it for something else.
    """

    purpose: str
    data: str
    limits: tuple[str, ...] = ()
    license: str = ""
    datasheet: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A task of the workbench: all that a package, its card and a federated run of it are made from.

    Nothing here imports torch before it is asked for a module.

    Args:
        model: Name of the model line it begins.
        module: Returns the network with its initial parameters: x, shape (batch, *example), -> logits, shape
            (batch, labels). Called twice it returns equal ones.
        loss: Maps logits and labels y, int64 (batch,), to one loss per example, shape (batch,).
        labels: Name of each class.
        contract: What inputs must look like.
        decision_threshold: Confidence from which a prediction needs no review.
        data: Returns the task's data.
        about: For the model card.
        trainable: Names of the parameters that training changes; all of them where there is none.
        cohorts: Name of each cohort of ``Examples.cohort``.
        columns: Name of each input, or of each channel of a series, for explanations; none where they have none.
        shifted: Returns other labelled data to judge a model on, by name: what devices may meet later.
        committed: Returns the graphs and ``params.safetensors`` by name where they are kept beside the task,
            so that packing needs no torch; otherwise they are exported.
    """

    model: ModelName
    module: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    labels: tuple[str, ...]
    contract: DataContract
    decision_threshold: float
    data: Callable[[], Split]
    about: About
    trainable: tuple[str, ...] = ()
    cohorts: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    shifted: Callable[[], Mapping[str, Examples]] | None = None
    committed: Callable[[], Mapping[str, bytes]] | None = None


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of each example, shape (batch,), of logits (batch, classes): a task's loss."""
    from torch.nn import functional

    return functional.cross_entropy(logits, y, reduction="none")


TASKS = {
    "activity": "umbel_models.tasks.activity.task:ACTIVITY",
    "breast-cancer": "umbel_models.tasks.breast_cancer.task:BREAST_CANCER",
    "credit": "umbel_models.tasks.credit.task:CREDIT",
    "digits": "umbel_models.tasks.digits.task:DIGITS",
}
"""Where each task stands, by name: a task is imported when it is asked for, and no other."""


def find(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        UsageError: There is none.
    """
    if name not in TASKS:
        raise UsageError(f"There is no task {name!r}: choose one of {', '.join(sorted(TASKS))}.")
    module, _, constant = TASKS[name].partition(":")
    task: Task = getattr(import_module(module), constant)
    return task
