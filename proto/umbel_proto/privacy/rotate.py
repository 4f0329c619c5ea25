"""The rotation that spreads an update evenly over its coordinates, and back.

Source: docs/spec/privacy.md, step 2; Ailon & Chazelle, "The Fast Johnson-Lindenstrauss Transform",
SIAM J. Comput. 39(1), 2009, with a Fourier transform of the halves in place of Hadamard's, so that
any even 5-smooth length will do and padding stays below a few percent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import UsageError
from umbel_proto.prg import KEY_BYTES, Keystream

_TURNS = np.array([1, 1j, -1, -1j], np.complex64)
_TURNS.setflags(write=False)


def smooth_length(dim: int) -> int:
    """Return the smallest even number >= ``dim`` with no prime factor above 5.

    A transform of such a length is fast; a large prime factor costs ten times as much.
    """
    best = 1 << max(1, (dim - 1).bit_length())
    fives = 1
    while fives < best:
        odd = fives
        while odd < best:
            doublings = max(1, (-(-dim // odd) - 1).bit_length())
            best = min(best, odd << doublings)
            odd *= 3
        fives *= 5
    return best


def rotate(vector: NDArray[np.float32], seed: bytes) -> NDArray[np.float32]:
    """Return ``vector`` turned at random, shape (padded,), its length kept.

    The halves are read as one complex vector, each entry turned by a multiple of 90 degrees drawn
    from ``seed``, then Fourier transformed. Whatever the input, provided it was chosen without
    the seed, coordinates of the output look normal, with variance ``|vector|**2 / padded``.

    Args:
        vector: Shape (padded,), padded even.
        seed: 32 bytes that all parties of a session know.
    """
    half = vector.size // 2
    turned = np.empty(half, np.complex64)
    turned.real = vector[:half]
    turned.imag = vector[half:]
    turned *= _TURNS[_quarters(half, seed)]
    return _halves(np.fft.fft(turned, norm="ortho"))


def unrotate(vector: NDArray[np.float32], seed: bytes) -> NDArray[np.float32]:
    """Return the vector that ``rotate`` turns into ``vector``, shape (padded,)."""
    half = vector.size // 2
    turned = np.empty(half, np.complex64)
    turned.real = vector[:half]
    turned.imag = vector[half:]
    turned = np.fft.ifft(turned, norm="ortho").astype(np.complex64, copy=False)
    turned *= _TURNS[-_quarters(half, seed) & 3]
    return _halves(turned)


def _quarters(count: int, seed: bytes) -> NDArray[np.uint8]:
    """Return ``count`` quarter turns in 0..3: two bits each, the low bits of a byte first."""
    if len(seed) != KEY_BYTES:
        raise UsageError(f"A rotation seed has {KEY_BYTES} bytes, this one {len(seed)}.")
    packed = Keystream(seed).read(-(-count // 4))
    quarters = np.empty((packed.size, 4), np.uint8)
    for place in range(4):
        quarters[:, place] = packed >> (2 * place) & 3
    return quarters.reshape(-1)[:count]


def _halves(turned: NDArray[np.complexfloating]) -> NDArray[np.float32]:
    out = np.empty(2 * turned.size, np.float32)
    out[: turned.size] = turned.real
    out[turned.size :] = turned.imag
    return out
