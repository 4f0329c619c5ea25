"""Noise that is drawn while the gradients it will hide are computed, and put onto their sum.

A runtime that computes the gradients of a large network leaves Python alone for milliseconds. The noise of a few
million parameters takes as long.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from umbel.train.blocks import Work, at_once, in_blocks
from umbel.train.summed import Summed
from umbel_proto.prg import Keystream
from umbel_proto.privacy.gaussian import Grains, draw, noised
from umbel_proto.privacy.normal import Normal

MOST = 1 << 23
"""Values that are drawn ahead at most, 32 MiB of them: of a smaller network's step they are all there are."""

AT_ONCE = 1 << 16
"""Values that are drawn at once: of a thousand each would cost four times as much, for the steps of numpy."""


class Ahead:
    """Draws noise on one thread for another, and with it.

    Args:
        pool: The thread to draw on; None where nothing is drawn ahead.
        count: How many values a step needs.
    """

    def __init__(self, pool: ThreadPoolExecutor | None, count: int) -> None:
        self._pool = pool
        self._grains = np.empty(0 if pool is None else min(count, MOST), np.int32)
        self._own = Normal(min(count - len(self._grains), AT_ONCE))
        self._other = Normal(min(0 if pool is None else count, AT_ONCE))
        self._size = at_once(pool, count)
        # Made anew for each block, its pages would be too.
        self._rooms = np.empty((1 if pool is None else 2, self._size))
        self._products = np.empty((len(self._rooms), 0), np.float32)
        self._drawn: Future[None] | None = None

    def begin(self) -> None:
        """Begin to draw for the next step, under a key fresh from the operating system."""
        if self._pool is not None:
            self._drawn = self._pool.submit(draw, self._grains, self._other, Keystream())

    def take(self) -> Grains:
        """Wait for what was begun, and return it, shape (n,): for one step, which uses it up."""
        if self._drawn is None:
            return self._grains[:0]
        self._drawn.result()
        self._drawn = None
        return self._grains

    def onto(
        self, summed: Summed, *, deviation: float, stream: Keystream, divisor: float
    ) -> NDArray[np.floating]:
        """Return a sum with noise, shape (dim,): see ``noised``. What was not drawn ahead is drawn now.

        It takes the place of the noise where all was drawn ahead, or else of the sum.
        """
        drawn = self.take()
        released = drawn.view(np.float32) if len(drawn) == len(summed.vector) else summed.vector
        blocks = list(summed.cut(self._size))
        longest = max(high - low for low, high in blocks)
        if summed.products and self._products.shape[1] < longest:
            self._products = np.empty((len(self._rooms), longest), np.float32)

        def put(
            normal: Normal, stream: Keystream, room: NDArray[np.float64], product: NDArray[np.float32]
        ) -> Work:
            def work(low: int, high: int) -> None:
                noised(
                    summed.part(low, high, product[: high - low]),
                    deviation=deviation,
                    stream=stream,
                    out=released[low:high],
                    drawn=drawn[low:high],
                    normal=normal,
                    room=room,
                    divisor=divisor,
                )

            return work

        in_blocks(
            self._pool,
            len(released),
            put(self._own, stream, self._rooms[0], self._products[0]),
            put(self._other, Keystream(), self._rooms[-1], self._products[-1]),
            blocks,
        )
        return released
