"""A package's parameters, back in the torch module of their task."""

from __future__ import annotations

import torch
from torch import nn

from umbel_models.task import Task
from umbel_proto.errors import UsageError
from umbel_proto.package import PARAMETERS, Package


def restored(task: Task, package: Package) -> nn.Module:
    """Return the task's module with the parameters of a package.

    Raises:
        UsageError: The package is of another network.
    """
    module, arrays = task.module(), package.tensors(PARAMETERS)
    parameters = dict(module.named_parameters())
    if {name: array.shape for name, array in arrays.items()} != {
        name: tuple(value.shape) for name, value in parameters.items()
    }:
        raise UsageError(
            f"The package holds {package.manifest.model}, whose parameters are not those of {task.model}: give "
            "one that umbel model build or pack wrote for this task."
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(torch.from_numpy(arrays[name]))
    return module
