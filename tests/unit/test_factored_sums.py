"""Sums of clipped gradients that a graph leaves in factors: the same sums, and no more of them in memory."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from torch import nn

from model_packages import digits, first, opened
from umbel.engines.onnx import open_session
from umbel.train import ExamplePrivacy, TrainPlan, factors
from umbel.train.factors import factored, product
from umbel.train.graph import GraphGradients, Signature
from umbel.train.onnx import OnnxTrainer
from umbel.train.product import Multiplier
from umbel.train.summed import Product, Summed
from umbel_models.graphs.export import Graphs, export
from umbel_models.task import cross_entropy
from umbel_proto.errors import PackageError

PLAN = TrainPlan(2, 32, 0.05, 0.9, 7, ExamplePrivacy(clip=1.0, noise=0.0))
SHAPE = (24,)


def net() -> nn.Module:
    """Of its linear layers the first reads the examples themselves: the graph's input is a factor."""
    return nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))


@functools.cache
def exported() -> tuple[nn.Module, Graphs]:
    module = net()
    return module, export(module, cross_entropy, SHAPE)


def fed(rows: int) -> dict[str, NDArray[Any]]:
    chance = np.random.default_rng(2)
    w = np.ones(rows, np.float32)
    w[2] = 0
    x = chance.normal(size=(rows, *SHAPE)).astype(np.float32)
    return {"x": x, "y": chance.integers(0, 5, rows), "w": w}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.named_parameters()}


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "LEAST", 1)


def test_factors_stand_for_their_product_and_all_else_is_computed_as_before(all_large: None) -> None:
    module, graphs = exported()
    graph = graphs.clipped
    changed, pairs = factored(graph, shapes(module))
    assert set(pairs) == {"0.weight", "2.weight", "4.weight"}
    model = onnx.load_from_string(changed)
    onnx.checker.check_model(model, full_check=True)
    assert not {f"sum.{name}" for name in pairs} & {name for node in model.graph.node for name in node.output}
    feed = {name: value.detach().numpy() for name, value in module.named_parameters()}
    feed |= {**fed(9), "clip": np.array(0.3, np.float32)}
    before, after = (everything(each, feed) for each in (graph, changed))
    for name, value in before.items():
        pair = pairs.get(name.removeprefix("sum."))
        if pair is None:
            np.testing.assert_array_equal(after[name], value)
            continue
        assert name not in after
        left, right = (after[each] for each in pair)
        assert left.shape[1] == right.shape[0] == 9
        np.testing.assert_allclose(left @ right, value, atol=1e-6)


def everything(graph: bytes, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    session = open_session(graph, "a graph")
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def test_small_matrices_and_other_graphs_are_left_as_they_are() -> None:
    module, graphs = exported()
    assert factored(graphs.clipped, shapes(module)) == (graphs.clipped, {})
    package = opened(first())
    large = {parameter.name: parameter.shape for parameter in package.manifest.parameters}
    assert factored(package.file("grad.onnx"), large) == (package.file("grad.onnx"), {})


def test_a_sum_that_is_no_product_is_left_as_it_is(all_large: None) -> None:
    """A linear layer's over several positions is reshaped from its examples' gradients."""
    node = onnx.helper.make_node("Reshape", ["flat", "shape"], ["sum.weight"])
    flat, shape, whole = (
        onnx.helper.make_tensor_value_info(name, kind, dims)
        for name, kind, dims in (("flat", 1, [6]), ("shape", 7, [2]), ("sum.weight", 1, [2, 3]))
    )
    graph = onnx.helper.make_graph([node], "main", [flat, shape], [whole])
    model = onnx.helper.make_model(graph).SerializeToString()
    assert factored(model, {"weight": (2, 3)}) == (model, {})


@pytest.mark.parametrize("end", [1, 5, 100, -1, -700])
def test_what_is_no_model_is_the_runtimes_to_refuse(end: int, all_large: None) -> None:
    module, graphs = exported()
    broken = graphs.clipped[:end]
    given, pairs = factored(broken, shapes(module))
    assert (given, pairs) == (broken, {})
    with pytest.raises(PackageError):
        open_session(given, "a graph")


def test_training_on_factors_is_training_on_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    package, (x, y) = opened(first()), digits().train[:2]
    plan = replace(
        PLAN, batch_size=60, learning_rate=1.0
    )  # Every example is drawn: at a lower rate the system chooses.
    ends = []
    for least in (1 << 30, 1):
        monkeypatch.setattr(factors, "LEAST", least)
        ends.append(OnnxTrainer(package).train(package.parameters(), x[:60], y[:60], plan).parameters)
    np.testing.assert_allclose(*ends, atol=1e-6)
    assert np.abs(ends[0] - package.parameters()).max() > 0.01


def test_a_sum_in_factors_takes_no_memory_until_it_is_asked_for_whole(all_large: None) -> None:
    module, graphs = exported()
    signature = Signature("", "sum", "x", shapes(module))
    current = np.concatenate([value.detach().numpy().ravel() for value in module.parameters()])
    graph, pairs = factored(graphs.clipped, signature.shapes)
    given = fed(20)
    in_factors = GraphGradients(open_session(graph, ""), signature, current, pairs)
    for rows in (20, 7):  # Factors are as long as the batch is.
        x, y, w = (given[name][:rows] for name in ("x", "y", "w"))
        summed, _ = in_factors.clipped(x, y, w, 0.5)
        inside = [slice(each.begin, each.end) for each in summed.products]
        assert len(inside) == 3
        for each in inside:
            summed.vector[each] = 7.0
        summed, loss = in_factors.clipped(x, y, w, 0.5)
        assert all((summed.vector[each] == 7.0).all() for each in inside)
        plain = GraphGradients(open_session(graphs.clipped, ""), signature, current)
        whole, expected = plain.clipped(x, y, w, 0.5)
        assert loss == expected
        np.testing.assert_allclose(summed.whole(), whole.whole(), atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 10, 64, 10_000])
def test_a_sum_is_cut_into_blocks_that_together_are_all_of_it(size: int) -> None:
    chance = np.random.default_rng(3)
    vector = chance.normal(size=100).astype(np.float32)
    products = []
    for begin, rows, columns in ((5, 4, 10), (45, 1, 7), (60, 5, 8)):
        factors_ = chance.normal(size=(rows, 3)), chance.normal(size=(3, columns))
        left, right = (each.astype(np.float32) for each in factors_)
        products.append(Product(begin, left, right, Multiplier()))
    expected = vector.copy()
    for each in products:
        expected[each.begin : each.end] = (each.rows @ each.columns).ravel()
    summed = Summed(vector, tuple(products))
    blocks = list(summed.cut(size))
    assert [low for low, _ in blocks] == [0, *(high for _, high in blocks[:-1])]
    assert blocks[-1][1] == 100
    found = [summed.part(low, high, np.empty(high - low, np.float32)).copy() for low, high in blocks]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    np.testing.assert_allclose(summed.whole(), expected, atol=1e-5)


@pytest.mark.parametrize("where", ["vector", "rows", "columns"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sum_with_a_factor_that_is_not_finite_is_not_finite(where: str, value: float) -> None:
    parts = {"vector": np.zeros(10, np.float32)}
    parts |= {"rows": np.ones((2, 3), np.float32), "columns": np.ones((3, 4), np.float32)}
    parts["vector"][1:9] = np.nan  # What stands in a product's place is nothing.
    summed = Summed(parts["vector"], (Product(1, parts["rows"], parts["columns"], Multiplier()),))
    assert summed.finite()
    parts[where].flat[-1] = value
    assert not summed.finite()


def test_the_graph_of_one_product_is_onnx() -> None:
    model = onnx.load_from_string(product())
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 9
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    left, right = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(12, dtype=np.float32).reshape(3, 4)
    out = np.zeros((2, 4), np.float32)
    Multiplier()(left, right, out)
    np.testing.assert_array_equal(out, left @ right)
