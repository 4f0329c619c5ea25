"""A log: what predictions leave for a window, a row of three numbers each, until one of them has them counted."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

ROW = np.dtype([("latency_ns", np.float64), ("confidence", np.float64), ("label", np.int64)])
"""A prediction: how long it took, NaN where it has no confidence, and ``NO_LABEL`` where it has no label."""
NO_LABEL = -1

_pack = struct.Struct("=ddq").pack


class Log:
    """Rows of predictions that nobody has counted yet.

    Any thread appends to ``rows``, and one at a time takes: each is one step, whatever other threads do, so that
    none waits for another. Numbers in a row leave the processor's cache to the model.

    Args:
        settle: Is given the last input once ``rows`` is ``due`` bytes long, or None if that may not be looked at. It
            never blocks, and sets ``due`` anew.
    """

    __slots__ = ("due", "row", "rows", "settle")

    def __init__(self, settle: Callable[[object], None]) -> None:
        self.rows = bytearray()
        self.due = ROW.itemsize
        self.row: Callable[[float, float, int], bytes] = _pack
        self.settle = settle

    def taken(self) -> bytearray:
        """Return the rows and leave none of them. One thread at a time may take."""
        part = self.rows[:]
        del self.rows[: len(part)]
        return part
