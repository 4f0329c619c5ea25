"""A sum of clipped gradients, of which large matrices may be left as the two factors they are the product of.

A linear layer's sum is a product over the batch. Whoever adds noise to it block by block multiplies it out block by
block, and never holds it beside the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel.train.blocks import cut

Matrix = NDArray[np.float32]
Multiply = Callable[[Matrix, Matrix, Matrix], None]
"""Writes the product of its first two arguments to the third; on any thread."""


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A matrix within a vector, row after row, in factors.

    Args:
        begin: Where its elements begin.
        rows: The one factor, shape (n, k).
        columns: The other, shape (k, m).
        multiply: Multiplies them.
    """

    begin: int
    rows: Matrix
    columns: Matrix
    multiply: Multiply

    @property
    def end(self) -> int:
        """Where its elements end."""
        return self.begin + len(self.rows) * int(self.columns.shape[1])

    def cut(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield its elements in blocks of whole rows, of about ``size`` at most."""
        width = self.columns.shape[1]
        return cut(self.begin, self.end, max(1, size // width) * width)

    def part(self, low: int, high: int, out: Matrix) -> None:
        """Multiply the elements from one place of the vector to another, whole rows, out to ``out``."""
        width = self.columns.shape[1]
        first, last = (low - self.begin) // width, (high - self.begin) // width
        self.multiply(self.rows[first:last], self.columns, out.reshape(-1, width))


@dataclass(frozen=True, slots=True, eq=False)
class Summed:
    """A sum, shape (dim,).

    Args:
        vector: Its elements but those of the products, which are anything here.
        products: The others, in order.
    """

    vector: NDArray[np.floating]
    products: tuple[Product, ...] = ()

    def finite(self) -> bool:
        """Return whether all elements are finite.

        With finite factors a product's are: those of each example are no longer than the clip.
        """
        factors = (factor for each in self.products for factor in (each.rows, each.columns))
        return all(map(finite, (*(self.vector[low:high] for low, high in self._between()), *factors)))

    def whole(self) -> NDArray[np.floating]:
        """Return it as a vector, shape (dim,), in which all products are multiplied out."""
        for each in self.products:
            each.part(each.begin, each.end, self.vector[each.begin : each.end])
        return self.vector

    def cut(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield its elements in blocks of about ``size`` at most, none in a product and beside it."""
        for each, (low, high) in zip((*self.products, None), self._between(), strict=True):
            yield from cut(low, high, size)
            if each is not None:
                yield from each.cut(size)

    def part(self, low: int, high: int, room: Matrix) -> NDArray[np.floating]:
        """Return the elements of one of such blocks; those of a product in ``room``, shape (high - low,)."""
        for each in self.products:
            if each.begin <= low < each.end:
                each.part(low, high, room)
                return room
        return self.vector[low:high]

    def _between(self) -> Iterator[tuple[int, int]]:
        """Yield where the elements before, between and behind the products begin and end."""
        begins = (0, *(each.end for each in self.products))
        ends = (*(each.begin for each in self.products), len(self.vector))
        return zip(begins, ends, strict=True)


def finite(values: NDArray[np.floating]) -> bool:
    """Return whether all values are finite: by their sum, which takes no memory, where it does not overflow."""
    return bool(np.isfinite(values.sum()) or np.isfinite(values).all())
