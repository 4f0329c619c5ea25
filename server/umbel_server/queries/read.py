"""What a query's noised sum says: figures with intervals. Pure functions of the sum; nothing of it is asked again.

Source: docs/spec/queries.md, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel_proto.analytics.query import COUNTS, FAIRNESS, HISTOGRAM, MEAN, Query
from umbel_server.monitor.rates import difference
from umbel_server.queries.interval import Figure, count, mean, share

Sum = NDArray[np.float64]

LEVEL = 0.05
LEAST = 3.0
"""So many standard deviations of noise a sum must be above zero for a share of it to be shown."""
TN, FP, FN, TP = range(COUNTS)


def read(
    query: Query,
    total: Sum,
    *,
    error: float,
    names: Sequence[str] = (),
    ends: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return what a sum says, as JSON values.

    Args:
        query: The question.
        total: The decoded sum, shape (query.dim,), in examples.
        error: Standard deviation of the noise of each number in it.
        names: Of the labels, in their order.
        ends: Between which values numbers are, known beforehand; None: the first and last edge.
    """
    match query.kind:
        case "mean":
            return _mean(query, total, error)
        case "fairness":
            return _fairness(query, total, error)
        case "quantile":
            return _quantiles(query, total, error, ends)
        case _:
            return _histogram(query, total, error, names)


def _histogram(query: Query, total: Sum, error: float, names: Sequence[str]) -> dict[str, Any]:
    counts = total[: query.cells]
    known = float(counts.sum())
    told = known > LEAST * error * query.cells**0.5
    cells = []
    for number, value in enumerate(counts.tolist()):
        figure = share(value, known - value, error=error, inside_cells=1, outside_cells=query.cells - 1)
        cells.append(
            {
                **_bounds(query.edges, number),
                **({"label": names[number]} if names else {}),
                "count": count(value, error),
                "share": figure.to_json() if told else None,
            }
        )
    return {
        "examples": count(known, error, query.cells),
        "missing": count(float(total[-1]), error),
        "cells": cells,
    }


def _mean(query: Query, total: Sum, error: float) -> dict[str, Any]:
    weight, values, squares = total.tolist()
    told = weight > LEAST * error
    half = (query.high - query.low) / 2
    figure = mean(weight, values, squares, error=error).scaled(query.low + half, half)
    spread = max(squares / weight - (values / weight) ** 2, 0.0) ** 0.5 if told else 0.0
    return {
        "examples": count(weight, error),
        "mean": figure.to_json() if told else None,
        "deviation": spread * half if told else None,
    }


def _quantiles(query: Query, total: Sum, error: float, ends: tuple[float, float] | None) -> dict[str, Any]:
    counts = total[:-1]
    known = float(counts.sum())
    below = np.cumsum(counts)[:-1]
    told = known > LEAST * error * query.cells**0.5
    low, high = ends or (query.edges[0], query.edges[-1])
    places = np.array([min(low, query.edges[0]), *query.edges, max(high, query.edges[-1])])
    # Noise makes a distribution fall: between the largest so far and the least to come it rises.
    risen = (np.maximum.accumulate(below) + np.minimum.accumulate(below[::-1])[::-1]) / 2
    rises = np.array([0.0, *np.clip(risen / known, 0, 1), 1.0]) if told else np.zeros(0)
    found = []
    for wanted in query.quantiles:
        line: dict[str, Any] = {"quantile": wanted, "figure": None}
        if told:
            value = float(np.interp(wanted, rises, places))
            both = _quantile_interval(wanted, below, known, places, error, sampling=True)
            noise = _quantile_interval(wanted, below, known, places, error, sampling=False)
            alone = _quantile_interval(wanted, below, known, places, 0.0, sampling=True)
            figure = Figure(
                value,
                min(both[0], value),
                max(both[1], value),
                (noise[1] - noise[0]) / 2,
                (alone[1] - alone[0]) / 2,
            )
            line["figure"] = figure.to_json()
        found.append(line)
    return {
        "examples": count(known, error, query.cells),
        "missing": count(float(total[-1]), error),
        "quantiles": found,
    }


def _quantile_interval(
    wanted: float, below: Sum, known: float, places: Sum, error: float, *, sampling: bool
) -> tuple[float, float]:
    """Return between which edges a quantile is.

    From either end, edges are passed for as long as they are certainly on the wrong side of it. Only the first edge
    on the right side could be passed by mistake, so the level holds for one test and not for many.
    """
    cells = below.size + 1
    sides = []
    for number, value in enumerate(below.tolist(), 1):
        figure = share(value, known - value, error=error, inside_cells=number, outside_cells=cells - number)
        at = (
            (figure.low, figure.high)
            if sampling
            else (figure.value - figure.noise, figure.value + figure.noise)
        )
        sides.append(-1 if at[1] < wanted else 1 if at[0] > wanted else 0)
    first = next((number for number, side in enumerate(sides) if side >= 0), len(sides))
    last = next((number for number, side in enumerate(reversed(sides)) if side <= 0), len(sides))
    return float(places[first]), float(places[len(places) - 1 - last])


def _fairness(query: Query, total: Sum, error: float) -> dict[str, Any]:
    table = total.reshape(query.cohorts, COUNTS)
    everybody = table.sum(axis=0)
    z = -NormalDist().inv_cdf(LEVEL / 2 / max(3 * query.cohorts, 1))
    cohorts, points = [], []
    for number, own in enumerate(table):
        others = everybody - own
        lines: dict[str, Any] = {}
        for name, (inside, outside) in _RATES.items():
            mine = _rate(own, inside, outside, error)
            # Of the others every cell is a sum of several, with the noise of each.
            wide = error * (query.cohorts - 1) ** 0.5
            theirs = _rate(others, inside, outside, wide)
            gap = None
            if mine is not None and theirs is not None and name in _COMPARED:
                left, right = (
                    _interval(each, inside, outside, deviation, z)
                    for each, deviation in ((own, error), (others, wide))
                )
                apart = difference(left, right)
                gap = {"value": apart.value, "low": apart.low, "high": apart.high, "certain": apart.certain}
            lines[name] = {"figure": None if mine is None else mine.to_json(), "against_others": gap}
        points.append({name: each["figure"] for name, each in lines.items()})
        shown = lines["selection_rate"]["figure"] is not None
        cohorts.append(
            {
                **_bounds(query.cohort_edges, number),
                "examples": count(float(own.sum()), error, COUNTS) if shown else None,
                "suppressed": not shown,
                "rates": lines,
            }
        )
    wide = error * query.cohorts**0.5
    overall = {name: _rate(everybody, *cells, wide) for name, cells in _RATES.items()}
    return {
        "examples": count(float(everybody.sum()), wide, COUNTS),
        "overall": {name: None if each is None else each.to_json() for name, each in overall.items()},
        "cohorts": cohorts,
        "differences": {name: _widest([each[name] for each in points]) for name in _COMPARED},
        "chance_of_a_false_gap": LEVEL,
    }


_COMPARED = ("selection_rate", "true_positive_rate", "false_positive_rate")
_RATES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "selection_rate": ((FP, TP), (TN, FN)),
    "true_positive_rate": ((TP,), (FN,)),
    "false_positive_rate": ((FP,), (TN,)),
    "accuracy": ((TN, TP), (FP, FN)),
    "base_rate": ((FN, TP), (TN, FP)),
}
"""Of each rate: what it counts, and what else it is of."""


def _rate(of: Sum, inside: tuple[int, ...], outside: tuple[int, ...], error: float) -> Figure | None:
    """Return a rate; None where there is too little to tell one."""
    cells = len(inside) + len(outside)
    sums = float(of[list(inside)].sum()), float(of[list(outside)].sum())
    # A few examples tell nothing that noise, or one person's case, does not.
    if sum(sums) < max(LEAST * error * cells**0.5, LEAST):
        return None
    return share(*sums, error=error, inside_cells=len(inside), outside_cells=len(outside))


def _interval(
    of: Sum, inside: tuple[int, ...], outside: tuple[int, ...], error: float, z: float
) -> tuple[float, float, float]:
    figure = share(
        float(of[list(inside)].sum()),
        float(of[list(outside)].sum()),
        error=error,
        inside_cells=len(inside),
        outside_cells=len(outside),
        z=z,
    )
    return figure.value, figure.low, figure.high


def _widest(figures: Sequence[dict[str, float] | None]) -> float | None:
    """Return how far the cohorts that are shown lie apart."""
    values = [each["value"] for each in figures if each is not None]
    return max(values) - min(values) if len(values) > 1 else None


def _bounds(edges: tuple[float, ...], number: int) -> dict[str, float | None]:
    """Return from where to where a cell goes; None: it has no end on that side."""
    if not edges:
        return {}
    return {
        "from": edges[number - 1] if number else None,
        "to": edges[number] if number < len(edges) else None,
    }


def expected(query: Query, *, devices: int, error: float) -> dict[str, Any]:
    """Return how exact an answer will be if every device counts as much as it may, before anything is asked.

    Args:
        query: The question.
        devices: How many answer.
        error: Standard deviation of the noise of each number of their sum.
    """
    examples = float(devices * query.per_device)
    if query.kind == MEAN:
        half = (query.high - query.low) / 2
        figure = mean(examples, 0.0, examples / 3, error=error).scaled(query.low + half, half)
        return {"of": f"the mean of {query.field}", "examples": examples, **_widths(figure)}
    if query.kind == FAIRNESS:
        own = examples / query.cohorts
        figure = share(own / 2, own / 2, error=error, inside_cells=2, outside_cells=2)
        return {"of": "the selection rate of a cohort", "examples": own, **_widths(figure)}
    if query.kind == HISTOGRAM:
        one = examples / query.cells
        figure = share(one, examples - one, error=error, inside_cells=1, outside_cells=query.cells - 1)
        return {"of": "the share of a cell", "examples": examples, **_widths(figure)}
    low = query.cells // 2
    figure = share(examples / 2, examples / 2, error=error, inside_cells=low, outside_cells=query.cells - low)
    return {"of": "the rank of the median, as a share", "examples": examples, **_widths(figure)}


def _widths(figure: Figure) -> dict[str, float]:
    return {
        "half_width": (figure.high - figure.low) / 2,
        "noise": figure.noise,
        "sampling": figure.sampling,
    }
