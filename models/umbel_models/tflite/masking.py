"""Recognize a softmax that guards itself against rows that are masked out whole.

torch's attention gives zeros for a row of nothing but -inf. Where no value can be -inf, because no constant
of the graph is, the guard is the softmax alone, and nine operators go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from umbel_models.tflite.source import Node, Source, prune

# What computes "every value of the row is -inf", from the last operator to the first.
_GUARD = ("Not", "Cast", "ReduceMax", "Cast", "Not", "Equal")


def recognize_softmax(source: Source) -> Source:
    """Return the graph without guards that cannot come to bear."""
    makers = {name: node for node in source.nodes for name in node.outputs}
    guards = {}
    for node in source.nodes:
        if node.operator == "Where" and (found := _compared(source, makers, node)):
            guards[id(node)] = found
    if not guards or _has_infinity(source, set(guards.values())):
        return source
    nodes = [
        Node("Identity", node.label, (node.inputs[2],), node.outputs) if id(node) in guards else node
        for node in source.nodes
    ]
    return replace(source, nodes=tuple(prune(nodes, source.outputs)))


def _compared(source: Source, makers: Mapping[str, Node], where: Node) -> str | None:
    """Return the name of the -inf that a guard compares with, or None where the node is no guard."""
    node = where
    for operator in _GUARD:
        maker = makers.get(node.inputs[0])
        if maker is None or maker.operator != operator:
            return None
        node = maker
    softmax = makers.get(where.inputs[2])
    zeros = source.constants.get(where.inputs[1])
    limit = source.constants.get(node.inputs[1])
    if softmax is None or softmax.operator != "Softmax" or softmax.inputs[0] != node.inputs[0]:
        return None
    if zeros is None or zeros.any() or limit is None or not np.isneginf(limit).all():
        return None
    return node.inputs[1]


def _has_infinity(source: Source, compared: set[str]) -> bool:
    used = {name for node in source.nodes if node.operator != "Equal" for name in node.inputs}
    return any(
        np.isneginf(array).any()
        for name, array in source.constants.items()
        if array.dtype == np.float32 and (name in used or name not in compared)
    )
