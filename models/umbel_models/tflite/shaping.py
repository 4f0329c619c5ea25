"""Operators that move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from umbel_models.tflite.lowering import Handler, Lowering, last_axis, last_shape
from umbel_models.tflite.source import FIXED_BATCH, Node


def _reshape(ctx: Lowering, node: Node) -> None:
    shape = ctx.shape(node.outputs[0])  # inferred: it holds what 0 and -1 stand for
    ctx.bind(node, ctx.reshape(node, ctx.read(node, 0), shape))


def _transpose(ctx: Lowering, node: Node) -> None:
    rank = len(ctx.shape(node.inputs[0]))
    order = list(node.attributes.get("perm", range(rank)[::-1]))
    if order == [0, 2, 3, 1] and ctx.made_last(node.inputs[0]):
        ctx.bind(node, ctx.read(node, 0, last=True))
        return
    if rank > 6:
        raise node.refuse(f"has {rank} dimensions", "use six or fewer")
    ctx.bind(node, ctx.transpose(ctx.read(node, 0), order))


def _concat(ctx: Lowering, node: Node) -> None:
    shape = ctx.shape(node.outputs[0])
    axis = int(node.attributes["axis"]) % len(shape)
    last = all(ctx.made_last(name) for name in node.inputs)
    tensors = [ctx.read(node, index, last=last) for index in range(len(node.inputs))]
    made = ctx.writer.emit(
        "CONCATENATION",
        tensors,
        last_shape(shape) if last else shape,
        axis=last_axis(axis, len(shape)) if last else axis,
        fusedActivationFunction="NONE",
    )
    ctx.bind(node, made, last=last)


def _slice(ctx: Lowering, node: Node) -> None:
    x, output = ctx.read(node, 0), ctx.shape(node.outputs[0])
    rank = len(x.shape)
    starts = ctx.constant(node, 1, "starts")
    axes = ctx.optional(node, 3, "axes")
    steps = ctx.optional(node, 4, "steps")
    begin, step = [0] * rank, [1] * rank
    for index, start in enumerate(starts):
        axis = index if axes is None else int(axes[index]) % rank
        step[axis] = 1 if steps is None else int(steps[index])
        size = x.shape[axis]
        start = int(start) + size if start < 0 else int(start)
        begin[axis] = min(max(start, 0), size if step[axis] > 0 else size - 1)
    _check_open_axes(ctx, node, x.shape, output, begin, step)
    if all(each == 1 for each in step):
        ctx.bind(node, ctx.part(x, begin, output))
        return
    if rank > 5:
        raise node.refuse(f"steps in {rank} dimensions", "use five or fewer")
    end = [b + n * s for b, n, s in zip(begin, output, step, strict=True)]
    # Past the edge, and along an open batch, only the mask says "to the end".
    open_ended = [e < 0 or ctx.writer.is_open(size) for e, size in zip(end, x.shape, strict=True)]
    mask = sum(1 << axis for axis, flag in enumerate(open_ended) if flag)
    end = [0 if flag else e for e, flag in zip(end, open_ended, strict=True)]
    made = ctx.writer.emit(
        "STRIDED_SLICE",
        [x, ctx.indices(begin), ctx.indices(end), ctx.indices(step)],
        output,
        beginMask=0,
        endMask=mask,
    )
    ctx.bind(node, made)


def _check_open_axes(
    ctx: Lowering,
    node: Node,
    shape: tuple[int, ...],
    output: tuple[int, ...],
    begin: list[int],
    step: list[int],
) -> None:
    for axis, size in enumerate(shape):
        if ctx.writer.is_open(size) and (output[axis] != size or begin[axis] or step[axis] != 1):
            raise node.refuse("cuts through the batch", FIXED_BATCH)


def _split(ctx: Lowering, node: Node) -> None:
    x = ctx.read(node, 0)
    axis = int(node.attributes.get("axis", 0)) % len(x.shape)
    if ctx.writer.is_open(x.shape[axis]):
        raise node.refuse("cuts through the batch", FIXED_BATCH)
    begin = [0] * len(x.shape)
    for name in node.outputs:
        shape = ctx.source.shapes.get(name)
        if shape is None:
            raise node.refuse("has parts of unknown size", "give the sizes as constants")
        ctx.bind(node, ctx.part(x, begin, shape), output=name)
        begin[axis] += shape[axis]


def _gather(ctx: Lowering, node: Node) -> None:
    shape = ctx.shape(node.inputs[0])
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    x, output = ctx.read(node, 0), ctx.shape(node.outputs[0])
    if not ctx.is_constant(node.inputs[1]):
        # Indices of an embedding. A negative one, which ONNX counts from the end, TFLite refuses as it runs.
        indices = ctx.read(node, 1)
        ctx.bind(node, ctx.writer.emit("GATHER", [x, indices], output, axis=axis))
        return
    chosen = ctx.constant(node, 1, "indices")
    if ctx.writer.is_open(shape[axis]):
        raise node.refuse("picks examples out of the batch", FIXED_BATCH)
    chosen = np.where(chosen < 0, chosen + shape[axis], chosen)
    if chosen.size == 1:
        begin = [int(chosen.reshape(())) if index == axis else 0 for index in range(len(shape))]
        block = ctx.part(x, begin, [1 if index == axis else size for index, size in enumerate(shape)])
        ctx.bind(node, block if block.shape == output else ctx.reshape(node, block, output))
        return
    indices = ctx.writer.constant(chosen.astype(np.int32))
    ctx.bind(node, ctx.writer.emit("GATHER", [x, indices], output, axis=axis))


def _gather_blocks(ctx: Lowering, node: Node) -> None:
    x, output = ctx.read(node, 0), ctx.shape(node.outputs[0])
    chosen = ctx.constant(node, 1, "indices")
    axes = chosen.shape[-1]
    picked = x.shape[:axes]
    if node.attributes.get("batch_dims", 0):
        raise node.refuse("picks for each example by itself", "index the same places in every example")
    if any(ctx.writer.is_open(size) for size in picked):
        raise node.refuse("picks examples out of the batch", FIXED_BATCH)
    chosen = np.where(chosen < 0, chosen + np.array(picked), chosen)
    places = np.ravel_multi_index(tuple(np.moveaxis(chosen, -1, 0)), picked).astype(np.int32)
    if axes > 1:
        x = ctx.reshape(node, x, (int(np.prod(picked)), *x.shape[axes:]))
    ctx.bind(node, ctx.writer.emit("GATHER", [x, ctx.writer.constant(places)], output, axis=0))


def _scatter_blocks(ctx: Lowering, node: Node) -> None:
    x, updates = ctx.read(node, 0), ctx.read(node, 2)
    shape = ctx.shape(node.outputs[0])
    chosen = ctx.constant(node, 1, "indices")
    replaced, rest = shape[: chosen.shape[-1]], shape[chosen.shape[-1] :]
    if node.attributes.get("reduction", "none") != "none":
        raise node.refuse("adds to what is there", "replace it, or add two values")
    if any(ctx.writer.is_open(size) for size in replaced):
        raise node.refuse("replaces examples of the batch", FIXED_BATCH)
    count, new = int(np.prod(replaced)), int(np.prod(chosen.shape[:-1]))
    places = np.ravel_multi_index(tuple(np.moveaxis(chosen % np.array(replaced), -1, 0)), replaced)
    # Every block is picked from the old ones and, after them, the new ones.
    source = np.arange(count, dtype=np.int32)
    source[places.reshape(-1)] = np.arange(count, count + new)
    blocks = [ctx.reshape(node, x, (count, *rest)), ctx.reshape(node, updates, (new, *rest))]
    both = ctx.writer.emit(
        "CONCATENATION", blocks, (count + new, *rest), axis=0, fusedActivationFunction="NONE"
    )
    picked = ctx.writer.emit("GATHER", [both, ctx.writer.constant(source)], (count, *rest), axis=0)
    ctx.bind(node, ctx.reshape(node, picked, shape))


def _expand(ctx: Lowering, node: Node) -> None:
    x, output = ctx.read(node, 0), ctx.shape(node.outputs[0])
    wide = (1,) * (len(output) - len(x.shape)) + x.shape
    opened = [ctx.writer.is_open(size) for size in output]
    if not any(opened):
        made = ctx.writer.emit("BROADCAST_TO", [x, ctx.indices(output)], output)
    elif x.dtype != "float32" or any(
        flag and size != have for flag, size, have in zip(opened, output, wide, strict=True)
    ):
        raise node.refuse("repeats along an open batch", FIXED_BATCH)
    else:
        # BROADCAST_TO wants every size; adding zeros does not.
        zeros = np.zeros([1 if flag else size for flag, size in zip(opened, output, strict=True)], np.float32)
        made = ctx.binary("ADD", x, ctx.writer.constant(zeros))
    ctx.bind(node, made)


_CASTS: Mapping[int, tuple[str, str]] = {
    1: ("float32", "FLOAT32"),
    6: ("int32", "INT32"),
    7: ("int64", "INT64"),
    9: ("bool", "BOOL"),
}


def _cast(ctx: Lowering, node: Node) -> None:
    x = ctx.read(node, 0)
    to = int(node.attributes["to"])
    names = dict(_CASTS.values())
    if to not in _CASTS or x.dtype not in names:
        raise node.refuse("casts from or to another type", "use float32, int32, int64 and bool only")
    dtype, code = _CASTS[to]
    if dtype != x.dtype:
        x = ctx.writer.emit("CAST", [x], x.shape, dtype, inDataType=names[x.dtype], outDataType=code)
    ctx.bind(node, x)


def _where(ctx: Lowering, node: Node) -> None:
    output = ctx.shape(node.outputs[0])
    if len(output) > 4:
        raise node.refuse(f"has {len(output)} dimensions", "use four or fewer")
    tensors = [ctx.read(node, index, spread=True) for index in range(3)]
    ctx.bind(node, ctx.writer.emit("SELECT_V2", tensors, output, tensors[1].dtype))


OPERATORS: Mapping[str, Handler] = {
    "Cast": _cast,
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherND": _gather_blocks,
    "Reshape": _reshape,
    "ScatterND": _scatter_blocks,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
    "Where": _where,
}
