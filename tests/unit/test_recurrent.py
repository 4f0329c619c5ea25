"""Recurrent layers are one loop in a graph, whatever the length of a sequence, and compute what torch does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import GraphProto
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models.graphs.export import Graphs, export
from umbel_models.graphs.model import externalize, finish, graphs
from umbel_models.graphs.recurrent import gru, looped, lstm, rnn
from umbel_models.graphs.trace import to_onnx
from umbel_models.runtime import Session
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


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: "-".join(each))
def test_a_layer_without_gradient_is_torchs_too(kind: type[nn.RNNBase], settings: Mapping[str, Any]) -> None:
    torch.manual_seed(3)
    layer = kind(4, 5, **settings).double()
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        out, state = layer(x)
        with looped():
            ours, last = layer(x)
    torch.testing.assert_close([ours, *parts(last)], [out, *parts(state)])


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


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


def test_onnxs_own_operator_is_where_no_gradient_runs_and_the_loop_where_one_does(long: Graphs) -> None:
    assert (operators(long.infer)["GRU"], operators(long.infer)["Scan"]) == (1, 0)
    # An explanation asks in one batch for the points that need a gradient, and both ends, which need none.
    assert long.explain is not None
    for graph in (long.gradient, long.clipped, long.explain):
        assert operators(graph)["GRU"] == 0
        assert operators(graph)["Scan"] > 0


def test_a_session_reorders_the_gates_of_external_parameters_once(long: Graphs, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    values = {name: value.detach().numpy() for name, value in Last().named_parameters()}
    options.add_external_initializers(
        list(values), [ort.OrtValue.ortvalue_from_numpy(value) for value in values.values()]
    )
    ort.InferenceSession(long.infer, options, providers=["CPUExecutionProvider"])
    left = operators((tmp_path / "optimized.onnx").read_bytes())
    assert left["GRU"] == 1
    assert left["Split"] == left["Concat"] == 0


class Begun(nn.Module):
    """Layers of each kind in both directions, from states of their own, whose ends count as well."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, bidirectional=True, bias=False)
        self.lstm = nn.LSTM(8, 3, num_layers=2, bidirectional=True)
        self.says = nn.Linear(6 + 4 + 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        begin = x.mean(0)[:, :1]
        out, end = self.gru(x, torch.stack([begin.repeat(1, 4), -begin.repeat(1, 4)]))
        start = torch.stack([(k + 1) * begin.repeat(1, 3) for k in range(4)])
        out, (_, cell) = self.lstm(out, (start, -start))
        logits: Tensor = self.says(torch.cat([out.mean(0), end[1], cell[2]], -1))
        return logits


def test_states_to_begin_with_and_ends_are_those_of_torch_in_the_graph() -> None:
    torch.manual_seed(4)
    network = Begun()
    values = {name: value.detach().clone() for name, value in network.named_parameters()}

    def infer(*given: Tensor) -> tuple[Tensor, ...]:
        return (functional_call(network, dict(zip(values, given, strict=False)), (given[-1],)),)

    made = to_onnx(infer, list(values.values()), [torch.rand(11, 7, 3)], [*values, "x"], ["logits"])
    graph = finish(externalize(made, list(values))).SerializeToString()
    session = Session(graph, {name: value.numpy() for name, value in values.items()})
    for batch in (1, 2, 5):
        x = torch.randn(batch, 7, 3)
        [logits] = session.run(["logits"], {"x": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), network(x))


def test_a_sequence_of_128_is_as_long_a_graph_as_one_of_two(long: Graphs) -> None:
    assert len(long.gradient) < 8_000
    assert loops(onnx.load_from_string(long.gradient).graph) == 2


def test_examples_are_clipped_in_a_loop_around_the_loop_over_time(long: Graphs) -> None:
    assert loops(onnx.load_from_string(long.clipped).graph) == 3


def test_sequences_of_several_lengths_are_refused_with_the_cure() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 4), torch.zeros(2, 4)])
    with looped(), pytest.raises(UsageError, match=r"A GRU is exported.*pad short sequences"):
        nn.GRU(4, 4)(packed)
