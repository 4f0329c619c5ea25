"""Does a graph compute what torch does? Asked of every graph, before anything is written.

Exporters fail silently: batch normalization in training mode becomes inference, an in-place ReLU changes
what another layer saw. Only running both finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models.runtime import Session
from umbel_proto.errors import PackageError

BATCHES = (1, 2, 7)
RELATIVE = 1e-4

Arrays = Mapping[str, NDArray[np.generic]]


def verify_inference(graph: bytes, module: nn.Module, shape: Sequence[int]) -> None:
    """Compare an inference graph with torch, at random parameters and several batch sizes.

    Raises:
        PackageError: An output differs by more than ``RELATIVE`` of its greatest magnitude.
    """
    parameters = _random_parameters(module)
    opened = Session(graph, {name: value.numpy() for name, value in parameters.items()})
    for batch in BATCHES:
        x, _ = _examples(batch, shape, classes=2)
        with torch.no_grad():
            logits = functional_call(module, parameters, (x,))
        expected = {"probabilities": torch.softmax(logits, -1).numpy(), "logits": logits.numpy()}
        actual = dict(zip(expected, opened.run(list(expected), {"x": x.numpy()}), strict=True))
        compare(actual, expected, f"infer.onnx at batch {batch}")


def verify_gradient(
    graph: bytes, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], shape: Sequence[int]
) -> None:
    """Compare a gradient graph with autograd, at random parameters, batch sizes and weights.

    Raises:
        PackageError: A gradient or the loss differs by more than ``RELATIVE`` of its greatest magnitude.
    """
    parameters = _random_parameters(module)
    opened = Session(graph)
    for batch in BATCHES:
        with torch.no_grad():
            classes = functional_call(module, parameters, (torch.zeros(1, *shape),)).shape[-1]
        x, y = _examples(batch, shape, classes)
        w = torch.ones(batch)
        w[1::3] = 0.0
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        mean = (w * loss(functional_call(module, leaves, (x,)), y)).sum() / w.sum()
        gradients = torch.autograd.grad(mean, list(leaves.values()))
        expected = {f"grad.{name}": value.numpy() for name, value in zip(leaves, gradients, strict=True)}
        expected["loss"] = mean.detach().numpy()
        feed = {name: value.numpy() for name, value in parameters.items()}
        feed |= {"x": x.numpy(), "y": y.numpy(), "w": w.numpy()}
        actual = dict(zip(expected, opened.run(list(expected), feed), strict=True))
        compare(actual, expected, f"grad.onnx at batch {batch}")


def verify_clipped(
    graph: bytes, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], shape: Sequence[int]
) -> None:
    """Compare a graph of clipped sums with one backward pass for each example, some clipped and some not.

    Raises:
        PackageError: A sum, a norm or the loss differs by more than ``RELATIVE`` of its greatest magnitude.
            Privacy rests on the norms.
    """
    parameters = _random_parameters(module)
    opened = Session(graph)
    with torch.no_grad():
        classes = functional_call(module, parameters, (torch.zeros(1, *shape),)).shape[-1]
    for batch in BATCHES:
        x, y = _examples(batch, shape, classes)
        w = torch.ones(batch)
        w[1::3] = 0.0
        gradients, losses = _each(module, loss, parameters, x, y)
        norms = torch.stack([(value.reshape(batch, -1) ** 2).sum(1) for value in gradients]).sum(0).sqrt()
        feed = {name: value.numpy() for name, value in parameters.items()}
        feed |= {"x": x.numpy(), "y": y.numpy(), "w": w.numpy()}
        for clip in (float(norms.median()), float(norms.max()) * 2):
            factors = w * (clip / norms).clamp(max=1.0)
            expected = {
                f"sum.{name}": torch.tensordot(factors, value, 1).numpy()
                for name, value in zip(parameters, gradients, strict=True)
            }
            expected["loss"] = (w @ losses).numpy()
            expected["norms"] = np.ones(batch)
            feed["clip"] = np.array(clip, np.float32)
            actual = dict(zip(expected, opened.run(list(expected), feed), strict=True))
            actual["norms"] = actual["norms"] / norms.numpy()  # a short gradient's norm must be right too
            compare(actual, expected, f"dpgrad.onnx at batch {batch}")


def _each(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Return every example's gradient, for each parameter (batch, *shape), and loss, from batches of one."""
    rows, losses = [], []
    for row, label in zip(x[:, None], y[:, None], strict=True):
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        value = loss(functional_call(module, leaves, (row,)), label).sum()
        rows.append(torch.autograd.grad(value, list(leaves.values())))
        losses.append(value.detach())
    return [torch.stack(each) for each in zip(*rows, strict=True)], torch.stack(losses)


def compare(actual: Arrays, expected: Arrays, what: str) -> None:
    """Refuse arrays that differ.

    Raises:
        PackageError: Shapes differ, or a value by more than ``RELATIVE`` of the array's greatest magnitude.
    """
    for name, reference in expected.items():
        value = actual[name]
        if value.shape != reference.shape:
            raise PackageError(f"{what}: {name} has shape {value.shape}, torch gives {reference.shape}.")
        error = float(np.abs(value.astype(np.float64) - reference.astype(np.float64)).max())
        scale = float(np.abs(reference).max())
        if not error <= RELATIVE * scale + 1e-7:
            raise PackageError(
                f"{what}: {name} is {error:.1e} away from torch's, of {scale:.1e}. Nothing was written."
            )


def _random_parameters(module: nn.Module) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(value.shape, generator=source)
        / max(1.0, value[0].numel() if value.dim() else 1.0) ** 0.5
        for name, value in module.named_parameters()
    }


def _examples(batch: int, shape: Sequence[int], classes: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *shape, generator=source), torch.randint(0, classes, (batch,), generator=source)
