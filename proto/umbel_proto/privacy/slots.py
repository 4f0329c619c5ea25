"""Several small integers in one 64-bit word, so that adding words adds them all.

A word is ``sum(v[i] * 2**(bits * i)) mod 2**64`` of signed values: a negative value borrows from
the slot above, and reading from the low slot up pays the borrow back.

Source: docs/spec/privacy.md, step 6.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

SLOTS = MappingProxyType({16: 4, 21: 3, 32: 2})
"""Bits of a slot -> slots in a word, the densest layout first."""


def pack(values: NDArray[np.int32], bits: int) -> NDArray[np.uint64]:
    """Return ``values`` as words, shape (ceil(count / slots),).

    Value ``j`` of ``count`` sits in slot ``j // words`` of word ``j % words``, so each slot is
    one contiguous run of values.

    Args:
        values: Shape (count,). Only the value mod ``2**bits`` survives.
        bits: 16, 21 or 32.
    """
    words = np.zeros(-(-values.size // SLOTS[bits]), np.uint64)
    for slot in range(SLOTS[bits]):
        run = values[slot * words.size : (slot + 1) * words.size]
        words[: run.size] += run.astype(np.int64).view(np.uint64) << np.uint64(bits * slot)
    return words


def unpack(words: NDArray[np.uint64], bits: int, count: int) -> NDArray[np.int32]:
    """Return the ``count`` values of a sum of packed words, shape (count,).

    Exact if every true sum lies in ``[-2**(bits-1), 2**(bits-1))``. One outside comes back
    ``2**bits`` off and its neighbor in the slot above one off.
    """
    values = np.empty(count, np.int32)
    rest = words.view(np.int64)
    top = np.int64(64 - bits)
    for slot in range(SLOTS[bits]):
        run = values[slot * words.size : (slot + 1) * words.size]
        low = rest << top >> top
        run[:] = low[: run.size]
        rest = (rest - low) >> np.int64(bits)
    return values
