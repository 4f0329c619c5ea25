"""What a round's sum says beside the mean update: metrics, weights, how many were clipped and how long updates were.

Source: docs/spec/privacy.md, "Auxiliary quantities".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.privacy.auxiliary import ACCURACY, WEIGHT, WITHIN, WITHIN_CLIP, Quantity
from umbel_proto.privacy.encode import Encoding, auxiliary_error, decode_auxiliary
from umbel_server.learning.plan import RunPlan

LEAST_WEIGHT = 0.1
"""Of full weight on average: below, a weighted mean is noise over noise."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A quantity's mean over the devices of a sum.

    Args:
        mean: In the quantity's unit. Noise may take it out of its bounds.
        error: Its standard deviation from noise and rounding, in the same unit.
    """

    mean: float
    error: float


def quantities(plan: RunPlan, classes: int) -> tuple[Quantity, ...]:
    """Return what devices add beside their updates in a run's rounds.

    Args:
        plan: The run's.
        classes: Classes of the model: a loss counts up to twice that of guessing. None for a model that answers with
            numbers, 0: nobody guesses how large its loss may be.

    Raises:
        UsageError: Devices of a model that answers with numbers are asked for accuracy, or for a loss of unknown size.
    """
    if not classes and ACCURACY in plan.metrics.names:
        raise UsageError(
            "This model answers with numbers and has no accuracy: name loss or training_loss in metrics, or nothing."
        )
    if not classes and plan.metrics.names and not plan.metrics.loss_high:
        raise UsageError(
            "This model's loss may be of any size: say with loss_high in metrics how large at most."
        )
    asked = []
    if plan.metrics.norms:
        asked += [Quantity(name, 0, 1) for name in WITHIN]
    elif plan.clipping.rate:
        asked.append(Quantity(WITHIN_CLIP, 0, 1))
    if plan.weight_cap:
        asked.append(Quantity(WEIGHT, 0, plan.weight_cap))
    worst = plan.metrics.loss_high or 2 * math.log(max(2, classes))
    for name in plan.metrics.names:
        asked.append(Quantity(name, 0, 1 if name == ACCURACY else worst))
    return tuple(asked)


def measure(
    total: NDArray[np.uint64], encoding: Encoding, asked: Sequence[Quantity], *, count: int
) -> dict[str, Measured]:
    """Return the quantities behind a sum, by name.

    Args:
        total: The unmasked sum, shape (encoding.words,).
        encoding: The session's.
        asked: What the devices were asked, in order.
        count: Devices in the sum.
    """
    means = decode_auxiliary(total, encoding, count=count)
    errors = auxiliary_error(encoding, count=count)
    return {
        quantity.name: Measured(quantity.from_unit(float(mean)), quantity.error_from_unit(float(error)))
        for quantity, mean, error in zip(asked, means, errors, strict=True)
    }


def with_clip(encoding: Encoding, clip: float) -> Encoding:
    """Return an encoding for another clip: finer or coarser steps, the very same integers."""
    return replace(encoding, clip=clip, scale=encoding.scale * encoding.clip / clip)
