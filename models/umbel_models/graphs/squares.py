"""Sums of squares, for the norms of clipped gradients, as one operator where a trace has two."""

from __future__ import annotations

from collections import Counter

from onnx import ModelProto


def squared(model: ModelProto) -> ModelProto:
    """Put one operator in place of a product of a tensor with itself that is only summed; return the model.

    The product is then held nowhere, and a session of many such sums is opened sooner.
    """
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    for node in list(graph.node):
        product = made.get(node.input[0]) if node.op_type == "ReduceSum" else None
        if product is None or product.op_type != "Mul" or readers[product.output[0]] > 1:
            continue
        value, other = product.input
        if value == other:
            node.op_type, node.input[0] = "ReduceSumSquare", value
            graph.node.remove(product)
    return model
