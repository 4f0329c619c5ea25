"""Convolutions, pools and batch normalization: the operators that want channels last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_models.tflite.flatbuffer import Shape, Tensor
from umbel_models.tflite.lowering import Handler, Lowering, has_input, last_shape
from umbel_models.tflite.source import Node

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Window:
    """What slides over an image: (height, width) of each; a sequence is an image of height 1."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    begin: tuple[int, int]
    end: tuple[int, int]

    def output(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the size of the output for an input of (height, width), padding included."""
        made = [
            (size[axis] + self.begin[axis] + self.end[axis] - self.extent(axis)) // self.strides[axis] + 1
            for axis in (0, 1)
        ]
        return made[0], made[1]

    def extent(self, axis: int) -> int:
        """Return how far the kernel reaches, dilation included."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def is_same(self, size: Sequence[int]) -> bool:
        """Return whether the padding is what TFLite computes for ``SAME``."""
        for axis in (0, 1):
            outputs = -(-size[axis] // self.strides[axis])
            total = max((outputs - 1) * self.strides[axis] + self.extent(axis) - size[axis], 0)
            if (total // 2, total - total // 2) != (self.begin[axis], self.end[axis]):
                return False
        return True


def _window(node: Node, kernel: Sequence[int], size: Sequence[int]) -> Window:
    """Return a node's window over an input of (height, width)."""
    rank = len(kernel)
    if rank not in (1, 2):
        raise node.refuse(f"has {rank} spatial dimensions", "use one or two")
    given: dict[str, Any] = dict(node.attributes)
    pads = list(given.get("pads", [0] * 2 * rank))
    fill = [1] * (2 - rank)
    none = [0] * (2 - rank)

    def pair(values: Sequence[int]) -> tuple[int, int]:
        return int(values[0]), int(values[1])

    made = Window(
        pair([*fill, *kernel]),
        pair([*fill, *given.get("strides", [1] * rank)]),
        pair([*fill, *given.get("dilations", [1] * rank)]),
        pair([*none, *pads[:rank]]),
        pair([*none, *pads[rank:]]),
    )
    automatic = given.get("auto_pad", "NOTSET")
    if automatic == "VALID":
        return replace(made, begin=(0, 0), end=(0, 0))
    if automatic == "NOTSET":
        return made
    totals = [
        max(
            (-(-size[axis] // made.strides[axis]) - 1) * made.strides[axis] + made.extent(axis) - size[axis],
            0,
        )
        for axis in (0, 1)
    ]
    small, large = pair([total // 2 for total in totals]), pair([total - total // 2 for total in totals])
    return replace(
        made,
        begin=large if automatic == "SAME_LOWER" else small,
        end=small if automatic == "SAME_LOWER" else large,
    )


def _padded(ctx: Lowering, x: Tensor, window: Window, fill: float) -> tuple[Tensor, str]:
    """Return the input and the name of the padding to use with it."""
    if not any((*window.begin, *window.end)):
        return x, "VALID"
    if window.is_same(x.shape[1:3]):
        return x, "SAME"
    return _pad(ctx, x, window, fill), "VALID"


def _pad(ctx: Lowering, x: Tensor, window: Window, fill: float) -> Tensor:
    pads = np.array([[0, 0], *zip(window.begin, window.end, strict=True), [0, 0]], np.int32)
    shape = [int(size + pad.sum()) for size, pad in zip(x.shape, pads, strict=True)]
    table = ctx.writer.constant(pads)
    if fill == 0.0:
        return ctx.writer.emit("PAD", [x, table], shape)
    return ctx.writer.emit("PADV2", [x, table, ctx.scalar(fill)], shape)


def _conv(ctx: Lowering, node: Node) -> None:
    weight = ctx.constant(node, 1, "weights")
    if weight.ndim not in (3, 4):
        raise node.refuse(f"has {weight.ndim - 2} spatial dimensions", "use one or two")
    bias = ctx.optional(node, 2, "biases")
    if bias is None:
        bias = np.zeros(len(weight), np.float32)
    x = ctx.read(node, 0, last=True)
    window = _window(node, weight.shape[2:], x.shape[1:3])
    groups = int(node.attributes.get("group", 1))
    weight, bias, name = _fold_norm(ctx, node, weight, bias)
    if weight.ndim == 3:
        weight = weight[:, :, None, :]
    x, padding = _padded(ctx, x, window, 0.0)
    activation, name = ctx.fused_activation(name)
    depthwise = groups > 1 and groups == x.shape[3]
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    multiplier: dict[str, Any] = {"depthMultiplier": len(weight) // groups} if depthwise else {}
    inputs = [x, ctx.writer.constant(weight.transpose(order)), ctx.writer.constant(bias)]
    made = ctx.writer.emit(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        inputs,
        last_shape(ctx.shape(name)),
        padding=padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        dilationHFactor=window.dilations[0],
        dilationWFactor=window.dilations[1],
        fusedActivationFunction=activation,
        **multiplier,
    )
    ctx.bind(node, made, last=True, output=name)


def _fold_norm(
    ctx: Lowering, node: Node, weight: FloatArray, bias: FloatArray
) -> tuple[FloatArray, FloatArray, str]:
    """Fold a batch normalization that follows into the weights."""
    norm = ctx.sole_user(node.outputs[0])
    if norm is None or norm.operator != "BatchNormalization":
        return weight, bias, node.outputs[0]
    scale, shift = _affine(ctx, norm)
    ctx.absorb(norm)
    folded = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return folded.astype(np.float32), (bias * scale + shift).astype(np.float32), norm.outputs[0]


def _affine(ctx: Lowering, norm: Node) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what a batch normalization multiplies each channel by, and then adds."""
    if norm.attributes.get("training_mode", 0):
        raise norm.refuse("normalizes by the batch", "export the model in eval mode")
    gamma, beta, mean, variance = (
        ctx.constant(norm, index, "statistics").astype(np.float64) for index in range(1, 5)
    )
    scale = gamma / np.sqrt(variance + float(norm.attributes.get("epsilon", 1e-5)))
    return scale, beta - mean * scale


def _batch_norm(ctx: Lowering, node: Node) -> None:
    last = ctx.made_last(node.inputs[0])
    x = ctx.read(node, 0, last=last)
    rank = len(x.shape)
    channel = rank - 1 if last else 1
    shape = [-1 if axis == channel else 1 for axis in range(rank)]
    scale, shift = (
        ctx.writer.constant(array.astype(np.float32).reshape(shape)) for array in _affine(ctx, node)
    )
    activation, name = ctx.fused_activation(node.outputs[0])
    scaled = ctx.binary("MUL", x, scale)
    made = ctx.binary("ADD", scaled, shift, fusedActivationFunction=activation)
    ctx.bind(node, made, last=last, output=name)


def _max_pool(ctx: Lowering, node: Node) -> None:
    if len(node.outputs) > 1 and node.outputs[1]:
        raise node.refuse("returns indices", "use a pool that does not return them")
    x, window = _pool_input(ctx, node)
    # What a window sees beyond the edge must never be the maximum. Beside values that are not negative zero
    # is enough, and int8 has it.
    safe = ctx.is_never_negative(node.inputs[0])
    x, padding = _padded(ctx, x, window, 0.0 if safe else float(np.finfo(np.float32).min))
    _pool(ctx, node, "MAX_POOL_2D", x, window, padding)


def _average_pool(ctx: Lowering, node: Node) -> None:
    x, window = _pool_input(ctx, node)
    if node.attributes.get("ceil_mode", 0) and window != _window(node, _kernel(node), x.shape[1:3]):
        raise node.refuse("rounds its size up", "use ceil_mode=False and pad the input")
    if not any((*window.begin, *window.end)):
        _pool(ctx, node, "AVERAGE_POOL_2D", x, window, "VALID")
    elif node.attributes.get("count_include_pad", 0):
        _pool(ctx, node, "AVERAGE_POOL_2D", _pad(ctx, x, window, 0.0), window, "VALID")
    elif window.is_same(x.shape[1:3]):
        _pool(ctx, node, "AVERAGE_POOL_2D", x, window, "SAME")  # counts no padding
    else:
        raise node.refuse("leaves uneven padding out of its averages", "use count_include_pad=True")


def _kernel(node: Node) -> Sequence[int]:
    kernel: Sequence[int] = node.attributes["kernel_shape"]
    return kernel


def _pool_input(ctx: Lowering, node: Node) -> tuple[Tensor, Window]:
    kernel = _kernel(node)
    if len(kernel) not in (1, 2):
        raise node.refuse(f"has {len(kernel)} spatial dimensions", "use one or two")
    x = ctx.read(node, 0, last=True)
    window = _window(node, kernel, x.shape[1:3])
    if window.dilations != (1, 1):
        raise node.refuse("is dilated", "use dilation 1")
    # Rounding up (ceil_mode) is as much padding at the end as the last window needs.
    wanted = last_shape(ctx.shape(node.outputs[0]))[1:3]
    end = []
    for axis in (0, 1):
        reach = (wanted[axis] - 1) * window.strides[axis] + window.kernel[axis]
        end.append(max(window.end[axis], reach - x.shape[1 + axis] - window.begin[axis]))
    return x, replace(window, end=(end[0], end[1]))


def _pool(ctx: Lowering, node: Node, operator: str, x: Tensor, window: Window, padding: str) -> None:
    made = ctx.writer.emit(
        operator,
        [x],
        last_shape(ctx.shape(node.outputs[0])),
        padding=padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
        fusedActivationFunction="NONE",
    )
    ctx.bind(node, made, last=True)


def _global_pool(ctx: Lowering, node: Node) -> None:
    shape: Shape = ctx.shape(node.inputs[0])
    if len(shape) not in (3, 4):
        raise node.refuse(f"has {len(shape) - 2} spatial dimensions", "use one or two")
    x = ctx.read(node, 0, last=True)
    operator = "MEAN" if node.operator == "GlobalAveragePool" else "REDUCE_MAX"
    shape = last_shape(ctx.shape(node.outputs[0]))
    ctx.bind(node, ctx.writer.emit(operator, [x, ctx.indices([1, 2])], shape, keepDims=True), last=True)


def _pad_node(ctx: Lowering, node: Node) -> None:
    rank = len(ctx.shape(node.inputs[0]))
    axes = ctx.optional(node, 3, "axes")
    amounts = ctx.constant(node, 1, "amounts")
    chosen = range(rank) if axes is None else [int(axis) % rank for axis in axes]
    pads = np.zeros((rank, 2), np.int32)
    for axis, begin, end in zip(chosen, amounts[: len(chosen)], amounts[len(chosen) :], strict=True):
        pads[axis] = begin, end
    if (pads < 0).any():
        raise node.refuse("crops", "slice instead")
    x = ctx.read(node, 0)
    mode = node.attributes.get("mode", "constant")
    table, shape = ctx.writer.constant(pads), ctx.shape(node.outputs[0])
    if mode == "reflect":
        made = ctx.writer.emit("MIRROR_PAD", [x, table], shape, mode="REFLECT")
    elif mode == "constant":
        fill = float(ctx.constant(node, 2, "values").reshape(())) if has_input(node, 2) else 0.0
        operator = "PADV2" if fill else "PAD"
        made = ctx.writer.emit(operator, [x, table, *([ctx.scalar(fill)] if fill else [])], shape)
    else:
        raise node.refuse(f"pads by mode {mode!r}", "use zeros, a constant or reflect")
    ctx.bind(node, made)


OPERATORS: Mapping[str, Handler] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MaxPool": _max_pool,
    "Pad": _pad_node,
}
