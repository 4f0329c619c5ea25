"""Matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_models.tflite.flatbuffer import ATTENTION
from umbel_models.tflite.lowering import Handler, Lowering
from umbel_models.tflite.source import Node


def _gemm(ctx: Lowering, node: Node) -> None:
    given = node.attributes
    if given.get("transA", 0):
        raise node.refuse("transposes its input", "transpose it in the model and use transA=0")
    weight = ctx.constant(node, 1, "weights") * np.float32(given.get("alpha", 1.0))
    bias = ctx.optional(node, 2, "biases")
    if bias is not None:
        bias = bias * np.float32(given.get("beta", 1.0))
        if bias.ndim > 1 and bias.shape[0] != 1:
            raise node.refuse("adds a matrix", "use a bias of one row, and an Add for the rest")
    weight = weight if given.get("transB", 0) else weight.T
    _fully_connected(ctx, node, weight, None if bias is None else bias.reshape(-1), node.outputs[0])


def _matmul(ctx: Lowering, node: Node) -> None:
    shapes = [ctx.shape(name) for name in node.inputs]
    if min(len(shape) for shape in shapes) < 2:
        raise node.refuse("multiplies a vector", "give it a second dimension of size 1")
    if ctx.is_constant(node.inputs[1]) and len(shapes[1]) == 2:
        bias, name = _following_bias(ctx, node)
        _fully_connected(ctx, node, ctx.constant(node, 1, "weights").T, bias, name)
        return
    rank = max(len(shape) for shape in shapes)
    if rank > 5:
        raise node.refuse(f"has {rank} dimensions", "use five or fewer")
    tensors = []
    for index, shape in enumerate(shapes):
        if ctx.is_constant(node.inputs[index]):
            array = ctx.constant(node, index, "values")
            tensors.append(ctx.writer.constant(array.reshape((1,) * (rank - array.ndim) + array.shape)))
        else:
            x = ctx.read(node, index)
            wider = (1,) * (rank - len(shape)) + shape
            tensors.append(x if wider == shape else ctx.reshape(node, x, wider))
    with ctx.writer.scope(ATTENTION):
        ctx.bind(node, ctx.writer.emit("BATCH_MATMUL", tensors, ctx.shape(node.outputs[0])))


def _following_bias(ctx: Lowering, node: Node) -> tuple[NDArray[Any] | None, str]:
    """Return the vector that the only reader of a product adds to it, and the sum's name."""
    name = node.outputs[0]
    add = ctx.sole_user(name)
    if add is None or add.operator != "Add":
        return None, name
    index = 1 - add.inputs.index(name)
    array = ctx.source.constants.get(add.inputs[index])
    if array is None or array.shape != ctx.shape(name)[-1:]:
        return None, name
    ctx.absorb(add)
    return array, add.outputs[0]


def _fully_connected(
    ctx: Lowering, node: Node, weight: NDArray[Any], bias: NDArray[Any] | None, name: str
) -> None:
    """Write x @ weight.T + bias; weight has shape (outputs, inputs)."""
    x = ctx.read(node, 0)
    if bias is None:
        bias = np.zeros(len(weight), np.float32)
    elif len(bias) != len(weight):
        bias = np.broadcast_to(bias, (len(weight),))
    activation, name = ctx.fused_activation(name)
    made = ctx.writer.emit(
        "FULLY_CONNECTED",
        [x, ctx.writer.constant(weight), ctx.writer.constant(bias)],
        ctx.shape(name),
        fusedActivationFunction=activation,
        keepNumDims=len(x.shape) > 2,
    )
    ctx.bind(node, made, output=name)


OPERATORS: Mapping[str, Handler] = {"Gemm": _gemm, "MatMul": _matmul}
