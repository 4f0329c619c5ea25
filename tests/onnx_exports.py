"""ONNX graphs of small torch modules, for the tests of what reads them."""

from __future__ import annotations

import io
import warnings

import torch
from torch import nn


def exported(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    outputs: tuple[str, ...] = ("y",),
    example: torch.Tensor | None = None,
) -> bytes:
    """Return the graph of a module in eval mode, opset 18, its batch open: x, (batch, *shape) -> outputs."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter itself
        torch.onnx.export(
            module.eval(),
            (torch.randn(3, *shape) if example is None else example,),
            file,
            dynamo=False,
            opset_version=18,
            input_names=["x"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in ("x", *outputs)},
        )
    return file.getvalue()
