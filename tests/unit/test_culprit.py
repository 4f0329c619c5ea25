"""A failed verification names the layer that is exported wrong, with a cure, or says what to try next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from umbel_models.graphs import trace
from umbel_models.graphs.export import export
from umbel_models.graphs.layers import GUIDE
from umbel_models.task import cross_entropy
from umbel_proto.errors import PackageError

aten = torch.ops.aten


def wrong_elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return torch.where(x > 0, x, 0.99 * (torch.exp(x) - 1))


def wrong_slope(gradient: Tensor, output: Tensor) -> Tensor:
    """Return tanh's derivative as if it were one half of it."""
    return 0.5 * gradient * (1 - output * output)


@pytest.fixture
def translated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Callable[..., Tensor]], None]:
    """Makes the exporter take an operator for something else."""

    def break_it(operator: Any, wrong: Callable[..., Tensor]) -> None:
        right = trace.table
        monkeypatch.setattr(trace, "table", lambda *, trains: {**right(trains=trains), operator: wrong})

    return break_it


class Between(nn.Module):
    """Calls ELU itself, so that no layer is to blame."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(nn.functional.elu(self.first(x)))
        return logits


def test_the_layer_whose_answers_are_wrong_is_named(translated: Any) -> None:
    translated(aten.elu.default, wrong_elu)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 5), nn.ELU()), nn.Linear(5, 3))
    with pytest.raises(PackageError, match=rf"infer\.onnx .*Layer '2\.1', a ELU, is exported wrong.*{GUIDE}"):
        export(net, cross_entropy, (4,))


def test_the_layer_whose_derivative_is_wrong_is_named(translated: Any) -> None:
    translated(aten.tanh_backward.default, wrong_slope)
    net = nn.Sequential(nn.Linear(4, 5), nn.ELU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    with pytest.raises(PackageError, match=r"grad\.onnx .*Layer '3', a Tanh, is exported wrong even by"):
        export(net, cross_entropy, (4,))


def test_where_no_layer_is_wrong_by_itself_the_next_step_is_said(translated: Any) -> None:
    translated(aten.elu.default, wrong_elu)
    with pytest.raises(
        PackageError, match=r"Each layer by itself is exported right.*halve the part that fails"
    ):
        export(Between(), cross_entropy, (4,))
