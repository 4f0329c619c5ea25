"""The breast cancer network in torch. Only the exporter and its tests import it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from umbel_models.tasks.breast_cancer.data import RANGES

EDGE = 2.0


class BreastCancerNet(nn.Module):
    """A multi-layer perceptron with one hidden layer: 530 parameters.

    It takes measurements in their own units and scales each by its documented range to -1..1 itself, so that
    no device can forget to. A value further outside its range than the contract allows counts as ``EDGE``.
    """

    middle: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        low, high = torch.tensor(list(RANGES.values())).T
        self.register_buffer("middle", (low + high) / 2)
        self.register_buffer("scale", 2 / (high - low))
        self.hidden = nn.Linear(len(RANGES), 16)
        self.output = nn.Linear(16, 2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, 2), of measurements, shape (batch, 30)."""
        x = torch.clamp((x - self.middle) * self.scale, -EDGE, EDGE)
        return cast(Tensor, self.output(self.relu(self.hidden(x))))


def initial(seed: int) -> BreastCancerNet:
    """Return a network with torch's own initialization under ``seed``; torch's global state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BreastCancerNet()
