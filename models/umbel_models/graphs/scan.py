"""Sums of clipped per-example gradients for any module: its gradient graph, run for one example at a time.

``Scan`` is the loop. It needs the memory of one example, and the time of as many steps as there are
examples: for modules that ``umbel_models.graphs.onepass`` has no rule for, and to check it.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from umbel_models.graphs.onepass import TINY

BATCH = "batch"
_EXAMPLE = ("x", "y", "w")


def per_example(gradient: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return the graph of clipped sums that belongs to a gradient graph.

    Args:
        gradient: parameters, x, y, w -> ``grad.NAME`` for each parameter, loss; for any batch.
        names: The parameters.

    Returns:
        parameters, x, y, w, clip -> ``sum.NAME`` for each parameter, loss (weighted sum), norms.
    """
    inputs = {value.name: value for value in gradient.graph.input}
    kept = [*names, "loss"]
    dims: dict[str, list[int]] = {**{name: _dims(inputs[name]) for name in names}, "loss": []}
    body = helper.make_graph(
        [*_one_example(gradient), *_clip(names)],
        "example",
        [
            *(_float(_mine(f"before {name}"), dims[name]) for name in kept),
            *(_row(inputs[name], _mine(name)) for name in _EXAMPLE),
        ],
        [*(_float(_mine(f"after {name}"), dims[name]) for name in kept), _float(_mine("norm"), [])],
    )
    begin = [
        helper.make_node("ConstantOfShape", [_mine(f"shape {name}")], [_mine(f"zero {name}")])
        for name in kept
    ]
    scan = helper.make_node(
        "Scan",
        [*(_mine(f"zero {name}") for name in kept), *_EXAMPLE],
        [*(f"sum.{name}" for name in names), "loss", "norms"],
        body=body,
        num_scan_inputs=len(_EXAMPLE),
    )
    shapes = [
        helper.make_tensor(_mine(f"shape {name}"), TensorProto.INT64, [len(dims[name])], dims[name])
        for name in kept
    ]
    constants = [
        helper.make_tensor(_mine("one"), TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor(_mine("ones"), TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor(_mine("tiny"), TensorProto.FLOAT, [], [TINY]),
        helper.make_tensor(_mine("first"), TensorProto.INT64, [1], [0]),
        helper.make_tensor(_mine("last"), TensorProto.INT64, [1], [-1]),
    ]
    graph = helper.make_graph(
        [*begin, scan],
        "main",
        [*(inputs[name] for name in (*names, *_EXAMPLE)), _float("clip", [])],
        [
            *(_float(f"sum.{name}", dims[name]) for name in names),
            _float("loss", []),
            _float("norms", [BATCH]),
        ],
        initializer=[*gradient.graph.initializer, *shapes, *constants],
    )
    return helper.make_model(graph, opset_imports=list(gradient.opset_import))


def _one_example(gradient: ModelProto) -> list[NodeProto]:
    """Return the gradient graph's nodes for a batch of the one row, of weight 1."""
    renamed = {"x": _mine("batch x"), "y": _mine("batch y"), "w": _mine("ones"), "loss": _mine("loss")}
    nodes = [
        helper.make_node("Unsqueeze", [_mine(name), _mine("first")], [renamed[name]]) for name in ("x", "y")
    ]
    for node in gradient.graph.node:
        copy = NodeProto.FromString(node.SerializeToString())
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copy.output[:] = [renamed.get(name, name) for name in node.output]
        nodes.append(copy)
    return nodes


def _clip(names: Sequence[str]) -> list[NodeProto]:
    def node(operator: str, inputs: Sequence[str], output: str) -> NodeProto:
        return helper.make_node(operator, list(inputs), [_mine(output)])

    def total(operator: str, inputs: Sequence[str], output: str) -> NodeProto:
        return helper.make_node(operator, list(inputs), [_mine(output)], keepdims=0)

    one, tiny, last, w = (_mine(name) for name in ("one", "tiny", "last", "w"))
    nodes = []
    for name in names:
        # The last axis first: one sum over millions of float32 loses 4e-5 of it.
        nodes.append(total("ReduceSumSquare", [f"grad.{name}", last], f"rows {name}"))
        nodes.append(total("ReduceSum", [_mine(f"rows {name}")], f"square {name}"))
    nodes += [
        node("Sum", [_mine(f"square {name}") for name in names], "square"),
        node("Sqrt", [_mine("square")], "norm"),
        node("Add", [_mine("norm"), tiny], "divisor"),
        node("Div", ["clip", _mine("divisor")], "ratio"),
        node("Min", [_mine("ratio"), one], "shrink"),
        node("Mul", [_mine("shrink"), w], "factor"),
    ]
    for name, value, factor in [
        *((n, f"grad.{n}", _mine("factor")) for n in names),
        ("loss", _mine("loss"), w),
    ]:
        nodes.append(node("Mul", [value, factor], f"part {name}"))
        nodes.append(node("Add", [_mine(f"before {name}"), _mine(f"part {name}")], f"after {name}"))
    return nodes


def _mine(name: str) -> str:
    # No parameter is called so: the names of modules and parameters are Python's.
    return f": {name}"


def _float(name: str, dims: Sequence[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def _row(value: ValueInfoProto, name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, _dims(value)[1:])


def _dims(value: ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
