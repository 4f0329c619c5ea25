"""Reductions, softmax and layer normalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from umbel_models.tflite.flatbuffer import EXACT, Tensor
from umbel_models.tflite.lowering import (
    MAX_BROADCAST_RANK,
    Handler,
    Lowering,
    has_input,
    last_axis,
    last_shape,
)
from umbel_models.tflite.source import FIXED_BATCH, Node

_REDUCTIONS: Mapping[str, str] = {
    "ReduceMax": "REDUCE_MAX",
    "ReduceMean": "MEAN",
    "ReduceMin": "REDUCE_MIN",
    "ReduceSum": "SUM",
}


def axes_of(ctx: Lowering, node: Node, rank: int) -> list[int] | None:
    """Return a node's axes, which older opsets keep as an attribute, newer ones as an input."""
    given: Sequence[int] | None = node.attributes.get("axes")
    if given is None and has_input(node, 1):
        given = [int(axis) for axis in ctx.constant(node, 1, "axes").reshape(-1)]
    return None if given is None else sorted(axis % rank for axis in given)


def _reduce(ctx: Lowering, node: Node) -> None:
    shape = ctx.shape(node.inputs[0])
    rank, keep = len(shape), bool(node.attributes.get("keepdims", 1))
    axes = axes_of(ctx, node, rank)
    if not axes:
        if axes is None and not node.attributes.get("noop_with_empty_axes", 0):
            axes = list(range(rank))
        else:
            raise node.refuse("reduces nothing", "leave it out")
    extreme = node.operator in ("ReduceMax", "ReduceMin")
    if ctx.source.types[node.inputs[0]] not in (("float32", "int32", "int64") if extreme else ("float32",)):
        raise node.refuse(f"works on {ctx.source.types[node.inputs[0]]}", "cast its input to float32 first")
    output = ctx.shape(node.outputs[0])
    spatial = axes == list(range(2, rank))
    # Channels last stay so if the dimensions do, or if all spatial ones go and (N, C) is left.
    last = ctx.made_last(node.inputs[0]) and (keep or spatial)
    x = ctx.read(node, 0, last=last)
    if last:
        axes = sorted({last_axis(axis, rank) for axis in axes} | ({1} if spatial and rank == 3 else set()))
    target = last_shape(output) if last and keep else output
    made = ctx.writer.emit(_REDUCTIONS[node.operator], [x, ctx.indices(axes)], target, keepDims=keep)
    ctx.bind(node, made, last=last and keep)


def _softmax(ctx: Lowering, node: Node) -> None:
    rank = len(ctx.shape(node.inputs[0]))
    axis = int(node.attributes.get("axis", -1)) % rank
    operator, options = ("SOFTMAX", {"beta": 1.0}) if node.operator == "Softmax" else ("LOG_SOFTMAX", {})
    last = ctx.made_last(node.inputs[0]) and axis == 1
    x = ctx.read(node, 0, last=last)
    if last or axis == rank - 1:
        ctx.bind(node, ctx.unary(operator, x, **options), last=last)
        return
    # Both operators work on the last axis: swap it with the one that is meant, and back.
    swap = list(range(rank))
    swap[axis], swap[-1] = swap[-1], swap[axis]
    ctx.bind(node, ctx.transpose(ctx.unary(operator, ctx.transpose(x, swap), **options), swap))


def _layer_norm(ctx: Lowering, node: Node) -> None:
    if any(node.outputs[1:]):
        raise node.refuse("returns its statistics", "use its first output only")
    x = ctx.read(node, 0)
    rank = len(x.shape)
    axes = list(range(int(node.attributes.get("axis", -1)) % rank, rank))
    made = _normalized(ctx, x, axes, float(node.attributes.get("epsilon", 1e-5)))
    for index, operator in ((1, "MUL"), (2, "ADD")):
        array = ctx.optional(node, index, "parameters")
        if array is not None:
            made = ctx.binary(operator, made, ctx.writer.constant(array))
    ctx.bind(node, made)


def _instance_norm(ctx: Lowering, node: Node) -> None:
    x = ctx.read(node, 0)
    rank = len(x.shape)
    if rank > 4:
        raise node.refuse(f"has {rank} dimensions", "use four or fewer")
    made = _normalized(ctx, x, list(range(2, rank)), float(node.attributes.get("epsilon", 1e-5)))
    for index, operator in ((1, "MUL"), (2, "ADD")):
        array = ctx.constant(node, index, "parameters").reshape(-1, *[1] * (rank - 2))
        made = ctx.binary(operator, made, ctx.writer.constant(array))
    ctx.bind(node, made)


def _group_norm(ctx: Lowering, node: Node) -> None:
    x = ctx.read(node, 0)
    shape, groups = x.shape, int(node.attributes["num_groups"])
    apart = ctx.reshape(node, x, (shape[0], groups, int(np.prod(shape[1:])) // groups))
    made = _normalized(ctx, apart, [2], float(node.attributes.get("epsilon", 1e-5)))
    parameters = [ctx.constant(node, index, "parameters") for index in (1, 2)]
    if len(parameters[0]) != shape[1]:  # before opset 21: one for each group
        parameters = [np.repeat(array, shape[1] // groups) for array in parameters]
    made = ctx.reshape(node, made, shape)
    if len(shape) > MAX_BROADCAST_RANK:
        raise node.refuse(f"has {len(shape)} dimensions", "use four or fewer")
    for array, operator in zip(parameters, ("MUL", "ADD"), strict=True):
        made = ctx.binary(operator, made, ctx.writer.constant(array.reshape(-1, *[1] * (len(shape) - 2))))
    ctx.bind(node, made)


def _normalized(ctx: Lowering, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """Return (x - mean) / sqrt(variance + epsilon), the mean taken off before the squares are summed."""
    with ctx.writer.scope(EXACT):
        return _centered_and_scaled(ctx, x, axes, epsilon)


def _centered_and_scaled(ctx: Lowering, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    over = ctx.indices(axes)
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    mean = ctx.writer.emit("MEAN", [x, over], kept, keepDims=True)
    centered = ctx.binary("SUB", x, mean)
    squares = ctx.binary("MUL", centered, centered)
    variance = ctx.writer.emit("MEAN", [squares, over], kept, keepDims=True)
    scale = ctx.unary("RSQRT", ctx.binary("ADD", variance, epsilon))
    return ctx.binary("MUL", centered, scale)


def _arg_max(ctx: Lowering, node: Node) -> None:
    if node.attributes.get("select_last_index", 0):
        raise node.refuse("takes the last of equal maxima", "take the first")
    x = ctx.read(node, 0)
    axis = int(node.attributes.get("axis", 0)) % len(x.shape)
    shape = [size for index, size in enumerate(x.shape) if index != axis]
    made = ctx.writer.emit(
        "ARG_MAX", [x, ctx.writer.constant(np.array(axis, np.int32))], shape, "int64", outputType="INT64"
    )
    kept = ctx.shape(node.outputs[0])
    ctx.bind(node, made if made.shape == kept else ctx.reshape(node, made, kept))


def _running_sum(ctx: Lowering, node: Node) -> None:
    x = ctx.read(node, 0)
    axis = int(ctx.constant(node, 1, "axes").reshape(())) % len(x.shape)
    if ctx.writer.is_open(x.shape[axis]):
        raise node.refuse("sums over the batch", FIXED_BATCH)
    exclusive, reverse = (bool(node.attributes.get(name, 0)) for name in ("exclusive", "reverse"))
    ctx.bind(
        node,
        ctx.writer.emit(
            "CUMSUM",
            [x, ctx.writer.constant(np.array(axis, np.int32))],
            x.shape,
            exclusive=exclusive,
            reverse=reverse,
        ),
    )


OPERATORS: Mapping[str, Handler] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "ArgMax": _arg_max,
    "CumSum": _running_sum,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "Softmax": _softmax,
}
