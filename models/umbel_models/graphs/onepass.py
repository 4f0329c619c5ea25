"""Sums of clipped per-example gradients at the cost of one ordinary backward pass ("book-keeping").

The gradient of a linear or convolutional layer is a product of what went into it and the gradient of
what came out. So one backward pass, which stops at the layers' outputs, gives every example's norm; and
the clipped sum is that product with each example's part scaled.

Source: Bu, Wang, Zha, Karypis, "Differentially Private Optimization on Large Model at Small Cost", ICML
2023 (arXiv 2210.00038), section 3; Goodfellow, "Efficient Per-Example Gradient Computations", arXiv
1510.01799, for the norms of linear layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models.graphs.decompositions import windows

TINY = 1e-6
"""Added to every norm before it divides: a norm of 0 divides nothing. Opacus adds the same."""

Loss = Callable[[Tensor, Tensor], Tensor]
Weigh = Callable[[Tensor], Mapping[str, Tensor]]
"""Maps the examples' factors, shape (batch,), to the layer's sums of gradients, by parameter."""


class NoRuleError(Exception):
    """A module has no rule here; ``umbel_models.graphs.scan`` serves every module."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One layer's part in the forward pass: what went in, what came out, both (batch, ..)."""

    name: str
    layer: nn.Module
    given: Tensor
    gave: Tensor


def clipped_gradients(
    module: nn.Module,
    loss: Loss,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    w: Tensor,
    clip: Tensor,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the weighted sum of per-example gradients, each clipped; the sum of losses; every norm.

    Args:
        module: The network.
        loss: Maps outputs and labels to one loss per example.
        parameters: Its parameters by name.
        x: Inputs, shape (batch, *example).
        y: Labels, shape (batch,).
        w: What each example counts, shape (batch,); one that only fills up the batch counts 0.
        clip: Largest L2 norm of an example's gradient, shape ().

    Returns:
        Sums by parameter, the weighted sum of losses, shape (), and norms before clipping, shape (batch,).

    Raises:
        NoRuleError: A parameter does not belong to a layer with a rule that is called once.
    """
    calls: list[_Call] = []
    with torch.enable_grad(), _recorded(module, calls):
        losses = loss(functional_call(module, dict(parameters), (x,)), y)
        gradients = torch.autograd.grad(losses.sum(), [call.gave for call in calls])
    squares = torch.zeros_like(w)
    weighs: list[tuple[str, Weigh]] = []
    for call, gradient in zip(calls, gradients, strict=True):
        square, weigh = _RULES[type(call.layer)](call.layer, call.given.detach(), gradient.detach())
        squares = squares + square
        weighs.append((call.name, weigh))
    norms = squares.sqrt()
    factors = w * (clip / (norms + TINY)).clamp(max=1.0)
    sums = {
        f"{layer}.{name}" if layer else name: value
        for layer, weigh in weighs
        for name, value in weigh(factors).items()
    }
    if sums.keys() != parameters.keys():
        raise NoRuleError("a layer's parameters are used without calling it, or are shared")
    return sums, (w * losses.detach()).sum(), norms


@contextlib.contextmanager
def _recorded(module: nn.Module, calls: list[_Call]) -> Iterator[None]:
    names = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        if next(layer.parameters(recurse=False), None) is None:
            continue
        if type(layer) not in _RULES or layer in names:
            raise NoRuleError(f"{name or 'the module'}, a {type(layer).__name__}, has no rule, or two names")
        names[layer] = name

    def record(layer: nn.Module, given: tuple[Tensor, ...], gave: Tensor) -> Tensor:
        if any(call.layer is layer for call in calls):
            raise NoRuleError(f"{names[layer]} is called twice")
        if not gave.requires_grad:
            gave.requires_grad_()
        calls.append(_Call(names[layer], layer, given[0], gave))
        # Whatever works on it in place then leaves what was recorded alone.
        return gave.clone()

    hooks = [layer.register_forward_hook(record) for layer in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _linear(layer: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Weigh]:
    if given.dim() > 2:
        rows, out = given.flatten(1, -2), gradient.flatten(1, -2)
        return _materialized(layer, out.transpose(1, 2) @ rows, out.sum(1))
    square = _square(gradient)
    norms = _square(given) * square if layer.bias is None else (_square(given) + 1.0) * square

    def weigh(factors: Tensor) -> Mapping[str, Tensor]:
        scaled = gradient * factors[:, None]
        sums = {"weight": scaled.t() @ given}
        return sums if layer.bias is None else {**sums, "bias": scaled.sum(0)}

    return norms, weigh


def _convolution(layer: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Weigh]:
    assert isinstance(layer, nn.Conv2d)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise NoRuleError("a convolution in groups, or with padding other than a number of zeros")
    columns = windows(
        given, layer.kernel_size, gradient.shape[2:], layer.stride, layer.padding, layer.dilation
    )
    columns = columns.flatten(1, 2).flatten(2)
    out = gradient.flatten(2)
    return _materialized(layer, out @ columns.transpose(1, 2), out.sum(2))


def _materialized(layer: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Weigh]:
    # Where weights serve many positions an example's gradient is far smaller than what it is made of.
    assert isinstance(layer.weight, Tensor)
    shape = layer.weight.shape
    # The last axis first: one sum over millions of float32 loses 4e-5 of it.
    norms = _square(weight).sum(1)
    if layer.bias is not None:
        norms = norms + _square(bias)

    def weigh(factors: Tensor) -> Mapping[str, Tensor]:
        sums = {"weight": (factors @ weight.flatten(1)).reshape(shape)}
        return sums if layer.bias is None else {**sums, "bias": factors @ bias}

    return norms, weigh


def _square(values: Tensor) -> Tensor:
    return (values * values).sum(-1)


_RULES: Mapping[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Weigh]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
}
