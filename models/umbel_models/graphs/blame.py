"""Which layer is it that has no graph? The exporter names an operator; this says who calls it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from umbel_proto.errors import UsageError

_OPERATOR = re.compile(r"op='(\w+)\.(\w+)'|\b(aten)\.(\w+)")
CURES = {
    "decides by the values": "choose with torch.where",
    "complex numbers": "take a Fourier transform before the model, or write it as a product with sines and cosines",
    "no graph": "write it with other operators, or compute it before the model",
    "cannot be exported": "leave parts of it out until it can be, and write the part that cannot with other operators",
}
"""What to do about what no list of layers can name, by what the error says."""
_DEPENDS = ("DataDependent", "data-dependent", "Data-dependent")


def blamed(exc: Exception, module: nn.Module, x: Tensor) -> UsageError:
    """Return what to tell the engineer whose module made the exporter raise ``exc``.

    Args:
        exc: What was raised.
        module: The module that was exported.
        x: Inputs that it takes, shape (batch, *example).
    """
    causes = _causes(exc)
    text = " ".join(f"{type(cause).__name__} {cause}" for cause in causes)
    if any(word in text for word in _DEPENDS):
        return UsageError(
            "The module decides by the values of its input what to compute, as with if or .item(), and a graph "
            f"computes the same for all: {CURES['decides by the values']}."
        )
    if "complex" in text:
        return UsageError(
            f"{_caller(module, x, 'fft')} computes with complex numbers, which graphs lack: {CURES['complex numbers']}."
        )
    found = _OPERATOR.search(text)
    if found is None:
        return UsageError(
            f"The module cannot be exported ({type(causes[-1]).__name__}: {str(causes[-1])[:300]}): "
            f"{CURES['cannot be exported']}."
        )
    operator = found[2] or found[4]
    forward = re.sub(r"_backward$", "", operator).strip("_")
    lacks = "which has no graph" if forward == operator.strip("_") else "whose gradient has no graph"
    return UsageError(f"{_caller(module, x, forward)} uses {forward}, {lacks}: {CURES['no graph']}.")


def _causes(exc: BaseException) -> Sequence[BaseException]:
    chain: list[BaseException] = [exc]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _caller(module: nn.Module, x: Tensor, operator: str) -> str:
    """Return the name of the innermost layer that calls an operator, as the start of a sentence."""
    inside: list[tuple[str, nn.Module]] = []
    callers: list[tuple[str, nn.Module]] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if inside and func.__name__.strip("_").startswith(operator):
                callers.append(inside[-1])
            return func(*args, **(kwargs or {}))

    hooks = []
    for name, layer in module.named_modules():
        hooks.append(
            layer.register_forward_pre_hook(lambda layer, _, name=name: inside.append((name, layer)))
        )
        hooks.append(layer.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        with torch.no_grad(), Watch():  # type: ignore[no-untyped-call]
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not callers or not callers[0][0]:
        return "The module"
    name, layer = callers[0]
    return f"Layer {name!r}, a {type(layer).__name__},"
