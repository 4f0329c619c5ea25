"""The masks that hide an update: one keystream per neighbor, one of the device's own.

Source: docs/spec/secure-aggregation.md, "Masks".
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from umbel_proto.encoding import digest, enc
from umbel_proto.errors import VerificationError
from umbel_proto.ids import DeviceId
from umbel_proto.prg import KEY_BYTES, TILE_BYTES, Keystream, Tile, aligned

Words = NDArray[np.uint64]
"""Elements of Z / 2**64, shape (words,)."""

MASK_LABEL = "umbel/1/mask"
SELF_LABEL = "umbel/1/self"
WORD_BYTES = 8
_LITTLE_ENDIAN = np.dtype("<u8")


def zeros(count: int) -> Words:
    """Return ``count`` zero words where masks are added fastest, shape (count,)."""
    return aligned(WORD_BYTES * count).view(np.uint64)


def add_masks(words: Words, *, plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()) -> None:
    """Add to ``words``, in place and modulo 2**64, the keystreams of some keys; subtract others'.

    A tile of each keystream goes straight into one slice of the sum, then the next tile of each
    into the next slice: a mask never exists as a whole, and the slice stays in the cache.

    Args:
        words: Contiguous, shape (words,); best from ``zeros``.
        plus: Keys whose keystream is added, 32 bytes each.
        minus: Keys whose keystream is subtracted.
    """
    up, down = [Keystream(key) for key in plus], [Keystream(key) for key in minus]
    whole = Tile.of(min(TILE_BYTES, WORD_BYTES * words.size))
    for low in range(0, words.size, TILE_BYTES // WORD_BYTES):
        part = words[low : low + TILE_BYTES // WORD_BYTES]
        tile = whole.first(WORD_BYTES * part.size)
        content = tile.content.view(_LITTLE_ENDIAN)
        for streams, accumulate in ((up, np.add), (down, np.subtract)):
            for stream in streams:
                stream.fill(tile)
                accumulate(part, content, part)


def agree(private: X25519PrivateKey, public: bytes, info: bytes) -> bytes:
    """Return the 32-byte key two devices share, for the one use that ``info`` names.

    Raises:
        VerificationError: The public key has small order: its owner would know the result.
    """
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as exc:
        raise VerificationError("The X25519 public key is not usable.") from exc
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(shared)


def pair_key(
    private: X25519PrivateKey,
    public: bytes,
    *,
    pair: tuple[DeviceId, DeviceId],
    sid: bytes,
    roster_hash: bytes,
    model_hash: bytes,
) -> bytes:
    """Return the key of the mask that two devices share.

    The lower id adds it and the higher subtracts it, so it leaves the sum. A device that
    was given another model, session or roster derives another key, and the sum is noise.

    Args:
        private: One's mask key.
        public: The other's, 32 bytes.
        pair: Both ids, in either order.
        sid: The session.
        roster_hash: The roster.
        model_hash: Of the model bytes that this device trained on.

    Raises:
        VerificationError: The public key has small order.
    """
    return agree(private, public, enc(MASK_LABEL, sid, roster_hash, model_hash, min(pair), max(pair)))


def self_key(seed: bytes, *, sid: bytes, roster_hash: bytes) -> bytes:
    """Return the key of the mask that only the device with this seed adds."""
    return digest(SELF_LABEL, sid, roster_hash, seed)
