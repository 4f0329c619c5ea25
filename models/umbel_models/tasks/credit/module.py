"""The credit network in torch. Only the exporter and its tests import it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from umbel_models.tasks.credit.features import FEATURES


class CreditNet(nn.Module):
    """A small multi-layer perceptron: 5,098 parameters.

    It takes the columns in their own units and scales them itself, by the medians and spreads that
    ``FEATURES`` states, so that no device can forget to or needs to know others' data.
    """

    middle: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        spread = [each.spread if each.normal else each.spread * each.middle for each in FEATURES]
        middle = torch.tensor([float(each.middle) for each in FEATURES])
        self.register_buffer("middle", torch.log1p(middle))
        self.register_buffer("scale", (1 + middle) / torch.tensor(spread))
        self.first = nn.Linear(len(FEATURES), 64)
        self.second = nn.Linear(64, 56)
        self.output = nn.Linear(56, 2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, 2), of applications, shape (batch, 20)."""
        # Most columns have a long tail, which the logarithm folds up. None is negative in the contract.
        x = (torch.log1p(self.relu(x)) - self.middle) * self.scale
        x = self.relu(self.second(self.relu(self.first(x))))
        return cast(Tensor, self.output(x))


def initial(seed: int) -> CreditNet:
    """Return a network with torch's own initialization under ``seed``; torch's global state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CreditNet()
