"""Normal values out of a keystream, by the ziggurat method: of a hundred one costs more than a product.

The half under exp(-x**2 / 2) is covered by as many layers of equal area. A word's low bits choose a layer and the
others a place in it. Nearly every place lies under the curve whatever its height; of the rest a second word draws
the height, and what lies above the curve is drawn again. The lowest layer goes on into the tail.

Source: Marsaglia, Tsang, "The Ziggurat Method for Generating Random Variables", J. Stat. Softw. 5(8), 2000. Layer
and place come from different bits: Doornik, "An Improved Ziggurat Method to Generate Normal Random Samples", 2005.
"""

from __future__ import annotations

import functools
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from umbel_proto.prg import SLACK, Keystream, aligned

_BITS = 9
_LAYERS = 1 << _BITS
_TAIL = "3.85204615036839124811789769722224772"
"""Where the lowest layer's tail begins."""
_AREA = "0.00245676635154135573373275663838710"
"""Of each layer. With the tail it is what lets the uppermost one end at height 1."""
_DIGITS = 34
"""That a layer's edges are computed with: the last of 512 follows from all others."""

MOST = 1 << 17
"""Values that are drawn at once, at most."""

_UNIT = 2.0**-64

_Values = NDArray[np.float64]


class Normal:
    """Draws independent standard normal values, in memory of its own.

    Args:
        size: How many values it is to draw at once at most.

    Attributes:
        size: How many it does; never more than ``MOST``.
    """

    def __init__(self, size: int) -> None:
        self.size = max(1, min(size, MOST))
        room = self.size + _spare(self.size)
        self._words = aligned(8 * room + SLACK)
        self._layer, self._late = np.empty(room, np.intp), np.empty(room, bool)
        self._x, self._edge = np.empty(room), np.empty(room)

    def fill(self, out: _Values, stream: Keystream) -> None:
        """Fill an array, shape (n,), with independent values."""
        for low in range(0, len(out), self.size):
            part = out[low : low + self.size]
            part[:] = self.draw(len(part), stream)

    def draw(self, count: int, stream: Keystream) -> _Values:
        """Return as many independent values, ``size`` at most, shape (count,): the caller's until the next call.

        None is beyond 14.
        """
        edges, _ = _layers()
        room = count + _spare(count)
        stream.read_into(self._words[: 8 * room + SLACK])
        place = self._words[: 8 * room].view(np.dtype("<i8"))
        layer, late, x, edge = self._layer[:room], self._late[:room], self._x[:room], self._edge[:room]
        np.bitwise_and(place, _LAYERS - 1, out=layer)
        np.take(edges * 2.0**-63, layer, out=edge, mode="clip")
        x[:] = place  # The layer's bits move a place by less than 2**-54 of its layer.
        x *= edge
        np.take(edges[1:], layer, out=edge, mode="clip")
        np.greater_equal(np.abs(x, out=place.view(np.float64)), edge, out=late)
        refused = self._settle(x, np.flatnonzero(late), layer, stream)
        # More values than asked for were drawn, for the places of those that were refused.
        holes, kept = refused[refused < count], np.ones(room, bool)
        kept[:count], kept[refused] = False, False
        spare = np.flatnonzero(kept)[: len(holes)]
        x[holes[: len(spare)]] = x[spare]
        if len(spare) < len(holes):
            rest = holes[len(spare) :]
            x[rest] = Normal(len(rest)).draw(len(rest), stream)
        return x[:count]

    def _settle(
        self, x: _Values, late: NDArray[np.intp], layers: NDArray[np.intp], stream: Keystream
    ) -> NDArray[np.intp]:
        """Return which values lie above the curve, of those that may; give those of the tail theirs."""
        edges, heights = _layers()
        near, layer = x[late], layers[late]
        low = heights[layer]
        height = low + _uniform(len(late), stream) * (heights[layer + 1] - low)
        under = height < np.exp(-0.5 * near * near)
        tail = np.flatnonzero(layer == 0)
        under[tail] = True
        x[late[tail]] = np.copysign(_tail(len(tail), edges[1], stream), near[tail])
        return late[~under]


def gaussian(count: int, stream: Keystream) -> _Values:
    """Return independent standard normal values, shape (count,)."""
    out = np.empty(count)
    Normal(count).fill(out, stream)
    return out


def _spare(count: int) -> int:
    """Return how many values more to draw: twice as many as are refused on average, and some."""
    return (count >> 7) + 8


def _uniform(count: int, stream: Keystream) -> _Values:
    """Return numbers in (0, 1], shape (count,)."""
    values: _Values = (stream.uint64(count).astype(np.float64) + 1.0) * _UNIT
    return values


def _tail(count: int, begin: float, stream: Keystream) -> _Values:
    """Return normal values beyond ``begin``, shape (count,).

    Source: Marsaglia, "Generating a Variable from the Tail of the Normal Distribution", Technometrics 6(1), 1964.
    """
    found = np.empty(0)
    while len(found) < count:
        beyond = np.log(_uniform(count + 1, stream)) / -begin
        kept = -2.0 * np.log(_uniform(count + 1, stream)) > beyond * beyond
        found = np.append(found, begin + beyond[kept])
    return found[:count]


@functools.cache
def _layers() -> tuple[_Values, _Values]:
    """Return the layers' right edges, from the lowest to 0 above the uppermost, and the curve there, (layers + 1,).

    The lowest layer's is that of a rectangle of its height and area, the tail's included.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        area, edges = Decimal(_AREA), [Decimal(_TAIL)]
        heights = [(-edges[0] * edges[0] / 2).exp()]
        for _ in range(_LAYERS - 2):
            heights.append(heights[-1] + area / edges[-1])
            edges.append((-2 * heights[-1].ln()).sqrt())
        edges = [area / heights[0], *edges, Decimal(0)]
        heights = [Decimal(0), *heights, Decimal(1)]
        return np.array([float(edge) for edge in edges]), np.array([float(height) for height in heights])
