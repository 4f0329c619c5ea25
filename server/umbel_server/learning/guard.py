"""Whether a sum may be used: not if honest devices cannot have sent it, nor if the model does not survive it.

The gate reads nothing but the decoded sum, so it costs no privacy. It bounds what devices with modified
code can do; what honest code with bad data does is within its bounds.

Source: docs/explanation/poisoning.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel_proto.answers import ACCURACY, R2
from umbel_proto.privacy.auxiliary import Quantity
from umbel_proto.privacy.encode import SHRINK, Encoding
from umbel_server.learning.measure import Measured
from umbel_server.learning.plan import Guard
from umbel_server.store.runs import RoundRecord

SLACK = 2.5
"""Widths of the noise's own norm that a sum may lie above the bound: squared, 6.25 standard deviations."""

MEMORY = 10
"""Rounds that count as recent."""

ENOUGH = 3
"""Rounds before a median is worth holding a sum against."""

DEVIATIONS = 6.0
"""Of its noise, that a quantity's mean may lie outside the quantity's range."""

_TILE = 1 << 16


@dataclass(frozen=True, slots=True)
class Past:
    """What a round is held against.

    Args:
        norms: Of the recent rounds' average updates, model units, oldest first.
        scores: On held-out data after the recent rounds: accuracy, or R^2 of a model that answers with numbers.
    """

    norms: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What the gate read off a sum.

    Args:
        norm: Of the average update without its noise, as estimated, model units.
        limit: The largest that passes.
        reason: Why the sum must not be used; empty if it may.
    """

    norm: float
    limit: float
    reason: str


def past(records: Iterable[RoundRecord]) -> Past:
    """Return what the rounds on record leave to hold the next one against: it survives a restart with them."""
    opened = [record.figures for record in records if record.state == "opened"][-MEMORY:]
    norms = [figures.get("guard", {}).get("norm") for figures in opened]
    scores = [figures.get(ACCURACY, figures.get(R2)) for figures in opened]
    return Past(
        tuple(norm for norm in norms if norm is not None),
        tuple(score for score in scores if score is not None),
    )


def noise_deviation(encoding: Encoding, *, count: int) -> float:
    """Return the standard deviation of a coordinate of the average update, model units.

    Noise, and rounding at its largest.

    Args:
        encoding: The session's.
        count: Devices in the sum, >= 1.
    """
    return math.sqrt((float(encoding.noise) + 0.25) / count) / (encoding.scale * SHRINK)


def estimate(average: NDArray[np.float32], deviation: float) -> float:
    """Return the norm of a vector without the noise on it: sqrt(max(0, ||average||^2 - dim deviation^2)).

    Args:
        average: Shape (dim,).
        deviation: Of the noise on each coordinate.
    """
    squares = 0.0
    for low in range(0, average.size, _TILE):
        wide = average[low : low + _TILE].astype(np.float64)
        squares += float(np.dot(wide, wide))
    return math.sqrt(max(0.0, squares - average.size * deviation**2))


def limit(encoding: Encoding, *, count: int, norms: Sequence[float] = (), factor: float = math.inf) -> float:
    """Return the largest estimate that passes: min(C, factor median) + 2.5 deviation (2 dim)^(1/4).

    Updates of norm C or less have an average of norm C or less. Where that bounds them, the estimate of
    an honest sum exceeds the limit with probability at most P[chi^2_dim > dim + 6.25 sqrt(2 dim)] +
    Q(2.5 (2 dim)^(1/4)), Q the normal tail: 6e-10 at dim = 10,000, 4e-9 at 1,000.

    Args:
        encoding: The session's.
        count: Devices in the sum, >= 1.
        norms: What the sum is held against, model units; fewer than three do not count.
        factor: How many times their median it may be.
    """
    bound = encoding.clip
    if len(norms) >= ENOUGH:
        bound = min(bound, factor * statistics.median(norms))
    return bound + SLACK * noise_deviation(encoding, count=count) * math.sqrt(math.sqrt(2 * encoding.dim))


def read(
    average: NDArray[np.float32],
    measured: Mapping[str, Measured],
    *,
    encoding: Encoding,
    asked: Sequence[Quantity],
    count: int,
    norms: Sequence[float],
    factor: float,
) -> Reading:
    """Hold a sum against what honest devices send.

    Args:
        average: The decoded sum over the number of devices, shape (dim,), model units.
        measured: The quantities beside it.
        encoding: The session's.
        asked: The quantities' ranges.
        count: Devices in the sum, >= 1.
        norms: Of sums that it should be like, model units.
        factor: How many times their median its norm may be.
    """
    norm = estimate(average, noise_deviation(encoding, count=count))
    most = limit(encoding, count=count, norms=norms, factor=factor)
    reason = ""
    if not norm <= most:
        reason = (
            f"the average of {count} updates has norm {norm:.4g} without its noise, and {most:.4g} passes "
            f"at clip {encoding.clip:.4g} and factor {factor:g}: a device may run modified code"
        )
    return Reading(norm, most, reason or _outside(measured, asked))


def _outside(measured: Mapping[str, Measured], asked: Sequence[Quantity]) -> str:
    """Say which quantity no honest devices have as their mean; empty if none."""
    for quantity in asked:
        found = measured[quantity.name]
        room = DEVIATIONS * found.error
        if not quantity.low - room <= found.mean <= quantity.high + room:
            return (
                f"the mean {quantity.name} is {found.mean:.4g}, and honest devices report {quantity.low:g} to "
                f"{quantity.high:g}: a device may run modified code"
            )
    return ""


def dropped(score: float, best: float, rules: Guard, figure: str = ACCURACY) -> str:
    """Say that a round costs the model too much on held-out data; empty if it does not.

    Args:
        score: After the round, at most 1. Below 0, where R^2 knows no bound, it counts as 0.
        best: The best of the recent rounds.
        rules: The run's.
        figure: What a score is called.
    """
    if not rules.max_drop or max(score, 0.0) >= best - rules.max_drop:
        return ""
    return (
        f"held-out {figure} would fall from {best:.3f} to {score:.3f}, by more than max_drop "
        f"{rules.max_drop:g}: the model stays as it was"
    )


def suspects(records: Sequence[RoundRecord]) -> bool:
    """Say whether the last two sums of a round were refused here, and neither came from groups.

    Attempts that gave no sum, such as one that a server died in, do not count.

    Args:
        records: Of one round, by attempt.
    """
    notes = [record.figures.get("guard", {}) for record in records]
    last = [each for each in notes if "refused" in each or "groups" in each][-2:]
    return len(last) == 2 and all("groups" not in each for each in last)
