"""How a layer's per-example gradients follow from what went in and the gradient of what came out.

A rule returns every example's squared gradient norm and, given the factors that clip them, the sums.

Source: Goodfellow, "Efficient Per-Example Gradient Computations", arXiv:1510.01799, for linear layers; Bu
et al., arXiv:2210.00038, section 3, for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from umbel_models.graphs.windows import joined, windows

Weigh = Callable[[Tensor], Mapping[str, Tensor]]
"""Maps the examples' factors, shape (batch,), to the layer's sums of gradients, by parameter."""

Rule = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Weigh]]
"""Maps a layer, its input and its output's gradient, (batch, ..), to squared norms (batch,) and sums."""


class NoRuleError(Exception):
    """A module has no rule here; ``umbel_models.graphs.scan`` serves every module."""


def linear(layer: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Weigh]:
    """Follow ``nn.Linear``: for one position by the product of two norms, for several by materializing."""
    if given.dim() > 2:
        rows, out = given.flatten(1, -2), gradient.flatten(1, -2)
        return _materialized(layer, [out.transpose(1, 2) @ rows], out.sum(1))
    square = _square(gradient)
    norms = _square(given) * square if layer.bias is None else (_square(given) + 1.0) * square

    def weigh(factors: Tensor) -> Mapping[str, Tensor]:
        scaled = gradient * factors[:, None]
        sums = {"weight": scaled.t() @ given}
        return sums if layer.bias is None else {**sums, "bias": scaled.sum(0)}

    return norms, weigh


def convolution(layer: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Weigh]:
    """Follow a convolution of one to three dimensions, in groups or not.

    Raises:
        NoRuleError: It pads with something else than a number of zeros.
    """
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise NoRuleError("a convolution with padding other than a number of zeros")
    out = gradient.flatten(2)
    pieces = windows(
        given,
        layer.kernel_size,
        gradient.shape[2:],
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    rows = out if layer.groups == 1 else nn.Unflatten(1, (layer.groups, -1))(out)
    # Shape (batch, out, channels * taps) of a group.
    parts = [(rows @ piece).flatten(1, -2) for piece in pieces]
    return _materialized(layer, parts, out.sum(2))


def layer_norm(layer: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Weigh]:
    """Follow ``nn.LayerNorm``."""
    assert isinstance(layer, nn.LayerNorm)
    normal = nn.functional.layer_norm(given, layer.normalized_shape, eps=layer.eps)
    positions = list(range(1, given.dim() - len(layer.normalized_shape)))
    return _scaled(layer, gradient * normal, gradient, positions)


def group_norm(layer: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Weigh]:
    """Follow ``nn.GroupNorm``."""
    assert isinstance(layer, nn.GroupNorm)
    normal = nn.functional.group_norm(given, layer.num_groups, eps=layer.eps)
    return _scaled(layer, gradient * normal, gradient, list(range(2, given.dim())))


def _scaled(layer: nn.Module, weight: Tensor, bias: Tensor, positions: list[int]) -> tuple[Tensor, Weigh]:
    # One factor serves many positions: its gradient is the sum over them.
    if positions:
        weight, bias = weight.sum(positions), bias.sum(positions)
    return _materialized(layer, [weight.flatten(1)[:, None]], bias.flatten(1))


def embedding(layer: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Weigh]:
    """Follow ``nn.Embedding``: a word that occurs twice in an example adds up before it is squared.

    Raises:
        NoRuleError: It has a padding index, whose gradient is left out, or scales gradients by frequency.
    """
    assert isinstance(layer, nn.Embedding)
    if layer.padding_idx is not None or layer.scale_grad_by_freq or layer.max_norm is not None:
        raise NoRuleError("an embedding that treats some words otherwise")
    words, rows = given.flatten(1), gradient.flatten(1, -2)
    # Pairs of equal words in an example: their gradients' products are what the squared norm adds up.
    equal = (words[:, :, None] == words[:, None, :]).to(rows.dtype)
    norms = ((rows @ rows.transpose(1, 2)) * equal).sum(2).sum(1)

    def weigh(factors: Tensor) -> Mapping[str, Tensor]:
        scaled = (rows * factors[:, None, None]).flatten(0, 1)
        return {"weight": torch.zeros_like(layer.weight).index_add(0, words.flatten(), scaled)}

    return norms, weigh


def _materialized(layer: nn.Module, parts: Sequence[Tensor], bias: Tensor) -> tuple[Tensor, Weigh]:
    """Follow a layer by its examples' gradients: of the bias, and of the weight in parts along its last dimension."""
    # Where weights serve many positions an example's gradient is far smaller than what it is made of.
    assert isinstance(layer.weight, Tensor)
    shape = layer.weight.shape
    # The last axis first: one sum over millions of float32 loses 4e-5 of it.
    squares = [_square(part) for part in parts]
    square = (squares[0] if len(squares) == 1 else torch.cat(squares, 1)).sum(1)
    if layer.bias is not None:
        square = square + _square(bias)
    flat = [part.flatten(1) for part in parts]

    def weigh(factors: Tensor) -> Mapping[str, Tensor]:
        row = factors[None]
        sums = {"weight": joined([row @ part for part in flat], shape)}
        if isinstance(layer.bias, Tensor):
            sums["bias"] = (row @ bias).reshape(layer.bias.shape)
        return sums

    return square, weigh


def _square(values: Tensor) -> Tensor:
    return (values * values).sum(-1)


RULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.Embedding: embedding,
}
