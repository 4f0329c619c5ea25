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

_QUARTERS = np.arange(256, dtype=np.uint8)[:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
_TURNS = np.array([1, 1j, -1, -1j], np.complex64)[_QUARTERS]
"""The four turns that a byte stands for, its low bits first, shape (256, 4)."""
_TURNS.setflags(write=False)
_TILE = 1 << 13  # Bytes whose turns, 256 KiB, stay in the cache until they are multiplied.


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


def rotate(
    vector: NDArray[np.float32], seed: bytes, *, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return ``vector`` turned at random, shape (padded,), its length kept.

    The halves are read as one complex vector, each entry turned by a multiple of 90 degrees drawn
    from ``seed``, then Fourier transformed. Whatever the input, provided it was chosen without
    the seed, coordinates of the output look normal, with variance ``|vector|**2 / padded``.

    Args:
        vector: Shape (padded,), padded even.
        seed: 32 bytes that all parties of a session know.
        out: Where to put the result, by default a new array; may be ``vector`` itself.
    """
    turned = _paired(vector)
    _turn(turned, seed)
    # A transform of complex64 writes complex64, but numpy's types expect complex128 of ``out``.
    np.fft.fft(turned, norm="ortho", out=turned)  # type: ignore[arg-type]
    return _halves(turned, np.empty_like(vector) if out is None else out)


def unrotate(vector: NDArray[np.float32], seed: bytes) -> NDArray[np.float32]:
    """Return the vector that ``rotate`` turns into ``vector``, shape (padded,)."""
    turned = _paired(vector)
    np.fft.ifft(turned, norm="ortho", out=turned)  # type: ignore[arg-type]
    _turn(turned, seed, back=True)
    return _halves(turned, np.empty_like(vector))


def _turn(vector: NDArray[np.complex64], seed: bytes, *, back: bool = False) -> None:
    """Turn each entry in place: two bits of keystream each, the low bits of a byte first."""
    if len(seed) != KEY_BYTES:
        raise UsageError(f"A rotation seed has {KEY_BYTES} bytes, this one {len(seed)}.")
    packed = Keystream(seed).read(-(-vector.size // 4))
    table = _TURNS.conj() if back else _TURNS
    for low in range(0, packed.size, _TILE):
        part = vector[4 * low : 4 * (low + _TILE)]
        part *= table[packed[low : low + _TILE]].reshape(-1)[: part.size]


def _paired(vector: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Read the halves of ``vector`` as real and imaginary parts, shape (padded / 2,)."""
    half = vector.size // 2
    out = np.empty(half, np.complex64)
    out.real = vector[:half]
    out.imag = vector[half:]
    return out


def _halves(turned: NDArray[np.complex64], out: NDArray[np.float32]) -> NDArray[np.float32]:
    out[: turned.size] = turned.real
    out[turned.size :] = turned.imag
    return out
