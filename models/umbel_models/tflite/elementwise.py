"""Activations and arithmetic, one output element for one of each input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_models.tflite.flatbuffer import EXACT, Tensor
from umbel_models.tflite.lowering import MAX_BROADCAST_RANK, Handler, Lowering, has_input, last_shape
from umbel_models.tflite.source import Node

_UNARY: Mapping[str, str] = {
    "Abs": "ABS",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "HardSwish": "HARD_SWISH",
    "Log": "LOG",
    "Neg": "NEG",
    "Relu": "RELU",
    "Round": "ROUND",
    "Sigmoid": "LOGISTIC",
    "Sign": "SIGN",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Tanh": "TANH",
}
_BINARY: Mapping[str, str] = {
    "Add": "ADD",
    "Div": "DIV",
    "Max": "MAXIMUM",
    "Min": "MINIMUM",
    "Mul": "MUL",
    "Pow": "POW",
    "Sub": "SUB",
}
_COMPARISONS: Mapping[str, str] = {
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
}
_LOGIC: Mapping[str, str] = {"And": "LOGICAL_AND", "Not": "LOGICAL_NOT", "Or": "LOGICAL_OR"}
_FUSING = frozenset({"ADD", "SUB", "MUL", "DIV"})
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| <= 1.5e-7.
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERF_SCALE = 0.3275911


def _float_input(ctx: Lowering, node: Node) -> tuple[Tensor, bool]:
    last = ctx.made_last(node.inputs[0])
    x = ctx.read(node, 0, last=last)
    if x.dtype != "float32":
        raise node.refuse(f"works on {x.dtype}", "cast its input to float32 first")
    return x, last


def _unary(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    ctx.bind(node, ctx.unary(_UNARY[node.operator], x), last=last)


def _reciprocal(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    ctx.bind(node, ctx.writer.emit("DIV", [ctx.scalar(1.0), x], x.shape), last=last)


def _clip(ctx: Lowering, node: Node) -> None:
    if ctx.source.types[node.inputs[0]] in ("int32", "int64"):
        _clip_integers(ctx, node)
        return
    x, last = _float_input(ctx, node)
    name = ctx.clip_name(node)
    if name is not None:
        ctx.bind(node, ctx.unary(name, x), last=last)
        return
    for index, operator in ((1, "MAXIMUM"), (2, "MINIMUM")):
        limit = ctx.optional(node, index, "limits")
        if limit is not None:
            x = ctx.binary(operator, x, float(limit))
    ctx.bind(node, x, last=last)


def _clip_integers(ctx: Lowering, node: Node) -> None:
    x = ctx.read(node, 0)
    for index, operator in ((1, "MAXIMUM"), (2, "MINIMUM")):
        limit = ctx.optional(node, index, "limits")
        if limit is not None:
            x = ctx.binary(operator, x, ctx.writer.constant(limit.reshape(1)))
    ctx.bind(node, x)


def _gelu(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    approximate = node.attributes.get("approximate", "none") == "tanh"
    ctx.bind(node, ctx.unary("GELU", x, approximate=approximate), last=last)


def _leaky_relu(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    ctx.bind(node, ctx.unary("LEAKY_RELU", x, alpha=float(node.attributes.get("alpha", 0.01))), last=last)


def _prelu(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    slope = ctx.constant(node, 1, "slopes")
    below = ctx.binary("MINIMUM", x, 0.0)
    below = ctx.binary("MUL", below, _broadcast(ctx, node, slope, len(ctx.shape(node.inputs[0])), last))
    ctx.bind(node, ctx.binary("ADD", ctx.unary("RELU", x), below), last=last)


def _elu(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    ctx.bind(node, _scaled_elu(ctx, x, float(node.attributes.get("alpha", 1.0)), 1.0), last=last)


def _selu(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    alpha = float(node.attributes.get("alpha", 1.6732632423543772))
    gamma = float(node.attributes.get("gamma", 1.0507009873554805))
    ctx.bind(node, _scaled_elu(ctx, x, alpha, gamma), last=last)


def _scaled_elu(ctx: Lowering, x: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return gamma * (max(x, 0) + alpha * elu(min(x, 0)))."""
    if alpha == gamma == 1.0:
        return ctx.unary("ELU", x)
    below = ctx.binary("MUL", ctx.unary("ELU", ctx.binary("MINIMUM", x, 0.0)), alpha * gamma)
    above = ctx.unary("RELU", x)
    return ctx.binary("ADD", above if gamma == 1.0 else ctx.binary("MUL", above, gamma), below)


def _hard_sigmoid(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    scaled = ctx.binary("MUL", x, float(node.attributes.get("alpha", 0.2)))
    shifted = ctx.binary("ADD", scaled, float(node.attributes.get("beta", 0.5)))
    ctx.bind(node, ctx.binary("MINIMUM", ctx.binary("MAXIMUM", shifted, 0.0), 1.0), last=last)


def _softplus_of(ctx: Lowering, x: Tensor) -> Tensor:
    """Return max(x, 0) + log(1 + exp(-|x|)), which cannot overflow."""
    with ctx.writer.scope(EXACT):
        tail = ctx.unary("EXP", ctx.unary("NEG", ctx.unary("ABS", x)))
        return ctx.binary("ADD", ctx.unary("RELU", x), ctx.unary("LOG", ctx.binary("ADD", tail, 1.0)))


def _softplus(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    ctx.bind(node, _softplus_of(ctx, x), last=last)


def _mish(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    ctx.bind(node, ctx.binary("MUL", x, ctx.unary("TANH", _softplus_of(ctx, x))), last=last)


def _softsign(ctx: Lowering, node: Node) -> None:
    x, last = _float_input(ctx, node)
    ctx.bind(node, ctx.binary("DIV", x, ctx.binary("ADD", ctx.unary("ABS", x), 1.0)), last=last)


def _erf(ctx: Lowering, node: Node) -> None:
    # TFLite has no such operator; GELU, its usual place, is recognized before (gelu.py).
    x, last = _float_input(ctx, node)
    with ctx.writer.scope(EXACT):
        ctx.bind(node, _erf_of(ctx, x), last=last)


def _erf_of(ctx: Lowering, x: Tensor) -> Tensor:
    size = ctx.unary("ABS", x)
    t = ctx.binary("ADD", ctx.binary("MUL", size, _ERF_SCALE), 1.0)
    t = ctx.writer.emit("DIV", [ctx.scalar(1.0), t], t.shape)
    total = ctx.binary("MUL", t, _ERF[-1])
    for coefficient in reversed(_ERF[:-1]):
        total = ctx.binary("MUL", ctx.binary("ADD", total, coefficient), t)
    tail = ctx.unary("EXP", ctx.unary("NEG", ctx.binary("MUL", x, x)))
    value = ctx.writer.emit("SUB", [ctx.scalar(1.0), ctx.binary("MUL", total, tail)], x.shape)
    return ctx.binary("MUL", ctx.unary("SIGN", x), value)


def _binary(ctx: Lowering, node: Node) -> None:
    name = node.outputs[0]
    rank = len(ctx.shape(name))
    if ctx.source.types[name] != "float32":
        raise node.refuse(f"works on {ctx.source.types[name]}", "cast its inputs to float32 first")
    if len({ctx.shape(each) for each in node.inputs}) > 1 and rank > MAX_BROADCAST_RANK:
        raise node.refuse(f"broadcasts in {rank} dimensions", "reshape its inputs to four or fewer")
    computed = [each for each in node.inputs if not ctx.is_constant(each)]
    last = all(ctx.made_last(each) and len(ctx.shape(each)) == rank for each in computed)
    tensors = [
        ctx.value(node, each, last=last)
        if not ctx.is_constant(each)
        else _broadcast(ctx, node, ctx.operand(node, index), rank, last)
        for index, each in enumerate(node.inputs)
    ]
    operator = _BINARY[node.operator]
    activation = "NONE"
    if operator in _FUSING and len(tensors) == 2:
        activation, name = ctx.fused_activation(name)
    options = {"fusedActivationFunction": activation} if operator in _FUSING else {}
    made = tensors[0]
    for other in tensors[1:]:  # Max and Min take any number
        made = ctx.binary(operator, made, other, **options)
    ctx.bind(node, made, last=last, output=name)


def _compare(ctx: Lowering, node: Node) -> None:
    output = ctx.shape(node.outputs[0])
    if any(ctx.source.types[name] == "bool" for name in node.inputs):
        raise node.refuse("compares truth values", "cast its inputs to float32 first")
    if len(output) > MAX_BROADCAST_RANK:
        raise node.refuse(f"has {len(output)} dimensions", "reshape its inputs to four or fewer")
    tensors = [ctx.read(node, index, spread=True) for index in (0, 1)]
    ctx.bind(node, ctx.writer.emit(_COMPARISONS[node.operator], tensors, output, "bool"))


def _logic(ctx: Lowering, node: Node) -> None:
    output = ctx.shape(node.outputs[0])
    if len(output) > MAX_BROADCAST_RANK:
        raise node.refuse(f"has {len(output)} dimensions", "reshape its inputs to four or fewer")
    tensors = [ctx.read(node, index, spread=True) for index in range(len(node.inputs))]
    ctx.bind(node, ctx.writer.emit(_LOGIC[node.operator], tensors, output, "bool"))


def _broadcast(ctx: Lowering, node: Node, array: NDArray[Any], rank: int, last: bool) -> Tensor:
    """Return a constant operand in the layout of the other one."""
    if array.dtype != np.float32:
        raise node.refuse(f"has a constant of {array.dtype.name}", "make it float32")
    if array.size == 1:
        return ctx.scalar(float(array.reshape(())))
    if last:
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        array = array.transpose(0, *range(2, rank), 1).reshape(last_shape(array.shape))
    return ctx.writer.constant(array)


def _identity(ctx: Lowering, node: Node) -> None:
    last = ctx.made_last(node.inputs[0])
    if len(node.outputs) > 1 and node.outputs[1] and ctx.sole_user(node.outputs[1]):
        raise node.refuse("has a mask that is read", "export the model in eval mode")
    if has_input(node, 2) and bool(ctx.constant(node, 2, "modes")):
        raise node.refuse("drops values", "export the model in eval mode")
    ctx.bind(node, ctx.read(node, 0, last=last), last=last)


OPERATORS: Mapping[str, Handler] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_COMPARISONS, _compare),
    **dict.fromkeys(_LOGIC, _logic),
    "Clip": _clip,
    "Dropout": _identity,
    "Elu": _elu,
    "Erf": _erf,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "Mish": _mish,
    "PRelu": _prelu,
    "Reciprocal": _reciprocal,
    "Selu": _selu,
    "Softplus": _softplus,
    "Softsign": _softsign,
}
