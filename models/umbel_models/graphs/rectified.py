"""A maximum of windows before a rectifier, where a module has it after one: the same values, a quarter of the work.

``max_pool(relu(x))`` is ``relu(max_pool(x))``, with the same derivatives: where a window holds a positive value its first
maximum is the same, and where it holds none both are 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

_RECTIFIERS = {functional.relu, torch.relu, Tensor.relu}
_POOLS = {functional.max_pool1d, functional.max_pool2d, torch.max_pool1d, torch.max_pool2d}


class _PooledFirst(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._before: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if function in _POOLS and args and args[0] in self._before and not named.get("return_indices"):
            return torch.relu(function(self._before[args[0]], *args[1:], **named))
        result = function(*args, **named)
        if function in _RECTIFIERS and not named.get("inplace") and len(args) == 1:
            self._before[result] = args[0]
        return result


@contextlib.contextmanager
def pooled_first() -> Iterator[None]:
    """A block in which the maxima of rectified values are taken first and rectified then."""
    with _PooledFirst():
        yield
