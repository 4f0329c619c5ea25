"""Sums of clipped per-example gradients at the cost of one ordinary backward pass ("book-keeping").

The gradient of a linear or convolutional layer is a product of what went into it and the gradient of
what came out. So one backward pass, which stops at the layers' outputs, gives every example's norm; and
the clipped sum is that product with each example's part scaled.

Source: Bu, Wang, Zha, Karypis, "Differentially Private Optimization on Large Model at Small Cost", ICML
2023 (arXiv 2210.00038), section 3; Goodfellow, "Efficient Per-Example Gradient Computations", arXiv
1510.01799, for the norms of linear layers. The rules are in ``umbel_models.graphs.rules``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models.graphs.rules import RULES, NoRuleError, Weigh

TINY = 1e-6
"""Added to every norm before it divides: a norm of 0 divides nothing. Opacus adds the same."""

Loss = Callable[[Tensor, Tensor], Tensor]


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
    *,
    trained: Collection[str] | None = None,
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
        trained: Names of the parameters whose gradients are asked for; all where there is None.

    Returns:
        Sums by parameter, the weighted sum of losses, shape (), and norms before clipping, shape (batch,).

    Raises:
        NoRuleError: A parameter does not belong to a layer with a rule that is called once.
    """
    trained = set(parameters if trained is None else trained)
    calls: list[_Call] = []
    with torch.enable_grad(), _recorded(module, trained, calls):
        losses = loss(functional_call(module, dict(parameters), (x,)), y)
        gradients = torch.autograd.grad(losses.sum(), [call.gave for call in calls])
    squares = torch.zeros_like(w)
    weighs: list[tuple[str, Weigh]] = []
    for call, gradient in zip(calls, gradients, strict=True):
        if call.gave.shape[0] != w.shape[0]:
            raise NoRuleError(f"{call.name} sees examples in parts")
        square, weigh = RULES[type(call.layer)](call.layer, call.given.detach(), gradient.detach())
        squares = squares + square
        weighs.append((call.name, weigh))
    norms = squares.sqrt()
    factors = w * (clip / (norms + TINY)).clamp(max=1.0)
    sums = {
        f"{layer}.{name}" if layer else name: value
        for layer, weigh in weighs
        for name, value in weigh(factors).items()
    }
    if sums.keys() != trained:
        raise NoRuleError("a layer's parameters are used without calling it, or are shared")
    return sums, (w * losses.detach()).sum(), norms


@contextlib.contextmanager
def _recorded(module: nn.Module, trained: Collection[str], calls: list[_Call]) -> Iterator[None]:
    names: dict[nn.Module, str] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        own = {f"{name}.{key}" if name else key for key, _ in layer.named_parameters(recurse=False)}
        if not own & set(trained):
            continue
        if not own <= set(trained):
            raise NoRuleError(f"{name or 'the module'} is trained in part")
        if layer in names:
            raise NoRuleError(f"{names[layer]} is {name} as well, one layer in two places")
        if type(layer) not in RULES:
            raise NoRuleError(f"{name or 'the module'}, a {type(layer).__name__}, has no rule for one pass")
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
