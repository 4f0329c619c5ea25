"""Recurrent layers are one loop in a graph, whatever the length of a sequence, and compute what torch does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import pytest
import torch
from onnx import GraphProto
from torch import Tensor, nn

from umbel_models.graphs.export import Graphs, export
from umbel_models.graphs.model import graphs
from umbel_models.graphs.recurrent import gru, looped, lstm, rnn
from umbel_models.task import cross_entropy
from umbel_proto.errors import UsageError

KINDS = (nn.GRU, nn.LSTM, nn.RNN)
SETTINGS: list[dict[str, Any]] = [
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "bidirectional": True, "batch_first": True},
]


def parts(state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: "-".join(each))
@pytest.mark.parametrize("started", [False, True])
def test_outputs_states_and_gradients_are_torchs(
    kind: type[nn.RNNBase], settings: Mapping[str, Any], started: bool
) -> None:
    torch.manual_seed(0)
    layer = kind(4, 5, **settings).double()
    x = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    batch = 3 if layer.batch_first else 6
    count = layer.num_layers * (1 + layer.bidirectional)
    starts = tuple(
        torch.randn(count, batch, 5, dtype=torch.float64, requires_grad=True)
        for _ in range(2 if kind is nn.LSTM else 1)
    )
    given = (x, starts if kind is nn.LSTM else starts[0]) if started else (x,)
    leaves = [x, *layer.parameters(), *(starts if started else ())]

    def results() -> list[Tensor]:
        out, state = layer(*given)
        pulled = (out * torch.linspace(-1, 2, out.numel()).reshape(out.shape)).sum()
        pulled = pulled + sum((each**3).sum() for each in parts(state))
        return [out, *parts(state), *torch.autograd.grad(pulled, leaves)]

    theirs = results()
    with looped():
        ours = results()
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(layer(*given)[0], theirs[0])  # and torch's own way is back


def test_each_operators_gradient_is_that_of_its_differences() -> None:
    torch.manual_seed(1)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda *a: gru(*a)[0], (some(3, 2, 6), some(2, 2), some(6, 2), some(6)))
    assert torch.autograd.gradcheck(
        lambda *a: lstm(*a)[:2], (some(3, 2, 8), some(2, 2), some(2, 2), some(8, 2))
    )
    assert torch.autograd.gradcheck(rnn, (some(3, 2, 2), some(2, 2), some(2, 2)))


class Last(nn.Module):
    """What a recurrent layer says at the end of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.says = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.says(self.reads(x)[0][:, -1])
        return logits


@pytest.fixture(scope="module")
def long() -> Graphs:
    torch.manual_seed(2)
    return export(Last(), cross_entropy, (128, 3))


def loops(graph: GraphProto) -> int:
    return sum(node.op_type == "Scan" for each in graphs(graph) for node in each.node)


def test_a_sequence_of_128_is_as_long_a_graph_as_one_of_two(long: Graphs) -> None:
    assert len(long.gradient) < 8_000
    assert loops(onnx.load_from_string(long.gradient).graph) == 2


def test_examples_are_clipped_in_a_loop_around_the_loop_over_time(long: Graphs) -> None:
    assert loops(onnx.load_from_string(long.clipped).graph) == 3


def test_sequences_of_several_lengths_are_refused_with_the_cure() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 4), torch.zeros(2, 4)])
    with looped(), pytest.raises(UsageError, match=r"A GRU is exported.*pad short sequences"):
        nn.GRU(4, 4)(packed)
