"""Pretraining as a task of its own: a package of it is trained in rounds, by devices whose windows nobody labelled.

A device's examples are pairs of a window and what to hide of it; targets are 0 and are not read.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from umbel_models.pretrain import (
    Reconstruction,
    hide,
    reconstruction,
    reconstruction_error,
    time_axis,
)
from umbel_models.task import Examples, Split, Task
from umbel_proto.contract import DataContract, Field
from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName
from umbel_proto.manifest import REGRESSION
from umbel_proto.package import PARAMETERS, Package

_ENCODER = "encoder."  # what the parameters of ``Reconstruction.encoder`` are called


def pretraining(
    task: Task, *, axis: int | None = None, tell: str = "spectra", copies: int = 1, seed: int = 0
) -> Task:
    """Return the task of learning from a task's windows without their labels.

    The means and spreads of channels are those of the task's calibration windows: no device tells its own.

    Args:
        task: The classifier's task, of windows.
        axis: The axis of a window that is time; by default the longest.
        tell: What to tell of windows, as ``umbel_models.pretrain.reconstruction`` takes it.
        copies: How often each window comes, each time with other stretches hidden.
        seed: What is hidden, and the first values of what tells.

    Raises:
        UsageError: The task's module is not fit for it, or there is no such way to tell.
    """
    (field, *_) = task.contract.fields
    time = time_axis(field.shape) if axis is None else axis

    @functools.cache
    def parts() -> Split:
        return task.data()

    def module() -> Reconstruction:
        return reconstruction(task.module(), parts().calibration.x, axis=time, tell=tell, seed=seed)

    def pairs(part: Examples, number: int) -> Examples:
        hidden = hide(part.x, axis=time, copies=copies, seed=seed + number)
        source = None if part.source is None else np.tile(part.source, copies)
        return Examples(hidden.x, np.zeros((len(hidden.x), 1), np.float32), source=source)

    # A pair holds 0 and 1 beside the window's values.
    low, high = min(field.minimum, 0.0), max(field.maximum, 1.0)
    return Task(
        model=ModelName(f"{task.model}-pretraining"),
        module=module,
        loss=reconstruction_error,
        contract=DataContract(
            (Field(field.name, field.dtype, (2, *field.shape), low, high, unit=field.unit),)
        ),
        data=lambda: Split(*(pairs(part, number) for number, part in enumerate(parts()))),
        about=replace(task.about, purpose=f"Prepare {task.model} with windows that nobody labelled."),
        kind=REGRESSION,
    )


def pretrained(task: Task, package: Package) -> nn.Module:
    """Return a task's module whose layers before the last come from a package that rounds have trained.

    Args:
        task: The classifier's task.
        package: Of ``pretraining(task, ..)``, whatever it told of windows.

    Raises:
        UsageError: The package is of another network.
    """
    module, tensors = task.module(), package.tensors(PARAMETERS)
    learned = {
        name.removeprefix(_ENCODER): torch.from_numpy(array)
        for name, array in tensors.items()
        if name.startswith(_ENCODER)
    }
    own = {name: value.shape for name, value in module.named_parameters()}
    if not learned or any(own.get(name) != value.shape for name, value in learned.items()):
        raise UsageError(
            f"The package of {package.manifest.model} holds no layers of {task.model}: give one of its pretraining, as "
            "umbel model build and pack write it."
        )
    module.load_state_dict({**module.state_dict(), **learned})
    return module
