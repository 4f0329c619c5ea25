"""A tidied trace computes what the function does, with fewer operators where none is needed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.onnx._internal.exporter import _fx_passes

from umbel_models.graphs.decompositions import select_backward, slice_backward, table
from umbel_models.graphs.tidy import tidied
from umbel_models.graphs.trace import to_onnx

aten = torch.ops.aten


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> GraphModule:
    with sdpa_kernel(SDPBackend.MATH):
        return tidied(make_fx(function, decomposition_table=table(trains=True))(x))


def count(trace: GraphModule, operator: object) -> int:
    return sum(node.target == operator for node in trace.graph.nodes)


def gradient_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(function(x), x)
        return grad

    return gradient


def attention(x: Tensor, mask: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(x, x * 0.5, x + 1, attn_mask=mask)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 5, 4)


def test_attention_without_a_mask_looks_for_none(x: Tensor) -> None:
    trace = traced(lambda x: attention(x), x)
    assert count(trace, aten.where.self) == 0
    assert count(trace, aten._softmax.default) == 1
    torch.testing.assert_close(trace(x), attention(x))
    trace = traced(gradient_of(lambda x: attention(x).sum()), x)
    assert count(trace, aten.eq.Scalar) == 0
    torch.testing.assert_close(trace(x), gradient_of(lambda x: attention(x).sum())(x))


@pytest.mark.parametrize("logical", [False, True])
def test_attention_to_nothing_stays_zero_where_there_is_a_mask(x: Tensor, logical: bool) -> None:
    """The mask leaves the second place nobody to look at: its softmax is of minus infinities alone."""
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    seen[1] = False
    mask = seen if logical else torch.zeros(5, 5).masked_fill(~seen, -math.inf)
    trace = traced(lambda x: attention(x, mask), x)
    torch.testing.assert_close(trace(x), attention(x, mask))
    assert (trace(x)[:, :, 1] == 0).all()


def test_a_safe_softmax_of_what_may_be_infinite_stays_safe() -> None:
    x = torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf]])
    trace = traced(lambda x: aten._safe_softmax(x * 2, -1), x)
    torch.testing.assert_close(trace(x), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))


def test_an_encoder_of_transformers_has_its_gradient(x: Tensor) -> None:
    encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    function = gradient_of(lambda x: (encoder(x) ** 2).sum())
    trace = traced(function, x[0])
    assert count(trace, aten.where.self) == 0
    assert count(trace, aten.constant_pad_nd.default) == 0
    torch.testing.assert_close(trace(x[0]), function(x[0]))


SUMS: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "unbind": (lambda x: sum(part.pow(i + 1).sum() for i, part in enumerate(x.unbind(1))), 1, 0),
    "unbind, last axis": (lambda x: sum(part.pow(i + 1).sum() for i, part in enumerate(x.unbind(-1))), 1, 0),
    "chunks": (lambda x: sum(x[..., 2 * i : 2 * i + 2].pow(i + 2).sum() for i in range(2)), 1, 0),
    "unlike chunks": (lambda x: x[:, :1].exp().sum() + x[:, 1:].sin().sum(), 1, 0),
    "from the end": (lambda x: x[:, -1].exp().sum() + x[:, :-1].sin().sum(), 1, 0),
    "one part twice": (lambda x: x[:, 0].exp().sum() + x[:, 0].sin().sum() + x[:, 1:].cos().sum(), 1, 1),
    "one part missing": (lambda x: x[:, 0].exp().sum() + x[:, 2].sin().sum(), 0, 2),
    "parts that overlap": (lambda x: x[:, :2].exp().sum() + x[:, 1:].sin().sum(), 0, 2),
    "parts of two axes": (lambda x: x[:, 0].exp().sum() + x[:, :, 1:].sin().sum(), 0, 2),
    "parts and the whole": (lambda x: x[:, 0].exp().sum() + x[:, 2:].sin().sum() + x.cos().sum(), 0, 2),
    "every other": (lambda x: x[..., ::2].exp().sum() + x[..., 1::2].sin().sum(), 0, 0),
}
"""Sums of parts, into how many pieces their gradient is joined, and how many padded ones are left."""


@pytest.mark.parametrize("name", SUMS)
def test_the_gradient_of_parts_is_torchs_and_one_piece_where_they_are_all(x: Tensor, name: str) -> None:
    function, joined, padded = SUMS[name]
    trace = traced(gradient_of(function), x)
    torch.testing.assert_close(trace(x), gradient_of(function)(x))
    assert (count(trace, aten.cat.default), count(trace, aten.constant_pad_nd.default)) == (joined, padded)


def test_a_padded_part_added_to_itself_counts_twice() -> None:
    x = torch.randn(2, 3)

    def doubled(x: Tensor) -> Tensor:
        left, right = functional.pad(x, (0, 3)), functional.pad(x, (3, 0))
        return left + left + right

    torch.testing.assert_close(traced(doubled, x)(x), doubled(x))


@pytest.mark.parametrize(("dim", "index"), [(0, 0), (1, -1), (-1, 2), (-2, -3)])
def test_the_gradient_of_one_place_is_torchs(dim: int, index: int) -> None:
    sizes = (3, 4, 5)
    grad = torch.randn(torch.empty(sizes).select(dim, index).shape)
    torch.testing.assert_close(
        select_backward(grad, sizes, dim, index), aten.select_backward(grad, sizes, dim, index)
    )


@pytest.mark.parametrize(("dim", "begin", "end"), [(0, 0, 2), (1, -2, 9), (-1, 1, -1), (1, 0, 2**63 - 1)])
def test_the_gradient_of_places_in_a_row_is_torchs(dim: int, begin: int, end: int) -> None:
    sizes = (3, 4, 5)
    grad = torch.randn(aten.slice.Tensor(torch.empty(sizes), dim, begin, end).shape)
    expected = aten.slice_backward(grad, sizes, dim, begin, end, 1)
    torch.testing.assert_close(slice_backward(grad, sizes, dim, begin, end, 1), expected)


@pytest.mark.parametrize(("there", "back", "left"), [((1, 2, 0), (2, 0, 1), 0), ((1, 2, 0), (1, 2, 0), 2)])
def test_a_transpose_and_its_inverse_are_left_away_and_no_others(
    there: tuple[int, ...], back: tuple[int, ...], left: int
) -> None:
    x = torch.randn(2, 3, 4)
    trace = traced(lambda x: x.permute(there).permute(back) + 1, x)
    assert count(trace, aten.permute.default) == left
    torch.testing.assert_close(trace(x), x.permute(there).permute(back) + 1)


def test_a_value_that_has_no_derivative_is_itself_in_a_trace(x: Tensor) -> None:
    def function(x: Tensor) -> Tensor:
        return x.detach() * torch.tensor([2.0]) + x

    for each in (function, gradient_of(lambda x: function(x).sum())):
        trace = traced(each, x)
        assert count(trace, aten.detach.default) == count(trace, aten.detach_.default) == 0
        torch.testing.assert_close(trace(x), each(x))


def test_the_gradient_of_a_network_with_a_pool_is_not_taken_apart_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def decompose(*_: object) -> object:
        raise AssertionError("the trace holds what the exporter has no operator for")

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", decompose)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    names, parameters = zip(*network.named_parameters(), strict=True)

    def gradient(*values: Tensor) -> tuple[Tensor, ...]:
        *parameters, x = values
        leaves = [each.detach().requires_grad_() for each in parameters]
        out = torch.func.functional_call(network, dict(zip(names, leaves, strict=True)), (x,))
        return torch.autograd.grad(out.square().sum(), leaves)

    model = to_onnx(
        gradient,
        [each.detach() for each in parameters],
        [torch.randn(7, 1, 8, 8)],
        [*names, "x"],
        [f"{name}.gradient" for name in names],
        trains=True,
    )
    assert len(model.graph.output) == len(names)
