"""Intervals of figures made of noised counts: what the noise hides, what the sample leaves open, and both together.

A share is A / (A + C) of two sums of cells, each cell with noise of its own. Those shares r are in the interval that a
test of A = r (A + C) would not reject, as Wilson's interval is made, with the noise's variance beside the sample's.

Source:
    Fieller, "Some Problems in Interval Estimation", JRSS B 16 (1954); Wilson, JASA 22 (1927);
    docs/spec/queries.md, section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

Z = NormalDist().inv_cdf(0.975)
"""Of an interval of 95 %."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its interval of 95 %.

    Args:
        value: The figure.
        low: Where its interval begins: noise and sampling together.
        high: Where it ends.
        noise: Half the width of the interval that noise alone makes.
        sampling: Half the width of the one that sampling alone makes; examples count as independent.
    """

    value: float
    low: float
    high: float
    noise: float
    sampling: float

    def to_json(self) -> dict[str, float]:
        """Return it as JSON values."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "noise": self.noise,
            "sampling": self.sampling,
        }

    def scaled(self, low: float, span: float) -> Figure:
        """Return it in another unit: ``low + span * value``."""
        return Figure(
            low + span * self.value,
            low + span * self.low,
            low + span * self.high,
            span * self.noise,
            span * self.sampling,
        )


def count(value: float, error: float, cells: int = 1) -> dict[str, Any]:
    """Return a sum of cells with the interval of 95 % that its noise makes.

    Args:
        value: The sum.
        error: Standard deviation of the noise of one cell.
        cells: How many there are.
    """
    half = Z * error * math.sqrt(cells)
    return {"value": value, "low": value - half, "high": value + half}


def share(
    inside: float, outside: float, *, error: float, inside_cells: int, outside_cells: int, z: float = Z
) -> Figure:
    """Return what share of all is inside.

    Args:
        inside: Sum of some cells.
        outside: Sum of the others.
        error: Standard deviation of the noise of one cell.
        inside_cells: How many cells the first sum is of.
        outside_cells: How many the second.
        z: The normal quantile of half the interval's tail.
    """
    total = inside + outside
    if total <= 0:
        return Figure(0.5, 0.0, 1.0, 0.5, 0.5)
    value = min(max(inside / total, 0.0), 1.0)
    variance = error * error

    def between(noise: float, sampling: float) -> tuple[float, float]:
        square = total**2 - z**2 * (noise * (inside_cells + outside_cells) - sampling * total)
        linear = -2 * inside * total - z**2 * (sampling * total - 2 * noise * inside_cells)
        constant = inside**2 - z**2 * noise * inside_cells
        return _within(square, linear, constant, 0.0, 1.0)

    return _figure(value, between(variance, 1.0), between(variance, 0.0), between(0.0, 1.0))


def mean(weight: float, total: float, squares: float, *, error: float) -> Figure:
    """Return a mean on the scale from -1 to 1, of values that are all within it.

    Args:
        weight: How many values there are.
        total: Their sum.
        squares: The sum of their squares.
        error: Standard deviation of the noise of each of the three.
    """
    if weight <= 0:
        return Figure(0.0, -1.0, 1.0, 1.0, 1.0)
    value = min(max(total / weight, -1.0), 1.0)
    variance = error * error
    # Of the values: never more than the range allows (Bhatia and Davis 2000), nor less than the noise may hide.
    hidden = Z * error * math.sqrt(2 + 4 * value**2) / weight
    spread = min(1 - value**2, max(squares / weight - value**2, 0.0) + hidden)

    def between(noise: float, sampling: float) -> tuple[float, float]:
        square = weight**2 - Z**2 * noise
        constant = total**2 - Z**2 * (noise + sampling * weight)
        return _within(square, -2 * total * weight, constant, -1.0, 1.0)

    return _figure(value, between(variance, spread), between(variance, 0.0), between(0.0, spread))


def _figure(
    value: float, both: tuple[float, float], noise: tuple[float, float], sampling: tuple[float, float]
) -> Figure:
    low, high = min(both[0], value), max(both[1], value)
    return Figure(value, low, high, (noise[1] - noise[0]) / 2, (sampling[1] - sampling[0]) / 2)


def _within(square: float, linear: float, constant: float, least: float, most: float) -> tuple[float, float]:
    """Return where a parabola is not above zero, within bounds; all of them where it tells nothing."""
    inner = linear**2 - 4 * square * constant
    if square <= 0 or inner < 0:
        return least, most
    root = math.sqrt(inner)
    low, high = (-linear - root) / (2 * square), (-linear + root) / (2 * square)
    return min(max(low, least), most), min(max(high, least), most)
