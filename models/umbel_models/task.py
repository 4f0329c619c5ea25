"""What a task is: a model with its data contract, labels and graphs, complete without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from umbel_proto.contract import DataContract
from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName


class Examples(NamedTuple):
    """Labelled examples.

    Args:
        x: Inputs, float32, shape (n, *example), in the contract's unit.
        y: Labels, int64, shape (n,).
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]


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
class Task:
    """A task of the workbench.

    Args:
        model: Name of the model line it begins.
        labels: Name of each class.
        contract: What inputs must look like.
        decision_threshold: Confidence from which a prediction needs no review.
        files: Returns ``infer.onnx``, ``grad.onnx``, ``dpgrad.onnx`` and ``params.safetensors`` by name.
        data: Returns the task's data.
    """

    model: ModelName
    labels: tuple[str, ...]
    contract: DataContract
    decision_threshold: float
    files: Callable[[], Mapping[str, bytes]]
    data: Callable[[], Split]


def find(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        UsageError: There is none.
    """
    from umbel_models.tasks.digits.task import DIGITS

    tasks = {task.model: task for task in (DIGITS,)}
    if name not in tasks:
        raise UsageError(f"There is no task {name!r}: choose one of {', '.join(sorted(tasks))}.")
    return tasks[ModelName(name)]
