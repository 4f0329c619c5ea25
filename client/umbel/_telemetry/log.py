"""A log: what predictions leave for a window until one of them has them counted: a row of three numbers, or a label alone."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from itertools import cycle, repeat

import numpy as np

ROW = np.dtype([("latency_ns", np.float64), ("confidence", np.float64), ("label", np.int64)])
"""A prediction: how long it took, NaN where it has no confidence, and ``NO_LABEL`` where it has no label."""
NO_LABEL = -1

ROW_OF = 8
"""Of so many predictions one leaves a row, on average, where there are many."""
_PERIOD = 1021

_pack = struct.Struct("=ddq").pack


class Log:
    """What predictions left that nobody has counted yet: of each either a row or, once there are many, its label.

    Any thread appends to ``rows`` and ``labels``, and one at a time takes: each is one step, whatever other threads do,
    so that none waits for another. Numbers in a row leave the processor's cache to the model.

    Args:
        settle: Is given the last input once ``rows`` is ``due`` bytes long, or None if that may not be looked at. It
            never blocks, and sets ``due`` anew.
    """

    __slots__ = ("_some", "due", "labels", "row", "rows", "settle", "whole")

    def __init__(self, settle: Callable[[object], None]) -> None:
        self.rows = bytearray()
        self.labels = bytearray()
        # By chance, and over a prime: what an application repeats does not fall in step with it.
        self._some = cycle([byte < 256 // ROW_OF for byte in os.urandom(_PERIOD)]).__next__
        self.whole: Callable[[], bool] = repeat(True).__next__
        self.due = ROW.itemsize
        self.row: Callable[[float, float, int], bytes] = _pack
        self.settle = settle

    def thin(self, thin: bool) -> None:
        """Have every prediction leave a row from now on, or one in ``ROW_OF`` by chance."""
        self.whole = self._some if thin else repeat(True).__next__

    def taken(self) -> tuple[bytearray, bytearray]:
        """Return rows and labels, and leave none of them. One thread at a time may take."""
        return _emptied(self.rows), _emptied(self.labels)


def _emptied(array: bytearray) -> bytearray:
    part = array[:]
    del array[: len(part)]
    return part
