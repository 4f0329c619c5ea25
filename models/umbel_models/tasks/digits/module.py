"""The digits network in torch. Only the exporter and its tests import it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from umbel_models.tasks.digits.task import LEVELS


class DigitsNet(nn.Module):
    """A small convolutional network: 13,706 parameters.

    It takes grey levels as the scanner gives them and scales them itself, so that no device can forget to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(128, 64)
        self.output = nn.Linear(64, 10)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, 10), of grey levels, shape (batch, 1, 8, 8), in 0..16."""
        x = x * (1.0 / LEVELS)
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        return cast(Tensor, self.output(self.relu(self.hidden(self.flatten(x)))))


def initial(seed: int) -> DigitsNet:
    """Return a network with torch's own initialization under ``seed``; torch's global state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsNet()
