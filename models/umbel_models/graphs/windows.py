"""What the taps of a convolution's kernel see: the gradient by the kernel is a product with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

aten = torch.ops.aten

LARGE = 1 << 16
"""Numbers of one example, 256 KiB, above which a convolution's windows are taken in pieces.

For 64 channels out, 32 in and a kernel of 5 x 5 over 14 x 14 positions all windows at once took 40 MB for a batch of
32, in pieces 2, and the products a tenth less time: a piece of one example stays in the cache.
"""

WIDE = 32
"""Channels times taps of a piece, at least: of much fewer columns a product of matrices is slow."""


def windows(
    x: Tensor,
    kernel: Sequence[int],
    positions: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> list[Tensor]:
    """Return what the taps of a kernel see, in one piece or in several.

    A piece has the shape (batch, spots, channels * taps), or (batch, groups, spots, channels / groups * taps) of several
    groups; a spot is a position of the output. Small windows are one piece, with the kernel's order of taps. What
    came of several pieces ``joined`` puts together.

    Args:
        x: The convolution's input, shape (batch, channels, *size).
        kernel: Size of the kernel per spatial dimension.
        positions: Size of the convolution's output per spatial dimension.
        stride: One step per spatial dimension.
        padding: Zeros on both sides per spatial dimension.
        dilation: Distance of the kernel's taps per spatial dimension.
        groups: Number of groups.
    """
    batch, channels, count, spots = x.shape[0], x.shape[1], math.prod(kernel), math.prod(positions)
    if channels == 1 and count <= WIDE:
        # A kernel for each tap, of a one and zeros: exact, and one operator instead of a slice for each.
        alone = torch.tensor([[float(one == other) for other in range(count)] for one in range(count)])
        seen = aten.convolution(
            *(x, alone.reshape(count, 1, *kernel).to(x), None, stride, padding, dilation),
            *(False, [0] * len(kernel), 1),
        )
        return [seen.flatten(2).transpose(-1, -2)]
    if any(padding):
        x = aten.constant_pad_nd(x, [edge for size in reversed(padding) for edge in (size, size)], 0.0)
    large = channels * count * spots >= LARGE
    if large and groups == 1 and channels >= WIDE:
        return _taps(x, kernel, positions, stride, dilation)

    views: dict[tuple[int, ...], Tensor] = {(): x}
    # The last dimension first: what is cut from these slices afterwards lies in one piece in memory.
    for d in reversed(range(len(kernel))):
        views = {
            (tap, *rest): _slice(view, 2 + d, tap * dilation[d], positions[d], stride[d])
            for rest, view in views.items()
            for tap in range(kernel[d])
        }
    order = list(itertools.product(*map(range, kernel)))
    if large and -(-WIDE // channels) < count:
        count = -(-WIDE // channels)
        # As they were cut: each slice of the last dimension is done with before the next is made.
        order.sort(key=lambda tap: tap[::-1])
    taps = [views[tap] for tap in order]
    shape = (batch, -1, spots) if groups == 1 else (batch, groups, -1, spots)
    return [
        torch.stack(taps[low : low + count], 2).reshape(shape).transpose(-1, -2)
        for low in range(0, len(taps), count)
    ]


def _taps(
    x: Tensor, kernel: Sequence[int], positions: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[Tensor]:
    """Return what each tap sees of a padded input, (batch, spots, channels), in the order that ``joined`` undoes.

    With the channels last a tap is one piece of memory for each example, and the product needs no transpose of it.
    """
    dims = len(kernel)
    views = [x.permute(0, *range(2, 2 + dims), 1)]
    for d in reversed(range(1, dims)):
        views = [
            _slice(view, 1 + d, tap * dilation[d], positions[d], stride[d])
            for view in views
            for tap in range(kernel[d])
        ]
    if stride[0] == 1:
        # Lines that follow one another: no more than a slice of all positions.
        line, views = math.prod(positions[1:]), [view.flatten(1, -2) for view in views]
        low, length = dilation[0] * line, positions[0] * line
        return [_slice(view, 1, tap * low, length, 1) for view in views for tap in range(kernel[0])]
    return [
        _slice(view, 1, tap * dilation[0], positions[0], stride[0]).flatten(1, -2)
        for view in views
        for tap in range(kernel[0])
    ]


def _slice(x: Tensor, dim: int, low: int, count: int, step: int) -> Tensor:
    out: Tensor = aten.slice.Tensor(x, dim, low, low + (count - 1) * step + 1, step)
    return out


def joined(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Return a kernel's gradient, of its shape, from what came of each of its windows' pieces.

    Args:
        parts: For each piece as many numbers as (out, channels, taps), in that order.
        shape: (out, channels, *kernel).
    """
    if len(parts) == 1:
        return parts[0].reshape(shape)
    (out, channels, *kernel), dims = shape, len(shape)
    if len(parts) == math.prod(kernel):
        taps = torch.cat([*parts]).reshape(*kernel[::-1], out, channels)
        return taps.permute(dims - 2, dims - 1, *range(dims - 3, -1, -1))
    taps = torch.cat([part.reshape(out, channels, -1) for part in parts], -1)
    return taps.reshape(out, channels, *kernel[::-1]).permute(0, 1, *range(dims - 1, 1, -1))
