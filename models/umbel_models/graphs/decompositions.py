"""Backward operators written with forward ones, for which ONNX has names.

Each is an ordinary torch function, so that it can be tested in eager mode against the operator it
stands for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from umbel_models.graphs.pools import adaptive_avg_pool_backward, avg_pool_backward
from umbel_models.graphs.windows import joined, windows

aten = torch.ops.aten

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]

TALL = 1 << 18
"""Numbers of a matrix, 1 MiB, above which a batch is multiplied from its other side."""

SORTED = 128
"""Numbers of the windows that one product sorts, at most."""


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> Gradients:
    """Return the gradients of a convolution by input, weight and bias, those that ``mask`` asks for.

    Args:
        grad: Gradient by the output, shape (batch, out, *positions).
        x: The input, shape (batch, in, *size).
        weight: The kernel, shape (out, in / groups, *kernel).
        bias_sizes: Shape of the bias; not needed.
        stride: One step per spatial dimension.
        padding: Zeros on both sides per spatial dimension.
        dilation: Distance of the kernel's taps per spatial dimension.
        transposed: Whether the forward is a transposed convolution, with weight (in, out / groups, *kernel).
        output_padding: Of a transposed forward; ``grad``'s shape says as much.
        groups: Number of groups.
        mask: Which of the three gradients to compute.
    """
    dims = x.dim() - 2
    stride, padding, dilation = ([*sizes] * (dims // len(sizes)) for sizes in (stride, padding, dilation))
    grad_x = grad_weight = grad_bias = None
    if transposed:
        # A transposed convolution is the gradient of a convolution: its own gradients swap the two roles.
        if mask[0]:
            grad_x = aten.convolution(
                grad, weight, None, stride, padding, dilation, False, [0] * dims, groups
            )
        if mask[1]:
            grad_weight = _kernel_gradient(x, grad, weight, stride, padding, dilation, groups)
    elif mask[0]:
        # What the strided forward left over at the far edge must come back as zeros.
        rest = [
            x.shape[2 + i]
            - (
                (grad.shape[2 + i] - 1) * stride[i]
                - 2 * padding[i]
                + dilation[i] * (weight.shape[2 + i] - 1)
                + 1
            )
            for i in range(x.dim() - 2)
        ]
        grad_x = aten.convolution(grad, weight, None, stride, padding, dilation, True, rest, groups)
    if mask[1] and not transposed:
        grad_weight = _kernel_gradient(grad, x, weight, stride, padding, dilation, groups)
    if mask[2]:
        # The runtime sums the last axes first in half the time of all at once.
        grad_bias = grad.flatten(2).sum(-1).sum(0)
    return grad_x, grad_weight, grad_bias


def _kernel_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    batch, positions = x.shape[0], grad.shape[2:]
    spots = positions.numel()
    pieces = windows(x, weight.shape[2:], positions, stride, padding, dilation, groups)
    if len(pieces) > 1 and groups == 1:
        # The examples side by side: their sum is then part of the product.
        rows = grad.flatten(2).transpose(0, 1).flatten(1)
        parts = [rows @ piece.flatten(0, 1) for piece in pieces]
    else:
        rows = grad.reshape((batch, -1, spots) if groups == 1 else (batch, groups, -1, spots))
        parts = [(rows @ piece).sum(0) for piece in pieces]
    return joined(parts, weight.shape)


def max_pool2d_with_indices_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Return the gradient of a max pool by its input, shape of ``x``.

    Where windows do not overlap, the gradient goes to the first maximum of each, found by comparing the windows'
    places with each other: torch's rule on ties, without a scatter. Otherwise it is scattered.
    """
    kernel, step = _pair(kernel_size), _pair(stride or kernel_size)
    (height, width), (rows, columns) = x.shape[-2:], grad.shape[-2:]
    tiles = kernel == step and _pair(padding) == (0, 0) and _pair(dilation) == (1, 1)
    if not tiles or rows * kernel[0] > height or columns * kernel[1] > width:
        flat = torch.zeros_like(x).flatten(-2)
        return flat.scatter_add(-1, indices.flatten(-2), grad.flatten(-2)).reshape(x.shape)
    # Windows side by side, as many as make a product fast: what stands at one place of each is then in one piece.
    taps, side = kernel[0] * kernel[1], columns
    while side * taps > SORTED and side > 1:
        side = max(part for part in range(1, side) if side % part == 0)
    lead, block = x.shape[:-2], side * kernel[1]
    sort = _sorting(kernel, side).to(x)
    inside = x[..., : rows * kernel[0], : columns * kernel[1]]
    tiled = inside.reshape(*lead, rows, kernel[0], -1, block)
    whole = side == columns
    wide = (tiled if whole else tiled.transpose(-3, -2)).reshape(-1, taps * side)
    # The places come first: what is cut apart here, and put together again, lies in few large pieces.
    places = torch.split((sort.t() @ wide.t()).reshape(taps, side, -1), 1)
    shares = torch.cat(_to_first(grad.reshape(-1, side).t(), places))
    back = (shares.reshape(taps * side, -1).t() @ sort.t()).reshape(*lead, rows, -1, kernel[0], block)
    out = (back if whole else back.transpose(-3, -2)).reshape(inside.shape)
    edge = (width - columns * kernel[1], height - rows * kernel[0])
    return aten.constant_pad_nd(out, [0, edge[0], 0, edge[1]], 0.0) if any(edge) else out


def _sorting(kernel: tuple[int, int], side: int) -> Tensor:
    """Return a matrix that sorts the numbers of some windows side by side, line after line, by their place in a window.

    A product with it takes the runtime a third of strided slices, and is exact: a one, and zeros.
    """
    count = kernel[0] * kernel[1] * side
    # Numbers of Python's, made a tensor at once: the tracer would take down each change of a tensor.
    matrix = [[0.0] * count for _ in range(count)]
    for number, row in enumerate(matrix):
        line, column = divmod(number, kernel[1] * side)
        window, place = divmod(column, kernel[1])
        row[(line * kernel[1] + place) * side + window] = 1.0
    return torch.tensor(matrix)


def _to_first(grad: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
    """Return a gradient for each of some values: that of their maximum for the first that is it, 0 for the others."""
    others = list(itertools.accumulate(reversed(values[1:]), torch.maximum))
    parts = []
    for value, greatest in zip(values, reversed(others), strict=False):
        parts.append(grad * (value >= greatest).to(grad.dtype))
        grad = grad - parts[-1]
    return [*parts, grad]


def threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    """Return the gradient of a ReLU as a product with its mask."""
    return grad * (x > threshold).to(grad.dtype)


def addmm(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """Return ``beta * added + alpha * left @ right``; of a large matrix on the right as the product's transpose.

    The runtime packs what stands on the right before it multiplies, which takes longer than the product with a batch.
    """
    known = all(isinstance(size, int) for size in right.shape)
    if beta != 1 or alpha != 1 or not known or math.prod(right.shape) < TALL:
        return NotImplemented  # The tracer leaves the operator as it is.
    # The runtime makes the sum part of the product, and tries for ever to do so with the transpose of an addend.
    return (right.t() @ left.t() + (added[:, None] if added.dim() == 1 else added.t())).t()


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch normalization's output, and the mean and 1 / standard deviation it used.

    The exporter has one name for this operator, and that is the one for inference: left to it, a
    normalization by the batch's own statistics, which instance norms are made of, comes out wrong.
    The running statistics stay as they are.
    """
    shape = [1, -1] + [1] * (x.dim() - 2)
    if training:
        axes = [0, *range(2, x.dim())]
        mean = x.mean(axes)
        centered = x - mean.reshape(shape)
        scale = ((centered * centered).mean(axes) + eps).rsqrt()
    else:
        assert mean is not None
        assert variance is not None
        centered, scale = x - mean.reshape(shape), (variance + eps).rsqrt()
    out = centered * scale.reshape(shape)
    if weight is not None:
        out = out * weight.reshape(shape)
    if bias is not None:
        out = out + bias.reshape(shape)
    return (out, mean, scale) if training else (out, x.new_empty(0), x.new_empty(0))


def batch_norm_without_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``batch_norm`` does for a layer that keeps no running statistics."""
    return batch_norm(x, weight, bias, None, None, training, momentum, eps)


def squeeze(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return x without dimensions of size 1, taken one by one: the exporter knows no operator for several."""
    for dim in sorted((dim % x.dim() for dim in dims), reverse=True):
        x = aten.squeeze.dim(x, dim)
    return x


def select_backward(grad: Tensor, sizes: Sequence[int], dim: int, index: int) -> Any:
    """Return the gradient of one place along a dimension: it, and zeros around it."""
    return slice_backward(grad.unsqueeze(dim), sizes, dim, index, index + 1 or sizes[dim], 1)


def slice_backward(grad: Tensor, sizes: Sequence[int], dim: int, begin: int, end: int, step: int) -> Any:
    """Return the gradient of places in a row along a dimension: it, and zeros around it."""
    size = sizes[dim]
    if step != 1 or not isinstance(size, int):
        return NotImplemented  # The tracer leaves the operator as it is.
    dim, low = dim % len(sizes), min(begin + size if begin < 0 else begin, size)
    edges = [0, 0] * (len(sizes) - 1 - dim) + [low, size - low - grad.shape[dim]]
    return aten.constant_pad_nd(grad, edges, 0.0)


def table(*, trains: bool = False) -> dict[Any, Callable[..., Any]]:
    """Return the decompositions to trace with: torch's core set, and ours above it.

    Args:
        trains: Whether what is traced gets batches, and not single examples.
    """
    # Without what takes squeezing one dimension apart into squeezing several.
    core: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    del core[aten.squeeze.dim]
    return {
        **core,
        aten.convolution_backward.default: convolution_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool2d_with_indices_backward,
        **({aten.addmm.default: addmm} if trains else {}),
        aten.threshold_backward.default: threshold_backward,
        aten.avg_pool2d_backward.default: avg_pool_backward,
        aten.avg_pool3d_backward.default: avg_pool_backward,
        aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool_backward,
        aten._adaptive_avg_pool3d_backward.default: adaptive_avg_pool_backward,
        aten.squeeze.dims: squeeze,
        aten.select_backward.default: select_backward,
        aten.slice_backward.default: slice_backward,
        aten.native_batch_norm.default: batch_norm,
        aten._native_batch_norm_legit.default: batch_norm,
        aten._native_batch_norm_legit.no_stats: batch_norm_without_statistics,
    }


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    first, second = [*sizes] * 2 if len(sizes) == 1 else sizes
    return first, second
