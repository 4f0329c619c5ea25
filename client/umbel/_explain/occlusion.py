"""Which parts of an input made a model say what it says: each part is covered, and the model asked again.

It needs no graph but the one that predicts, so it explains what any engine runs, and it checks integrated
gradients, which see a float graph's slopes and nothing of what an int8 graph rounds.

Source:
    Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014 (arXiv:1311.2901),
    section 4.2; patches do not overlap here.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError

MAX_PATCHES = 256
"""A model is asked once for each: an image's pixels are covered in squares that are as large as that takes."""
_BATCH = 64

Ask = Callable[[NDArray[Any]], NDArray[np.float32]]
"""What is explained, of a batch of shape (n, *example): scores, shape (n, answers)."""


def occlude(
    ask: Ask,
    x: NDArray[Any],
    baseline: NDArray[Any],
    target: NDArray[np.int64],
    *,
    patch: Sequence[int] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how much each value moved what is explained, and what that lacks to the whole difference.

    What covering a patch takes away is shared evenly among its values.

    Args:
        ask: Gives the scores.
        x: The inputs, shape (n, *example).
        baseline: What covers them, of the same shape.
        target: Which score is explained of each, shape (n,).
        patch: Size of a patch along each axis of an example; by default the smallest of which there are at most
            ``MAX_PATCHES``.

    Returns:
        Attributions, shape (n, *example), and residuals, shape (n,), in the unit of the scores.

    Raises:
        UsageError: The patch does not have a size >= 1 for each axis.
    """
    shape = x.shape[1:]
    try:
        sizes = _patch(shape) if patch is None else tuple(map(operator.index, patch))
    except TypeError:
        sizes = ()
    if len(sizes) != len(shape) or any(size < 1 for size in sizes):
        raise UsageError(
            f"The patch is {patch!r}: give a tuple of {len(shape)} whole numbers of 1 or more, a size along each axis "
            f"of an example of shape {shape}."
        )
    places = list(_places(shape, sizes))
    attributions, residuals = np.zeros(x.shape, np.float32), np.zeros(len(x), np.float32)
    for row, (example, nothing, chosen) in enumerate(zip(x, baseline, target, strict=True)):
        whole, none = _scores(ask, np.stack([example, nothing]), int(chosen)).tolist()
        for begin in range(0, len(places), _BATCH):
            some = places[begin : begin + _BATCH]
            covered = np.repeat(example[np.newaxis], len(some), axis=0)
            for number, place in enumerate(some):
                covered[number][place] = nothing[place]
            for place, left in zip(some, _scores(ask, covered, int(chosen)), strict=True):
                attributions[row][place] = (whole - left) / attributions[row][place].size
        residuals[row] = attributions[row].sum(dtype=np.float64) - (whole - none)
    return attributions, residuals


def _scores(ask: Ask, batch: NDArray[Any], chosen: int) -> NDArray[np.float64]:
    return ask(batch).reshape(len(batch), -1)[:, chosen].astype(np.float64)


def _patch(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the patch to use: the axis with the most parts is halved until there are few enough."""
    sizes = [1] * len(shape)
    counts = list(shape)
    while math.prod(counts) > MAX_PATCHES:
        axis = counts.index(max(counts))
        sizes[axis] *= 2
        counts[axis] = -(-shape[axis] // sizes[axis])
    return tuple(sizes)


def _places(shape: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    starts = (range(0, length, size) for length, size in zip(shape, sizes, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(begin, begin + size) for begin, size in zip(corner, sizes, strict=True))
