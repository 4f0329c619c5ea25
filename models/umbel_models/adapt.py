"""Adapt a trained network by changing little of it: its last layer, or corrections of low rank.

What does not change is not sent either, and takes no noise.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685v2, section 4.1; for
convolutions as a narrow one followed by a 1x1 one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from umbel_models.fit import Network, repeatable
from umbel_proto.errors import UsageError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class LowRank(nn.Module):
    """A layer that stays as it is, plus a correction of low rank that is 0 until it is trained.

    Args:
        layer: A linear layer or an ungrouped convolution.
        rank: Of the correction, >= 1.
        alpha: The correction counts ``alpha / rank``: a learning rate then serves every rank.
    """

    def __init__(self, layer: Layer, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer = layer
        self.scale = alpha / rank
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            kind = type(layer)
            self.down = kind(
                layer.in_channels,
                rank,
                layer.kernel_size,  # type: ignore[arg-type]
                stride=layer.stride,  # type: ignore[arg-type]
                padding=layer.padding,  # type: ignore[arg-type]
                dilation=layer.dilation,  # type: ignore[arg-type]
                padding_mode=layer.padding_mode,
                bias=False,
            )
            self.up = kind(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, corrected."""
        return cast(Tensor, self.layer(x) + self.scale * self.up(self.down(x)))

    def merged(self) -> Layer:
        """Return one layer that computes the same."""
        up, down = (cast(Tensor, part.weight).detach() for part in (self.up, self.down))
        layer = copy.deepcopy(self.layer)
        correction = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
        with torch.no_grad():
            layer.weight += self.scale * correction
        return layer.requires_grad_()


def low_rank(
    module: nn.Module,
    rank: int,
    *,
    layers: Sequence[str] = (),
    also: Sequence[str] = (),
    alpha: float | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a module in which only corrections of low rank are trained.

    Until then it computes what the module does. ``merge`` makes an ordinary module of it.

    Args:
        module: The trained network.
        rank: Of each correction, >= 1.
        layers: Which layers to correct; by default every linear layer and ungrouped convolution whose
            correction has fewer parameters than the layer.
        also: Names of parameters that are trained as they are, such as those of ``head``.
        alpha: See ``LowRank``; by default the rank, so that the correction counts whole.
        seed: First values of the corrections.

    Raises:
        UsageError: A layer or parameter is not the module's, cannot be corrected, or none is left.
    """
    if rank < 1:
        raise UsageError(f"rank is {rank}: choose a number >= 1.")
    adapted = freeze(module, also) if also else copy.deepcopy(module).requires_grad_(False)
    known = dict(adapted.named_modules())
    for name in layers:
        if not _correctable(known.get(name)):
            raise UsageError(
                f"{name!r} is no linear layer or ungrouped convolution of the module: choose some of "
                f"{', '.join(each for each, layer in known.items() if _correctable(layer)) or 'another module'}."
            )
    whole = {name.rpartition(".")[0] for name in also}
    chosen = layers or [name for name, layer in known.items() if name not in whole and _saves(layer, rank)]
    if not chosen:
        raise UsageError(f"No layer has fewer parameters at rank {rank}: choose a smaller one.")
    with repeatable(seed):
        for name in chosen:
            layer = cast(Layer, known[name])
            adapted = _put(adapted, name, LowRank(layer, rank, rank if alpha is None else alpha))
    return adapted


def merge(module: nn.Module) -> nn.Module:
    """Return a copy of a module with every correction of low rank added to its layer, all trainable again."""
    merged = copy.deepcopy(module)
    for name, layer in list(merged.named_modules()):
        if isinstance(layer, LowRank):
            merged = _put(merged, name, layer.merged())
    return merged.requires_grad_()


def freeze(module: Network, trainable: Sequence[str]) -> Network:
    """Return a copy of a module in which only some parameters are trained.

    Args:
        module: The network.
        trainable: Their names.

    Raises:
        UsageError: The module has no parameter of such a name.
    """
    frozen = copy.deepcopy(module)
    missing = set(trainable) - {name for name, _ in frozen.named_parameters()}
    if missing or not trainable:
        raise UsageError(
            f"The module has no parameter {', '.join(sorted(missing)) or 'to train'}: choose some of "
            f"{', '.join(name for name, _ in frozen.named_parameters())}."
        )
    for name, value in frozen.named_parameters():
        value.requires_grad_(name in trainable)
    return frozen


def head(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of the layer that was written last.

    Raises:
        UsageError: No layer has parameters.
    """
    owners = [name.rpartition(".")[0] for name, _ in module.named_parameters()]
    if not owners:
        raise UsageError("The module has no parameters.")
    return tuple(name for name, _ in module.named_parameters() if name.rpartition(".")[0] == owners[-1])


def trained_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that training changes: what travels in a round."""
    return tuple(name for name, value in module.named_parameters() if value.requires_grad)


def _correctable(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, _CONVOLUTIONS) and layer.groups == 1)


def _saves(layer: nn.Module, rank: int) -> bool:
    if not _correctable(layer):
        return False
    weight = cast(Tensor, layer.weight)
    return rank * (len(weight) + weight[0].numel()) < weight.numel()


def _put(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    if not name:
        return layer
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)
    return module
