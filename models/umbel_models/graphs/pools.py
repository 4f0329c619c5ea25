"""The gradients of average pools: the gradient spread over each window, one product per dimension.

An average over a box is an average along each of its sides. Along a side it is a matrix, known when the
graph is made, that holds ``1 / length`` where a window covers a position; its transpose is the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def avg_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Return the gradient of an average pool by its input, shape of ``x``, for two or three dimensions.

    Args:
        grad: Gradient by the output, shape (*lead, *positions).
        x: The input, shape (*lead, *size).
        kernel_size: Of a window, one number or one per dimension.
        stride: Between windows; empty means the kernel's size.
        padding: On both sides.
        ceil_mode: Whether a last window may reach over the edge; ``grad``'s shape says whether one does.
        count_include_pad: Whether padding counts among the values that are averaged.
        divisor_override: Divide by this instead of by the window's size.
    """
    dims = grad.dim() - 2 if len(kernel_size) == 1 else len(kernel_size)
    kernel, edge = (_each(sizes, dims) for sizes in (kernel_size, padding))
    step = _each(stride, dims) if len(stride) else kernel
    covers = []
    for d in range(dims):
        size, windows = int(x.shape[d - dims]), []
        for i in range(int(grad.shape[d - dims])):
            begin = i * step[d] - edge[d]
            end = min(begin + kernel[d], size + edge[d])
            inside = (max(begin, 0), min(end, size))
            windows.append((inside, end - begin if count_include_pad else inside[1] - inside[0]))
        covers.append((size, windows))
    if divisor_override:
        covers = [(size, [(inside, 1) for inside, _ in windows]) for size, windows in covers]
        grad = grad / divisor_override
    return _spread(grad, covers)


def adaptive_avg_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of an adaptive average pool by its input, shape of ``x``.

    Args:
        grad: Gradient by the output, shape (batch, channels, *positions).
        x: The input, shape (batch, channels, *size).
    """
    covers = []
    for d in range(2, x.dim()):
        size, count = int(x.shape[d]), int(grad.shape[d])
        # Window i is from floor(i * size / count) to ceil((i + 1) * size / count): torch's rule.
        edges = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        covers.append((size, [(inside, inside[1] - inside[0]) for inside in edges]))
    return _spread(grad, covers)


def _spread(grad: Tensor, covers: Sequence[tuple[int, Sequence[tuple[tuple[int, int], int]]]]) -> Tensor:
    for back, (size, windows) in enumerate(reversed(covers), 1):
        rows = [
            [1.0 / count if begin <= j < end else 0.0 for j in range(size)] for (begin, end), count in windows
        ]
        grad = (grad.transpose(-1, -back) @ torch.tensor(rows, dtype=grad.dtype)).transpose(-1, -back)
    return grad


def _each(sizes: Sequence[int], dims: int) -> list[int]:
    return [*sizes] * dims if len(sizes) == 1 else [*sizes]
