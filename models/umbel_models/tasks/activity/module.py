"""The activity network in torch. Only the exporter and its tests import it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class ActivityNet(nn.Module):
    """A convolutional network over time: 143,302 parameters.

    It takes m/s^2 and rad/s as sensors give them and scales them itself, so that no device can forget to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(9, 32, 5, padding=2)
        self.conv2 = nn.Conv1d(32, 64, 5, padding=2)
        self.hidden = nn.Linear(64 * 32, 64)
        self.output = nn.Linear(64, 6)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool1d(2)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, 6), of windows, shape (batch, 128, 9)."""
        x = x.transpose(1, 2) * 0.2
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        return cast(Tensor, self.output(self.relu(self.hidden(self.flatten(x)))))


def initial(seed: int) -> ActivityNet:
    """Return a network with torch's own initialization under ``seed``; torch's global state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ActivityNet()
