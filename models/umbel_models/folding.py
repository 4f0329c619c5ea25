"""Rewrite an inference graph so that the weights int8 should hold are plain inputs of their operators.

What is computed stays the same, up to rounding. New tensors are computed by nodes of the graph from its
parameters, so they can be computed again from other values; onnxruntime's own merges leave no such trace.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper


def fold(model: ModelProto) -> ModelProto:
    """Return a model with batch norms inside convolutions, weights held once and as they are, pools over time."""
    folded = ModelProto()
    folded.CopyFrom(model)
    _fold_norms(folded)
    _drop_repeats(folded)
    _keep_weights(folded)
    _lower_pools(folded)
    return folded


def _fold_norms(model: ModelProto) -> None:
    """Give a convolution the scale and shift of the batch norm after it (running statistics)."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    ranks = _ranks(model)
    nodes: list[NodeProto] = []
    for node in graph.node:
        convolution = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if (
            convolution is None
            or convolution.op_type != "Conv"
            or _readers(graph, node.input[0]) != 1
            or _attribute(node, "training_mode", 0)
        ):
            nodes.append(node)
            continue
        _, scale, shift, mean, variance = node.input
        name, weight = node.output[0], convolution.input[1]
        shape = np.array([-1, *[1] * (ranks[weight] - 1)], np.int64)
        constants = {f"{name}.epsilon": np.float32(_attribute(node, "epsilon", 1e-5)), f"{name}.shape": shape}
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()
        )
        steps = [
            ("Add", [variance, f"{name}.epsilon"], "spread"),
            ("Sqrt", [f"{name}.spread"], "deviation"),
            ("Div", [scale, f"{name}.deviation"], "factor"),
            ("Reshape", [f"{name}.factor", f"{name}.shape"], "factors"),
            ("Mul", [weight, f"{name}.factors"], "weight"),
        ]
        if len(convolution.input) > 2:
            steps.append(("Sub", [convolution.input[2], mean], "centered"))
        else:
            steps.append(("Neg", [mean], "centered"))
        steps += [
            ("Mul", [f"{name}.centered", f"{name}.factor"], "scaled"),
            ("Add", [f"{name}.scaled", shift], "bias"),
        ]
        merged = NodeProto()
        merged.CopyFrom(convolution)
        merged.input[:] = [convolution.input[0], f"{name}.weight", f"{name}.bias"]
        merged.output[:] = [name]
        nodes = [other for other in nodes if other is not convolution]
        nodes += [helper.make_node(kind, inputs, [f"{name}.{output}"]) for kind, inputs, output in steps]
        nodes.append(merged)
    _replace(graph, nodes)


def _drop_repeats(model: ModelProto) -> None:
    """Let MatMul broadcast a matrix that an Expand before it repeats for each step of a sequence."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input)
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        repeat = makers.get(node.input[1]) if node.op_type == "MatMul" else None
        if repeat is None or repeat.op_type != "Expand" or repeat.input[1] not in constants:
            continue
        target = numpy_helper.to_array(constants[repeat.input[1]]).tolist()
        matrix, left = shapes.get(repeat.input[0], []), shapes.get(node.input[0], [])
        # A dimension that is unknown, the batch, reads as 0.
        if len(matrix) == 2 and 0 not in matrix and matrix == target[-2:] and left[:-2] == target[:-2]:
            node.input[1] = repeat.input[0]
    kept = {value.name for value in graph.output}
    _replace(
        graph,
        [
            n
            for n in graph.node
            if n.op_type != "Expand" or kept & set(n.output) or _readers(graph, n.output[0])
        ],
    )


def _keep_weights(model: ModelProto) -> None:
    """Let a linear layer without a bias read its weight as it is: torch exports a product with its transpose.

    A weight that is transposed while the graph runs is not packed for the processor, and a sum over a
    thousand inputs then rounds in another way than in onnxruntime's quantizer, which packs it.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    ranks = _ranks(model)
    constants = {tensor.name for tensor in graph.initializer}
    # With a bias added, onnxruntime makes one operator of the three by itself.
    biased = {
        name
        for node in graph.node
        if node.op_type == "Add" and constants & {*node.input}
        for name in node.input
    }
    for node in graph.node:
        turned = makers.get(node.input[1]) if node.op_type == "MatMul" else None
        if (
            turned is not None
            and turned.op_type == "Transpose"
            and turned.input[0] in constants
            and ranks[turned.input[0]] == ranks.get(node.input[0]) == 2
            and node.output[0] not in biased
        ):
            inputs = [node.input[0], turned.input[0]]
            node.CopyFrom(helper.make_node("Gemm", inputs, list(node.output), transB=1))
    _replace(graph, [n for n in graph.node if n.op_type != "Transpose" or _readers(graph, n.output[0])])


def _lower_pools(model: ModelProto) -> None:
    """Let a pool over time be one: torch exports it as a pool over an image of one row.

    In int8 the detour costs two transpositions and a slow kernel: 2.6 times the whole activity model's time.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = _ranks(model)
    dropped: set[str] = set()

    def row_added_or_dropped(node: NodeProto | None, kind: str) -> bool:
        if node is None or node.op_type != kind or len(node.input) < 2 or node.input[1] not in constants:
            return False
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        return axes in ([2], [-2]) and ranks.get(node.output[0]) == (4 if kind == "Unsqueeze" else 3)

    for squeeze in graph.node:
        pool = makers.get(squeeze.input[0]) if row_added_or_dropped(squeeze, "Squeeze") else None
        widen = makers.get(pool.input[0]) if pool is not None and pool.op_type == "MaxPool" else None
        if pool is None or widen is None or not row_added_or_dropped(widen, "Unsqueeze"):
            continue
        window = {a.name: list(a.ints) for a in pool.attribute if a.ints}
        flat = {name: values[1::2] for name, values in window.items()}
        one_row = all(set(values[::2]) == {0 if name == "pads" else 1} for name, values in window.items())
        alone = len(pool.output) == 1 and all(_readers(graph, n.output[0]) == 1 for n in (pool, widen))
        if not (one_row and alone):
            continue
        lowered = helper.make_node("MaxPool", [widen.input[0]], [squeeze.output[0]])
        lowered.attribute.extend(helper.make_attribute(name, values) for name, values in flat.items())
        lowered.attribute.extend(attribute for attribute in pool.attribute if not attribute.ints)
        squeeze.CopyFrom(lowered)
        dropped |= {pool.output[0], widen.output[0]}
    _replace(graph, [node for node in graph.node if node.output[0] not in dropped])


def _ranks(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = (*inferred.value_info, *inferred.input)
    found = {value.name: len(value.type.tensor_type.shape.dim) for value in known}
    return found | {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}


def _readers(graph: GraphProto, name: str) -> int:
    inside = sum(name in node.input for node in graph.node)
    return inside + sum(value.name == name for value in graph.output)


def _attribute(node: NodeProto, name: str, default: float) -> float:
    found = [helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name]
    return float(found[0]) if found else default


def _replace(graph: GraphProto, nodes: list[NodeProto]) -> None:
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
