"""Recognize GELU where an exporter wrote it out as x/2 * (1 + erf(x / sqrt 2)).

Below opset 20 ONNX has no Gelu, and TFLite has no Erf, but TFLite has GELU.
"""

from __future__ import annotations

import math
from dataclasses import replace

from umbel_models.tflite.source import Node, Source, prune


def recognize_gelu(source: Source) -> Source:
    """Return the graph with every written-out GELU as one Gelu node."""
    found = {}
    for node in source.nodes:
        if node.operator == "Erf" and (match := _match(source, node)) is not None:
            last, x = match
            found[id(last)] = Node("Gelu", last.label, (x,), last.outputs)
    if not found:
        return source
    nodes = [found.get(id(node), node) for node in source.nodes]
    return replace(source, nodes=tuple(prune(nodes, source.outputs)))


def _match(source: Source, erf: Node) -> tuple[Node, str] | None:
    """Return the last node of the pattern around an Erf, and what the pattern reads."""
    makers = {name: node for node in source.nodes for name in node.outputs}
    inner = makers.get(erf.inputs[0])
    if inner is None:
        return None
    x, scale = _times(source, inner)
    if scale is None or not math.isclose(scale, math.sqrt(0.5), rel_tol=1e-5):
        return None
    one = _only_user(source, erf.outputs[0])
    if one is None or one.operator != "Add" or _constant_of(source, one) != 1.0:
        return None
    # What is left is the product of x, 1/2 and 1 + erf, in any order of two multiplications.
    current, factor, seen_x = one, 1.0, False
    for _ in range(2):
        following = _only_user(source, current.outputs[0])
        if following is None or following.operator not in ("Mul", "Div"):
            return None
        other, scale = _times(source, following)
        if scale is not None and other == current.outputs[0]:
            factor *= scale
        elif following.operator == "Mul" and not seen_x:
            [other] = [name for name in following.inputs if name != current.outputs[0]] or [""]
            if other != x:
                maker = makers.get(other)
                base, scale = _times(source, maker) if maker is not None else ("", None)
                if base != x or scale is None:
                    return None
                factor *= scale
            seen_x = True
        else:
            return None
        current = following
        if seen_x and math.isclose(factor, 0.5, rel_tol=1e-6):
            return current, x
    return None


def _times(source: Source, node: Node) -> tuple[str, float | None]:
    """Return what a node multiplies by a constant number, and the number, or None."""
    if node.operator not in ("Mul", "Div"):
        return "", None
    values = [_number(source, name) for name in node.inputs]
    match node.operator, values:
        case ("Mul", [None, float(scale)]):
            return node.inputs[0], scale
        case ("Mul", [float(scale), None]):
            return node.inputs[1], scale
        case ("Div", [None, float(scale)]) if scale:
            return node.inputs[0], 1.0 / scale
    return "", None


def _constant_of(source: Source, node: Node) -> float | None:
    return next((value for name in node.inputs if (value := _number(source, name)) is not None), None)


def _number(source: Source, name: str) -> float | None:
    array = source.constants.get(name)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def _only_user(source: Source, name: str) -> Node | None:
    users = [node for node in source.nodes if name in node.inputs]
    return users[0] if len(users) == 1 and name not in source.outputs else None
