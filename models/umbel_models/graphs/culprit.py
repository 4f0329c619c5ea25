"""Which layer is it whose graph is wrong? Asked when the graph of a whole module is not what torch computes.

Each layer is exported by itself, on what it was given in the module, and compared with torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from umbel_models.graphs.layers import GUIDE
from umbel_models.graphs.model import finish
from umbel_models.graphs.trace import batch_unlike, to_onnx
from umbel_models.graphs.truth import Truth
from umbel_models.graphs.verify import compare
from umbel_models.runtime import Session
from umbel_proto.errors import PackageError

_NEXT = (
    "in what forward computes between layers: export parts of the module, each as a module of its own, with "
    "umbel_models.graphs.export.export, and halve the part that fails until one operator is left; write that with "
    "others, and report it."
)


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A layer, and what it was given."""

    name: str
    layer: nn.Module
    given: tuple[Tensor, ...]

    def __str__(self) -> str:
        kind = type(self.layer).__name__
        return f"Layer {self.name!r}, a {kind}," if self.name else f"The module, a {kind},"


def culprit(module: nn.Module, truth: Truth, *, trains: bool, backward: bool) -> str:
    """Return a sentence that names the first layer whose graph differs by itself and the cure, or what to try next.

    Args:
        module: The module whose graph differs.
        truth: About it: parameters and inputs are taken from there.
        trains: Whether it is a graph of training that differs.
        backward: Whether it is a graph with derivatives.
    """
    untried = []
    for call in _calls(module, truth):
        try:
            right = _is_right(call, trains=trains, backward=backward)
        except Exception:  # the exporter's, onnxruntime's and torch's share no other base class
            right = None
        if right is False:
            return (
                f"{call} is exported wrong even by itself: write it with other layers, or with operators, as {GUIDE} "
                "lists them, and report it."
            )
        if right is None:
            untried.append(repr(call.name))
    if untried:
        return f"It lies in {', '.join(untried)}, which cannot be tried alone, or {_NEXT}"
    return f"Each layer by itself is exported right: it lies {_NEXT}"


def _calls(module: nn.Module, truth: Truth) -> Iterator[_Call]:
    """Yield the layers of the module that have no layers inside, in the order of their first calls."""
    single = copy.deepcopy(module).float()
    for name, value in single.named_parameters():
        value.data = truth.parameters[name].clone()
    found: dict[str, _Call] = {}

    def seen(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: tuple[object, ...], named: dict[str, object]) -> None:
            tensors = [each.detach() for each in given if isinstance(each, Tensor)]
            whole = not named and len(tensors) == len(given)
            found.setdefault(name, _Call(name, layer, tuple(tensors) if whole else ()))

        return hook

    sizes = [size for value in truth.parameters.values() for size in value.shape]
    x, _, _ = truth.examples(1)
    x, _, _ = truth.examples(batch_unlike([*x.shape[1:], *truth.answer, *sizes]))
    for name, layer in single.named_modules():
        if next(layer.children(), None) is None:
            layer.register_forward_pre_hook(seen(name), with_kwargs=True)
    with torch.no_grad():
        single(x)
    yield from found.values()


def _is_right(call: _Call, *, trains: bool, backward: bool) -> bool | None:
    """Return whether the graph of a layer computes what torch does; None where that cannot be asked."""
    if not call.given or len({each.shape[:1] for each in call.given}) != 1:
        return None
    # Hooks were for finding it; a copy in double precision says what is right.
    call.layer._forward_pre_hooks.clear()
    call.layer._forward_pre_hooks_with_kwargs.clear()
    values = {name: value.detach() for name, value in call.layer.named_parameters()}
    function = _derivative if backward else _forward
    single = function(call.layer, list(values), len(call.given))
    inputs = list(call.given)
    if backward:
        with torch.no_grad():
            outputs = _flat(functional_call(call.layer, values, tuple(inputs)))
        source = torch.Generator().manual_seed(0)
        inputs += [torch.randn(each.shape, generator=source) for each in outputs]
    exact = function(copy.deepcopy(call.layer).double(), list(values), len(call.given))
    expected = exact(*(_double(each) for each in (*values.values(), *inputs)))
    names = [f"output{i}" for i in range(len(expected))]
    places = [f"p{i}" for i in range(len(values))], [f"x{i}" for i in range(len(inputs))]
    graph = to_onnx(single, list(values.values()), inputs, [*places[0], *places[1]], names, trains=trains)
    taken = {value.name for value in graph.graph.input}
    feed = dict(
        zip([*places[0], *places[1]], (each.numpy() for each in (*values.values(), *inputs)), strict=True)
    )
    session = Session(finish(graph).SerializeToString(), {})
    results = session.run(names, {name: value for name, value in feed.items() if name in taken})
    wanted = {name: value.detach().numpy() for name, value in zip(names, expected, strict=True)}
    try:
        compare(dict(zip(names, results, strict=True)), wanted, str(call))
    except PackageError:
        return False
    return True


def _forward(layer: nn.Module, names: Sequence[str], given: int) -> Callable[..., tuple[Tensor, ...]]:
    def function(*args: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(names, args, strict=False))
        return _flat(functional_call(layer, values, args[len(names) : len(names) + given]))

    return function


def _derivative(layer: nn.Module, names: Sequence[str], given: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return the product of a layer's derivative, by its parameters and inputs, with gradients of its outputs."""

    def function(*args: Tensor) -> tuple[Tensor, ...]:
        leaves = [
            each.detach().requires_grad_() if each.is_floating_point() else each
            for each in args[: len(names) + given]
        ]
        with torch.enable_grad():
            values = dict(zip(names, leaves, strict=False))
            outputs = _flat(functional_call(layer, values, tuple(leaves[len(names) :])))
            of = [each for each in leaves if each.requires_grad]
            gradients = torch.autograd.grad(
                outputs, of, list(args[len(leaves) :]), materialize_grads=True, allow_unused=True
            )
        return tuple(each.detach() for each in gradients)

    return function


def _flat(outputs: object) -> tuple[Tensor, ...]:
    if isinstance(outputs, Tensor):
        return (outputs,)
    assert isinstance(outputs, tuple | list)
    return tuple(each for part in outputs if part is not None for each in _flat(part))


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value
