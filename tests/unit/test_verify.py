"""The verification of graphs: refuses what is wrong, and not what float32 cannot tell."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models.graphs.export import export
from umbel_models.graphs.truth import Truth
from umbel_models.graphs.verify import verify_explain, verify_gradient
from umbel_models.task import cross_entropy
from umbel_proto.errors import PackageError


class AtAKink(nn.Module):
    """A ReLU whose input is 0 in float32 and slightly more in truth, for one example of a batch of 7."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        self.output = nn.Linear(1, 3)
        self.register_buffer("edge", torch.zeros(1))
        self.scale = scale
        truth = Truth(self, cross_entropy, (1,))
        factor, (x, _, _) = truth.parameters["factor"], truth.examples(7)
        rounded, exact = x * factor, x.double() * factor.double()
        (row, *_) = (rounded.double() < exact)[:, 0].nonzero()[:, 0].tolist()
        self.edge = rounded[row]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(self.scale * torch.relu(x * self.factor - self.edge) + x)
        return logits


def altered(graph: bytes, by: float) -> bytes:
    """Return the graph with its first output slightly wrong."""
    model = onnx.load_from_string(graph)
    first = model.graph.output[0]
    inner = first.name + ".right"
    for node in model.graph.node:
        node.output[:] = [inner if name == first.name else name for name in node.output]
        node.input[:] = [inner if name == first.name else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 + by, np.float32), "factor.wrong"))
    model.graph.node.append(onnx.helper.make_node("Mul", [inner, "factor.wrong"], [first.name]))
    data: bytes = model.SerializeToString()
    return data


def test_an_example_at_a_kink_of_relu_is_no_fault_of_the_graph() -> None:
    module = AtAKink(scale=5e-3)
    truth = Truth(module, cross_entropy, (1,))
    x, y, w = truth.examples(7)
    right = float(truth.gradient(x, y, w)[0]["factor"])
    leaf = truth.parameters["factor"].clone().requires_grad_()
    losses = cross_entropy(functional_call(module, {**truth.parameters, "factor": leaf}, (x,)), y)
    (single,) = torch.autograd.grad((w * losses).sum() / w.sum(), [leaf])
    assert abs(right - float(single)) > 1e-4 * abs(right)  # Float32 torch is no better.

    export(module, cross_entropy, (1,))


@pytest.mark.parametrize("by", [2e-4, 2e-2])
def test_what_is_off_away_from_kinks_is_refused(by: float) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    graphs, truth = export(module, cross_entropy, (3,)), Truth(module, cross_entropy, (3,))
    assert graphs.explain is not None
    for verify, graph in ((verify_gradient, graphs.gradient), (verify_explain, graphs.explain)):
        verify(graph, truth)
        with pytest.raises(PackageError, match="away from torch"):
            verify(altered(graph, by), truth)


def test_what_is_off_by_more_than_a_kink_may_move_it_is_refused() -> None:
    module = AtAKink(scale=5e-3)
    graphs, truth = export(module, cross_entropy, (1,)), Truth(module, cross_entropy, (1,))
    with pytest.raises(PackageError, match="away from torch"):
        verify_gradient(altered(graphs.gradient, 5e-2), truth)
