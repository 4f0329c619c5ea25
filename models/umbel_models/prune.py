"""Remove channels from a network, so that every graph of it shrinks, and train what is left a little more.

Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (arXiv:1608.08710v3), for l1;
Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019 (arXiv:1906.10771v1),
equation 8, for taylor.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umbel_models.channels import Channels, Part, removable
from umbel_models.fit import Loss, Network, Progress, fit
from umbel_models.task import Examples
from umbel_proto.errors import UsageError

By = Literal["l1", "taylor"]
_BATCH = 32


def prune(
    module: Network,
    loss: Loss,
    examples: Examples,
    *,
    fraction: float,
    by: By = "taylor",
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Network:
    """Return a smaller copy of a trained module, trained on after the cut.

    Args:
        module: The trained network; it stays as it is.
        loss: Maps logits and labels to one loss per example.
        examples: What importance is measured on and the rest is trained on.
        fraction: Part of the channels to remove from each layer that can lose some, in [0, 1).
        by: What makes a channel important: ``l1``, the size of the weights that make it; or ``taylor``, how
            much the loss would change without it, to first order.
        epochs: Passes over the examples after the cut, as all that follows.
        batch_size: Examples in a step.
        learning_rate: Of the first step.
        seed: Order of the examples.
        progress: Told of each epoch.

    Raises:
        UsageError: The fraction is out of range, no channel can be removed, or training diverged.
    """
    smaller = cut(
        module,
        examples.x.shape[1:],
        fraction=fraction,
        loss=loss if by == "taylor" else None,
        examples=examples,
    )
    return fit(
        smaller,
        loss,
        examples,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
    )


def cut(
    module: Network,
    shape: Sequence[int],
    *,
    fraction: float,
    loss: Loss | None = None,
    examples: Examples | None = None,
) -> Network:
    """Return a copy of a module without its least important channels.

    Args:
        module: The network; it stays as it is.
        shape: Shape of one example.
        fraction: Part of the channels to remove from each layer that can lose some, in [0, 1).
        loss: With ``examples``: importance by taylor; without: by l1.
        examples: See ``loss``.

    Raises:
        UsageError: The fraction is out of range, or no channel can be removed.
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"fraction is {fraction}: choose the part of channels to remove, in [0, 1).")
    groups = removable(module, shape)
    scores = (
        _taylor(module, groups, loss, examples) if loss and examples else [_l1(module, g) for g in groups]
    )
    smaller = copy.deepcopy(module)
    for group, score in zip(groups, scores, strict=True):
        _keep(smaller, group, _best(score, group.blocks, fraction))
    _try(smaller, module, shape)
    return smaller


def _l1(module: nn.Module, group: Channels) -> Tensor:
    # Relative to the layer's mean: several layers that make the same channels count alike.
    total = torch.zeros(group.count)
    for part in group.parts:
        if part.makes:
            weight: Tensor = module.get_submodule(part.layer).weight.detach()  # type: ignore[operator]
            sizes = weight.abs().flatten(1).sum(1)
            total += sizes / sizes.mean().clamp(min=1e-30)
    return total


def _taylor(module: nn.Module, groups: Sequence[Channels], loss: Loss, examples: Examples) -> list[Tensor]:
    totals = [torch.zeros(group.count) for group in groups]
    probe = copy.deepcopy(module).requires_grad_()
    for begin in range(0, len(examples.y), _BATCH):
        x, y = (torch.from_numpy(part[begin : begin + _BATCH]) for part in examples[:2])
        probe.zero_grad()
        loss(probe(x), y).mean().backward()  # type: ignore[no-untyped-call]
        for total, group in zip(totals, groups, strict=True):
            change = torch.zeros(group.count)
            for part in group.parts:
                if part.makes:
                    for value in _tensors(probe, part).values():
                        assert value.grad is not None
                        change += (value.detach() * value.grad).reshape(group.count, -1).sum(1)
            total += change**2
    return totals


def _best(score: Tensor, blocks: int, fraction: float) -> NDArray[np.int64]:
    """Return the channels to keep, ascending: as many of each block, and at least one."""
    size = len(score) // blocks
    count = max(1, round((1 - fraction) * size))
    order = np.argsort(-score.numpy().reshape(blocks, size), axis=1, kind="stable")[:, :count]
    return np.sort((order + size * np.arange(blocks)[:, np.newaxis]).ravel())


def _keep(module: nn.Module, group: Channels, kept: NDArray[np.int64]) -> None:
    for part in group.parts:
        rows = torch.from_numpy((kept[:, np.newaxis] * part.repeat + np.arange(part.repeat)).ravel())
        layer = module.get_submodule(part.layer)
        for name, value in _tensors(module, part).items():
            left = value.detach().index_select(part.axis, rows)
            if isinstance(value, nn.Parameter):
                left = nn.Parameter(left, requires_grad=value.requires_grad)
            setattr(layer, name, left)
        for name in part.sizes:
            setattr(layer, name, (len(rows),) if name == "normalized_shape" else len(rows))


def _tensors(module: nn.Module, part: Part) -> dict[str, Tensor]:
    layer = module.get_submodule(part.layer)
    values = {name: getattr(layer, name, None) for name in part.tensors}
    return {name: value for name, value in values.items() if value is not None}


def _try(smaller: nn.Module, module: nn.Module, shape: Sequence[int]) -> None:
    x = torch.zeros(2, *shape)
    try:
        with torch.no_grad():
            same = smaller(x).shape == module(x).shape
    except RuntimeError as exc:
        raise UsageError(
            f"A {type(module).__name__} with fewer channels does not run: {exc}. Let its forward read sizes from the "
            "layers, not from numbers."
        ) from exc
    if not same:
        raise UsageError(f"A {type(module).__name__} with fewer channels gives another number of outputs.")
