"""An AES-256 keystream: the source of masks, rotations and privacy noise.

Source: docs/spec/secure-aggregation.md, "PRG".
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 32
TILE_BYTES = 1 << 18  # 256 KiB: the tile and the vector's slice it goes to fit into L2 together.
_LINE = 64  # Bytes of a cache line: arrays that begin on one are added a fifth faster.
SLACK = 16
"""Bytes: the cipher wants room for one more block than it writes."""
_ZEROS = np.zeros(TILE_BYTES, np.uint8)
_ZEROS.setflags(write=False)

Mode = Literal["ctr", "gcm"]


@functools.cache
def fastest_mode() -> Mode:
    """Return the mode that gives the keystream sooner on this machine.

    Both give the same bytes: GCM with a 96-bit nonce encrypts with CTR from counter 2
    (NIST SP 800-38D, section 7.1). OpenSSL's GCM is often faster, as it uses VAES.
    """
    tile = Tile.of(TILE_BYTES)

    def seconds(mode: Mode) -> float:
        stream = Keystream(bytes(KEY_BYTES), mode=mode)
        begin = time.perf_counter()
        for _ in range(4):
            stream.fill(tile)
        return time.perf_counter() - begin

    modes_: tuple[Mode, Mode] = ("gcm", "ctr")
    return min(modes_, key=lambda mode: min(seconds(mode) for _ in range(3)))


def _context(key: bytes, mode: Mode) -> CipherContext:
    if len(key) != KEY_BYTES:
        raise ValueError(f"A keystream key has {KEY_BYTES} bytes, this one {len(key)}.")
    algorithm = algorithms.AES(key)
    if mode == "gcm":
        return Cipher(algorithm, modes.GCM(bytes(12))).encryptor()
    return Cipher(algorithm, modes.CTR(bytes(15) + b"\x02")).encryptor()


def aligned(size: int) -> NDArray[np.uint8]:
    """Return ``size`` zero bytes that begin on a cache line, shape (size,)."""
    memory = np.zeros(size + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    return memory[begin : begin + size]


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Memory for a piece of keystream, used again for the next piece, of the same key or another.

    Args:
        content: What was filled in last, shape (size,), size <= 256 KiB.
        zeros: As many bytes to encrypt.
        room: The memory, a little longer than the content.
    """

    content: NDArray[np.uint8] = field(repr=False)
    zeros: memoryview = field(repr=False)
    room: memoryview = field(repr=False)

    @classmethod
    def of(cls, size: int) -> Tile:
        """Set memory aside for ``size`` bytes."""
        return cls._over(aligned(size + SLACK))

    def first(self, size: int) -> Tile:
        """Return a tile of ``size`` bytes, no more than this one has, in the same memory."""
        return self._over(np.frombuffer(self.room, np.uint8)[: size + SLACK])

    @classmethod
    def _over(cls, memory: NDArray[np.uint8]) -> Tile:
        size = memory.size - SLACK
        if size > TILE_BYTES:  # A stream would leave the rest as it was.
            raise ValueError(f"A tile has {TILE_BYTES} bytes at most, this one {size}.")
        return cls(memory[:size], _ZEROS[:size].data, memory.data)


class Keystream:
    """Bytes of AES-256 in counter mode under one key, nonce 0, counter from 2.

    A key is used for one keystream only. One keystream gives at most 2**36 - 32 bytes, the
    limit of GCM; a vector of 1e9 words stays below it.

    Args:
        key: 32 bytes, used nowhere else; by default fresh from the operating system.
        mode: How to compute it; by default whichever is faster here.
    """

    def __init__(self, key: bytes | None = None, *, mode: Mode | None = None) -> None:
        # What secrets.token_bytes calls. Its module brings hashlib's OpenSSL, 4 MB, to a process that trains.
        own = os.urandom(KEY_BYTES) if key is None else key
        self._context = _context(own, mode or fastest_mode())

    def __repr__(self) -> str:
        return "Keystream(<secret>)"

    def fill(self, tile: Tile) -> None:
        """Write the next bytes over the tile's content."""
        self._context.update_into(tile.zeros, tile.room)

    def read(self, size: int) -> NDArray[np.uint8]:
        """Return the next ``size`` bytes, shape (size,), as an array of the caller's own."""
        out = np.empty(size + SLACK, np.uint8)
        self.read_into(out)
        return out[:size]

    def read_into(self, out: NDArray[np.uint8]) -> None:
        """Write the next bytes over an array, shape (size + SLACK,): ``size`` of them, and nothing behind."""
        size = len(out) - SLACK
        for low in range(0, size, TILE_BYTES):
            count = min(TILE_BYTES, size - low)
            self._context.update_into(_ZEROS[:count].data, out[low : low + count + SLACK].data)

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` words, little-endian, shape (count,)."""
        return self.read(8 * count).view(np.dtype("<u8")).astype(np.uint64, copy=False)
