"""What the server makes of a mean update: the server optimizers of federated learning.

They see only the noised mean, so they cost no privacy.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (arXiv 2003.00295v5),
algorithm 2; Hsu, Qi, Brown, arXiv 1909.06335, for FedAvgM.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from umbel_server.learning.plan import Optimizer

Vector = NDArray[np.float32]
Moments = Mapping[str, Vector]
"""What an optimizer remembers between rounds, by name, each of shape (dim,)."""


def apply(optimizer: Optimizer, parameters: Vector, mean: Vector, moments: Moments) -> tuple[Vector, Moments]:
    """Return the parameters after a round, shape (dim,), and what to remember for the next.

    Args:
        optimizer: Which rule, and its numbers.
        parameters: Before the round, shape (dim,); left as they are.
        mean: The decoded mean update, shape (dim,).
        moments: What the last round left; empty in the first.
    """
    rate = np.float32(optimizer.learning_rate)
    if optimizer.kind == "fedavg":
        return parameters + rate * mean, {}
    nothing = np.zeros_like(parameters)
    first = np.float32(optimizer.momentum) * moments.get("m", nothing)
    if optimizer.kind == "fedavgm":
        first += mean
        return parameters + rate * first, {"m": first}
    first += np.float32(1 - optimizer.momentum) * mean
    floor = np.float32(optimizer.adaptivity)
    second = moments.get("v", np.full_like(parameters, floor**2))
    squares = mean * mean
    slow = np.float32(1 - optimizer.second_momentum)
    if optimizer.kind == "fedadam":
        second = np.float32(optimizer.second_momentum) * second + slow * squares
    else:
        second = second - slow * squares * np.sign(second - squares)
    step = (rate * first / (np.sqrt(second) + floor)).astype(np.float32, copy=False)
    return parameters + step, {"m": first, "v": second}
