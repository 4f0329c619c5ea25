"""Many tests at once: one p-value of two measures, and which of many features stand out.

Source:
    Liu, Xie, "Cauchy Combination Test", JASA 115 (2020), arXiv:1808.09011, theorem 1: the tail of the combination is
    right however the tests depend on each other.
    Benjamini, Hochberg, "Controlling the False Discovery Rate", JRSS B 57 (1995); Benjamini, Yekutieli, Annals of
    Statistics 29 (2001), theorem 1.2: it holds as well where tests depend positively on each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_LEAST = 1e-15  # Below it the tangent is 1 / (pi p) to all digits.


def combined(p_values: Sequence[float]) -> float:
    """Return one p-value of several about the same question.

    Args:
        p_values: At least one, each in [0, 1].
    """
    total = sum(map(_cotangent, p_values)) / len(p_values)
    if total > 1 / _LEAST:
        return 1 / (math.pi * total)
    return min(max(0.5 - math.atan(total) / math.pi, 0.0), 1.0)


def adjusted(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Benjamini's and Hochberg's adjusted p-values, in the order given.

    What is at most a level is a finding at it: of all findings no more than that share are false on average, and where
    nothing has changed, there is any with that chance.
    """
    n = len(p_values)
    least, found = 1.0, [1.0] * n
    for rank, place in sorted(enumerate(sorted(range(n), key=p_values.__getitem__), 1), reverse=True):
        least = min(least, p_values[place] * n / rank)
        found[place] = least
    return tuple(found)


def _cotangent(p: float) -> float:
    if p < _LEAST:
        return 1 / (math.pi * max(p, 1e-300))
    return math.tan((0.5 - min(p, 1 - _LEAST)) * math.pi)
