"""Whose nodes the SuperLink refuses: those of devices that are revoked, quarantined, or have other keys by now.

Flower would let a node in for as long as it is registered.
"""

from __future__ import annotations

import base64
import binascii
import functools
import logging
import time
from collections.abc import Callable, Collection

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from umbel_proto.errors import StorageError, UnavailableError

NODE_KEY_HEADER = b"flwr-public-key"
"""Names the caller's node key, base64 of PEM; Flower checks the signature that goes with it."""
EVERY_S = 2.0
"""A device that was shut out this long ago is out."""

log = logging.getLogger(__name__)


class ShutOut:
    """Tells whether a node is refused.

    Args:
        keys: Returns the node keys (SubjectPublicKeyInfo, DER) of all that are.
        clock: Seconds that never go back.
    """

    def __init__(
        self, keys: Callable[[], Collection[bytes]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys, self._clock = keys, clock
        self._refused: frozenset[bytes] = frozenset()
        self._next_s = float("-inf")

    def __call__(self, header: bytes) -> bool:
        """Return whether the node whose key a request's header names is refused."""
        if self._clock() >= self._next_s:
            self._next_s = self._clock() + EVERY_S
            try:
                self._refused = frozenset(map(_pem, self._keys()))
            except (StorageError, UnavailableError) as exc:
                log.warning("who is shut out was not read, and stays as it was: %s", exc)
        try:
            # As Flower reads it: base64 may write the same bytes in several ways.
            return base64.b64decode(header, validate=True) in self._refused
        except (binascii.Error, ValueError):
            return False  # Flower refuses what it cannot read.


@functools.lru_cache(maxsize=100_000)
def _pem(der: bytes) -> bytes:
    return load_der_public_key(der).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
