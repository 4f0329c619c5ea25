"""Sums of clipped per-example gradients are what one backward pass for each example gives, and Opacus."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from model_packages import digits, first, opened
from umbel_models.graphs import windows
from umbel_models.graphs.export import export
from umbel_models.graphs.model import finish
from umbel_models.graphs.onepass import clipped_gradients
from umbel_models.graphs.rules import RULES, NoRuleError
from umbel_models.graphs.scan import per_example
from umbel_models.graphs.truth import Truth
from umbel_models.graphs.verify import verify_clipped
from umbel_models.runtime import Session
from umbel_models.task import cross_entropy as loss
from umbel_models.tasks.digits.module import initial
from umbel_models.tasks.digits.task import files
from umbel_proto.errors import PackageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

SHAPE = (1, 8, 8)
NAMES = [name for name, _ in initial(0).named_parameters()]


def plain(name: str = "grad.onnx") -> onnx.ModelProto:
    return onnx.load_from_string(files()[name])


def scan() -> bytes:
    data: bytes = finish(per_example(plain(), NAMES)).SerializeToString(deterministic=True)
    return data


def run(graph: bytes, *, rows: int, clip: float, w: np.ndarray | None = None) -> dict[str, np.ndarray]:
    package = opened(first())
    x, y = (values[:rows] for values in digits().train[:2])
    feed = {**package.split(package.parameters()), "x": x, "y": y, "clip": np.array(clip, np.float32)}
    outputs = [*(f"sum.{name}" for name in NAMES), "loss", "norms"]
    weights = np.ones(rows, np.float32) if w is None else w
    return dict(zip(outputs, Session(graph).run(outputs, {**feed, "w": weights}), strict=True))


def opacus(module: nn.Module, x: Tensor, y: Tensor, clip: float, each: Callable[..., Tensor]) -> list[Tensor]:
    wrapped = GradSampleModule(module, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=len(x),
    )
    # Opacus 1.6 takes a convolution's input for row-major: where one channel makes the strides ambiguous,
    # as in an array out of numpy's newaxis, its per-example gradients are silently wrong.
    x = x.clone(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: a full backward hook where the input needs no gradient
        each(wrapped(x), y).sum().backward()
    optimizer.clip_and_accumulate()
    return [parameter.summed_grad for parameter in wrapped.parameters()]


@pytest.mark.parametrize("clip", [0.05, 1.0, 3.0, 100.0])
def test_the_committed_graph_sums_what_opacus_sums(clip: float) -> None:
    package = opened(first())
    net = initial(0)
    net.load_state_dict({k: torch.tensor(v) for k, v in package.split(package.parameters()).items()})
    x, y = (torch.tensor(values[:32]) for values in digits().train[:2])
    ours = run(files()["dpgrad.onnx"], rows=32, clip=clip)
    for name, theirs in zip(NAMES, opacus(net, x, y, clip, loss), strict=True):
        np.testing.assert_allclose(ours[f"sum.{name}"], theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_the_two_ways_to_the_sums_agree() -> None:
    w = np.array([1, 0, 1, 1, 0, 1, 1, 1, 1], np.float32)
    one, other = (run(graph, rows=9, clip=1.5, w=w) for graph in (files()["dpgrad.onnx"], scan()))
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graph", ["one pass", "scan"])
def test_a_row_of_weight_0_does_nothing(graph: str) -> None:
    data = files()["dpgrad.onnx"] if graph == "one pass" else scan()
    w = np.array([1, 1, 1, 1, 0, 0, 0], np.float32)
    padded, exact = run(data, rows=7, clip=1.0, w=w), run(data, rows=4, clip=1.0)
    for name in (*(f"sum.{name}" for name in NAMES), "loss"):
        np.testing.assert_allclose(padded[name], exact[name], atol=1e-6)


@pytest.mark.parametrize("graph", ["one pass", "scan"])
@pytest.mark.parametrize("clip", [1e-3, 0.7, 5.0])
def test_one_example_moves_the_sum_by_clip_at_most(graph: str, clip: float) -> None:
    data = files()["dpgrad.onnx"] if graph == "one pass" else scan()
    for row in range(6):
        w = np.zeros(6, np.float32)
        w[row] = 1.0
        result = run(data, rows=6, clip=clip, w=w)
        length = np.sqrt(sum((result[f"sum.{name}"].astype(np.float64) ** 2).sum() for name in NAMES))
        assert length <= clip * (1 + 1e-5)
        assert length == pytest.approx(min(clip, result["norms"][row]), rel=1e-4)


def test_the_clip_is_the_norm_of_all_parameters_together() -> None:
    norms = run(files()["dpgrad.onnx"], rows=5, clip=1e6)["norms"]
    for row in range(5):
        w = np.zeros(5, np.float32)
        w[row] = 1.0
        whole = run(files()["dpgrad.onnx"], rows=5, clip=1e6, w=w)
        squares = sum((whole[f"sum.{name}"].astype(np.float64) ** 2).sum() for name in NAMES)
        assert norms[row] == pytest.approx(squares**0.5, rel=1e-5)


@pytest.mark.parametrize("name", ["dpgrad.onnx", "scan"])
def test_a_graph_of_clipped_sums_is_plain_onnx(name: str) -> None:
    model = onnx.load_from_string(scan()) if name == "scan" else plain(name)
    assert model.ir_version == 9
    assert {node.domain for node in model.graph.node} == {""}
    assert [value.name for value in model.graph.input] == [*NAMES, "x", "y", "w", "clip"]
    assert [value.name for value in model.graph.output] == [*(f"sum.{n}" for n in NAMES), "loss", "norms"]


def test_a_graph_that_clips_wrongly_is_found_out() -> None:
    truth = Truth(initial(3).train(), loss, SHAPE)
    verify_clipped(files()["dpgrad.onnx"], truth)
    broken = plain("dpgrad.onnx")
    root = next(node for node in broken.graph.node if node.op_type == "Sqrt")
    root.op_type = "Identity"  # the squared norm for the norm
    with pytest.raises(PackageError, match=r"dpgrad\.onnx at batch"):
        verify_clipped(broken.SerializeToString(), truth)


@pytest.mark.parametrize("factor", [0.9995, 1.0005])
def test_norms_that_are_a_little_off_are_found_out(factor: float) -> None:
    broken = plain("dpgrad.onnx")
    root = next(node for node in broken.graph.node if node.op_type == "Sqrt")
    (name,) = root.output
    root.output[0] = "root"
    value = numpy_helper.from_array(np.array(factor, np.float32), "factor")
    broken.graph.initializer.append(value)
    at = list(broken.graph.node).index(root) + 1
    broken.graph.node.insert(at, onnx.helper.make_node("Mul", ["root", "factor"], [name]))
    assert value.data_type == TensorProto.FLOAT
    with pytest.raises(PackageError, match=r"dpgrad\.onnx at batch"):
        verify_clipped(broken.SerializeToString(), Truth(initial(3).train(), loss, SHAPE))


class Rows(nn.Module):
    """A linear layer over several positions, and a strided, dilated, unpadded convolution without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 6)
        self.conv = nn.Conv2d(1, 3, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), bias=False)
        self.out = nn.Linear(45, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.out(torch.tanh(self.conv(self.mix(x))).flatten(1)[:, :45])
        return hidden


def sequences() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2),
        nn.Conv1d(1, 4, 5, stride=4, padding=2),
        nn.GroupNorm(2, 4),
        nn.Conv1d(4, 6, 3, dilation=2, groups=2),
        nn.LayerNorm((6, 12)),
        nn.Linear(12, 3),
        nn.LayerNorm(3),
        nn.Flatten(),
        nn.Linear(18, 4),
    )


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(2, (4, 2)),
        nn.Conv3d(1, 2, (2, 1, 3), stride=(1, 2, 2), padding=(0, 0, 1), bias=False),
        nn.Tanh(),
        nn.Conv3d(2, 4, (3, 1, 1), groups=2),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


class Words(nn.Module):
    """An embedding of words that repeat within an example."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(5, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.out(
            torch.tanh(self.words((x[:, 0] * 3).abs().long().clamp(max=4))).mean((1, 2))
        )
        return hidden * 9


NETS = [Rows, lambda: initial(0), sequences, volumes, Words]


def test_every_rule_is_compared_with_opacus() -> None:
    assert set(RULES) <= {type(layer) for make in NETS for layer in make().modules()}


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("clip", [0.3, 100.0])
def test_every_rule_gives_what_opacus_gives(make: Callable[[], nn.Module], clip: float) -> None:
    torch.manual_seed(1)
    net = make()
    x, y = torch.randn(6, *SHAPE), torch.tensor([0, 1, 2, 3, 0, 1])
    w = torch.tensor([1.0, 1, 0, 1, 0, 1])
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    sums, total, norms = clipped_gradients(net, loss, parameters, x, y, w, torch.tensor(clip))
    assert 0.3 < norms.min() <= norms.max() < 100.0
    kept = w > 0
    torch.testing.assert_close(total, loss(net(x[kept]), y[kept]).sum().detach())
    for name, theirs in zip(parameters, opacus(net, x[kept], y[kept], clip, loss), strict=True):
        torch.testing.assert_close(sums[name], theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("wide", [2, 6])
def test_a_convolution_in_pieces_gives_what_opacus_gives(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "LARGE", 0)
    monkeypatch.setattr(windows, "WIDE", wide)
    for make in (Rows, sequences, volumes):
        test_every_rule_gives_what_opacus_gives(make, 0.3)


@pytest.mark.parametrize("make", NETS)
def test_every_rules_norms_are_those_of_each_gradient(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    net = make()
    x, y = torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 3])
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    *_, norms = clipped_gradients(net, loss, parameters, x, y, torch.ones(4), torch.tensor(1.0))
    for row in range(4):
        gradient = torch.autograd.grad(loss(net(x[[row]]), y[[row]]).sum(), list(net.parameters()))
        torch.testing.assert_close(norms[row], torch.cat([part.ravel() for part in gradient]).norm())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.square(self.square(x))
        return hidden


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.called, self.borrowed = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.called(x)
        return nn.functional.linear(hidden, self.borrowed.weight, self.borrowed.bias)


class Scaled(nn.Module):
    """A layer of the engineer's own, with a parameter that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def tied() -> nn.Module:
    left, right = nn.Linear(4, 4), nn.Linear(4, 4)
    right.weight = left.weight
    return nn.Sequential(left, right)


def reflected() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Flatten()
    )


class Folded(nn.Module):
    """A linear layer that sees an example's two halves as two examples."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.part(x.reshape(-1, 2)).reshape(-1, 4)
        return hidden


@pytest.mark.parametrize("make", [Twice, Functional, Scaled, tied, reflected, Folded])
def test_a_module_without_a_rule_is_never_summed_wrongly(make: Callable[[], nn.Module]) -> None:
    net = make()
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    x, y = torch.ones(3, 4), torch.zeros(3, dtype=torch.long)
    with pytest.raises(NoRuleError):
        clipped_gradients(net, loss, parameters, x, y, torch.ones(3), torch.tensor(1.0))
    net(x)  # and no hook is left behind


def test_a_module_without_a_rule_is_exported_by_scan() -> None:
    torch.manual_seed(2)
    graph = onnx.load_from_string(export(nn.Sequential(nn.Linear(4, 4), Scaled()), loss, (4,)).clipped)
    assert [node.op_type for node in graph.graph.node if node.op_type == "Scan"] == ["Scan"]
