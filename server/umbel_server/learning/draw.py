"""Devices drawn by lot into a round: how many there must be to draw from.

A draw of fewer than the smallest cohort is forgotten and made again; nobody has heard of it. That
leaves one gap in what drawing in secret hides, and this module keeps it narrow.

Source: docs/spec/privacy.md, 6.2 and 6.2a.
"""

from __future__ import annotations

import math
import secrets

GAP = 1e-3
"""How much of a run's delta the gap may take."""
_BITS = 53


def drawn(rate: float) -> bool:
    """Return true with probability ``rate``, from the operating system: nobody can foresee who is drawn."""
    return secrets.randbits(_BITS) < int(rate * (1 << _BITS))


def gap(online: int, rate: float, least: int) -> float:
    """Return the probability that a round that is held has a device and just enough others.

    Such a round was held because the device was drawn; in all others it is there with probability
    ``rate``, whoever the others are.

    Args:
        online: Devices to draw from, the one in question included.
        rate: With which each is drawn, in (0, 1).
        least: The smallest cohort, at least 2.
    """
    others = online - 1
    if others < least:
        return 1.0  # All of them have to be drawn.
    logs = [_log_binomial(others, count, rate) for count in range(least)]
    below = math.fsum(math.exp(each) for each in logs)
    just = rate * math.exp(logs[-1])
    return min(1.0, just / max(just + 1 - below, just)) if just else 0.0


def fewest_online(rate: float, least: int, *, rounds: int, delta: float) -> int:
    """Return how many devices there must be to draw from.

    Args:
        rate: With which each is drawn, in (0, 1]; at 1, the smallest cohort is enough.
        least: The smallest cohort.
        rounds: The most rounds that are held, attempts counted.
        delta: The run's: the gap takes at most `GAP` of it in all rounds together.
    """
    if rate == 1:
        return least
    most = GAP * delta / rounds
    low, high = least, 2 * math.ceil(least / rate)
    while gap(high, rate, least) > most:
        low, high = high, 2 * high
    while high - low > 1:  # The gap narrows as devices are added.
        middle = (low + high) // 2
        low, high = (middle, high) if gap(middle, rate, least) > most else (low, middle)
    return high


def _log_binomial(trials: int, count: int, rate: float) -> float:
    """Return the logarithm of the probability of ``count`` successes."""
    ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    return ways + count * math.log(rate) + (trials - count) * math.log1p(-rate)
