"""What randomized reports say of what was counted: estimates with intervals, and no figure where nothing is known.

Source: docs/spec/telemetry.md, "Randomized reports".
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from umbel_proto.histogram import Histogram
from umbel_proto.privacy.response import Estimate, Response


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of what devices counted.

    Args:
        value: The quantile, to the width of a cell; None if nothing was counted.
        low: Where its interval of 95 % begins; None where it has no end that a cell tells, or needs no interval.
        high: Where it ends; None likewise.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


def cells(histogram: Histogram) -> tuple[Estimate, ...]:
    """Return how many events were truly in each cell; of counts that are not randomized, exactly."""
    if histogram.epsilon is None:
        return tuple(Estimate(count, count, count) for count in histogram.counts)
    response = Response(len(histogram.counts), histogram.epsilon)
    return tuple(response.estimate(told, histogram.count) for told in histogram.counts)


def quantile(histogram: Histogram, q: float) -> Quantile:
    """Return the value below which a share ``q`` of the events lies.

    Of randomized counts, the interval is made of every cell that the quantile may be in.

    Args:
        histogram: What was reported.
        q: In [0, 1].

    Source:
        Woodruff, "Confidence Intervals for Medians and Other Position Measures", JASA 1952: the interval of a
        quantile is where the interval of the distribution function holds q.
    """
    if histogram.epsilon is None or not histogram.count:
        return Quantile(histogram.quantile(q) if histogram.count else None)
    below = _below(histogram, Response(len(histogram.counts), histogram.epsilon))
    rank = q * histogram.count
    possible = [
        cell
        for cell, (begin, end) in enumerate(itertools.pairwise(below))
        if begin.low
        <= rank
        <= end.high  # What is before it may leave the rank to it, and with it may reach it.
    ]
    ends = (None, *histogram.edges, None)
    return Quantile(_smoothed(histogram, below).quantile(q), ends[possible[0]], ends[possible[-1] + 1])


def _below(histogram: Histogram, response: Response) -> list[Estimate]:
    """Return how many events are truly below each edge, from none of them to all."""
    told, total = list(itertools.accumulate(histogram.counts)), histogram.count
    inner = [response.estimate(count, total, number) for number, count in enumerate(told[:-1], 1)]
    return [Estimate(0, 0, 0), *inner, Estimate(total, total, total)]


def _smoothed(histogram: Histogram, below: list[Estimate]) -> Histogram:
    """Return whole counts that could have been counted, near to the estimates: the distribution made to ascend."""
    within = (round(min(max(each.value, 0), histogram.count)) for each in below)
    ascending = list(itertools.accumulate(within, max))
    return Histogram(histogram.name, histogram.edges, tuple(b - a for a, b in itertools.pairwise(ascending)))
