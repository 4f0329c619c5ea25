"""What a trace holds that the runtime need not do: masks where nothing is masked, and parts padded to be added up.

And what keeps the exporter, which would take all of it apart a second time: that a constant has no derivative. All are rewritten in the traced graph, where who reads what is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

aten = torch.ops.aten

_SAME_NUMBERS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.clone.default,
    aten.permute.default,
}
_DETACHED = {aten.detach.default, aten.detach_.default}
_PRODUCTS = {aten.bmm.default, aten.mm.default}


def tidied(traced: GraphModule) -> GraphModule:
    """Rewrite a trace in place, and return it."""
    for node in list(traced.graph.nodes):
        if node.target == aten.where.self:
            _unmask(node)
        elif node.target == aten.add.Tensor:
            _join(node)
        elif node.target == aten.permute.default:
            _untranspose(node)
        elif node.target in _DETACHED:
            # Derivatives are in the trace already.
            node.replace_all_uses_with(cast("Node", node.args[0]))
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _unmask(node: Node) -> None:
    """Leave away that a softmax of minus infinities alone is 0, where it is of a product: attention without a mask.

    Source: torch's decomposition of ``aten._safe_softmax``.
    """
    _, _, softmax = node.args
    if not (isinstance(softmax, Node) and softmax.target == aten._softmax.default):
        return
    scores = softmax.args[0]
    assert isinstance(scores, Node)
    compared = any(
        user.target == aten.eq.Scalar and user.args[1] == -math.inf and node in _readers(user)
        for user in scores.users
    )
    if compared and _is_product(scores):
        node.replace_all_uses_with(softmax)


def _untranspose(node: Node) -> None:
    """Leave away a transpose and its inverse: what a derivative makes of a product with a weight that lies transposed."""
    inner, back = cast("tuple[Node, Sequence[int]]", node.args)
    if inner.target != aten.permute.default:
        return
    x, there = cast("tuple[Node, Sequence[int]]", inner.args)
    if all(there[dim] == place for place, dim in enumerate(back)):
        node.replace_all_uses_with(x)


def _readers(node: Node) -> Iterator[Node]:
    """Yield who reads a node, and who reads those, up to the first choice."""
    for user in node.users:
        yield user
        if user.target != aten.where.self:
            yield from _readers(user)


def _is_product(node: Node) -> bool:
    while node.target in _SAME_NUMBERS:
        (node, *_) = node.all_input_nodes
    return node.target in _PRODUCTS


@dataclass(frozen=True, slots=True)
class _Part:
    """What a zero padding along one axis pads.

    Args:
        node: It.
        axis: The axis, from 0.
        begin: Where it stands on it.
        end: Behind its last place.
        whole: How long the axis is, padding and all.
    """

    node: Node
    axis: int
    begin: int
    end: int
    whole: int


def _join(node: Node) -> None:
    """Put the parts of an axis side by side, where a sum of as many padded ones has them: the gradient of an unbind."""
    parts = [_padded(term) for term in _terms(node)]
    ordered = sorted((part for part in parts if part is not None), key=lambda part: part.begin)
    if len(ordered) < max(2, len(parts)):
        return
    first, last = ordered[0], ordered[-1]
    bounds = itertools.pairwise(ordered)
    if (
        {part.axis for part in ordered} == {first.axis}
        and first.begin == 0
        and last.end == last.whole
        and all(left.end == right.begin for left, right in bounds)
    ):
        with node.graph.inserting_before(node):
            joined = node.graph.call_function(aten.cat.default, ([part.node for part in ordered], first.axis))
        joined.meta = dict(node.meta)
        node.replace_all_uses_with(joined)


def _terms(node: Argument) -> Iterator[Argument]:
    """Yield what a sum of sums adds up."""
    if isinstance(node, Node) and node.target == aten.add.Tensor and not node.kwargs:
        for term in node.args:
            yield from _terms(term)
    else:
        yield node


def _padded(node: Argument) -> _Part | None:
    if not isinstance(node, Node) or node.target != aten.constant_pad_nd.default:
        return None
    inner, given, *value = node.args
    assert isinstance(inner, Node)
    edges = cast("Sequence[int]", given)
    pairs = [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)]
    padded = [place for place, pair in enumerate(pairs) if pair != (0, 0)]
    if len(padded) != 1 or value not in ([], [0], [0.0]):
        return None
    shape = node.meta["val"].shape
    axis = len(shape) - 1 - padded[0]
    before, after = pairs[padded[0]]
    return _Part(inner, axis, before, shape[axis] - after, shape[axis])
