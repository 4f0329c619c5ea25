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

_TILE = 1 << 14  # Words whose 64-bit temporaries stay in the cache.


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
        for low in range(0, run.size, _TILE):
            wide = run[low : low + _TILE].astype(np.int64).view(np.uint64)
            wide <<= np.uint64(bits * slot)
            words[low : low + wide.size] += wide
    return words


def unpack(words: NDArray[np.uint64], bits: int, count: int) -> NDArray[np.int32]:
    """Return the ``count`` values of a sum of packed words, shape (count,).

    Exact if every true sum lies in ``[-2**(bits-1), 2**(bits-1))``. One outside comes back
    ``2**bits`` off and its neighbor in the slot above one off.
    """
    values = np.empty(count, np.int32)
    top = np.int64(64 - bits)
    for low in range(0, words.size, _TILE):
        rest = words[low : low + _TILE].astype(np.int64)
        for slot in range(SLOTS[bits]):
            begin = slot * words.size + low
            run = values[begin : min(begin + rest.size, (slot + 1) * words.size)]
            value = rest << top >> top
            run[:] = value[: run.size]
            rest -= value
            rest >>= np.int64(bits)
    return values
