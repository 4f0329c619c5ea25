"""How long the updates of a round were before they were clipped: a histogram of sums, and of no device's own length.

Source: docs/spec/privacy.md, 2.13a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from umbel_proto.privacy.auxiliary import WITHIN

BINS: tuple[tuple[float, float], ...] = tuple(pairwise((0.0, *WITHIN.values(), math.inf)))
"""Lengths in clips of the round, above the first and no longer than the second; 0 is in the first bin."""
WORDS: tuple[str, ...] = ("up to 1/4", "1/4 to 1/2", "1/2 to 1", "1 to 2", "2 to 4", "above 4")
"""What each bin is called."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many of a round's updates were so long.

    Args:
        value: Their share of all in the sum. Noise may take it out of [0, 1].
        error: Its standard deviation from noise and rounding.
    """

    value: float
    error: float


def histogram(metrics: Mapping[str, Any]) -> tuple[Share, ...]:
    """Return the share of each of ``BINS``, which add up to 1; none where the plan did not ask for them all.

    A bin is the difference of two quantities, whose noise is independent: it is less exact than either.

    Args:
        metrics: What a round's devices reported through the secure sum, by name: ``mean`` and ``error``.
    """
    if not all(metrics.get(name) for name in WITHIN):
        return ()
    told = [(metrics[name]["mean"], metrics[name]["error"]) for name in WITHIN]
    return tuple(
        Share(high - low, math.hypot(low_error, high_error))
        for (low, low_error), (high, high_error) in pairwise([(0.0, 0.0), *told, (1.0, 0.0)])
    )
