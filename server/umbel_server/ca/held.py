"""Private keys that are somebody else's to use: what signs certificates and credentials cannot tell the difference.

cryptography lets programs implement its key classes for keys that it does not hold.
"""

from __future__ import annotations

from typing import Any, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from umbel_server.ca.signer import Signer


class HeldEcKey(ec.EllipticCurvePrivateKey):
    """A P-256 key that a signer has."""

    def __init__(self, signer: Signer) -> None:
        assert isinstance(signer.public, ec.EllipticCurvePublicKey)
        self._signer, self._public = signer, signer.public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Return an ECDSA signature with SHA-256, DER."""
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, Prehashed) or not isinstance(algorithm, hashes.SHA256):
            raise ValueError("The fleet's authority signs with SHA-256.")
        return self._signer.sign(bytes(data))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """In bits."""
        return self._public.key_size

    def exchange(self, *_: Any) -> NoReturn:
        """It does nothing but sign."""
        raise _nothing_else()

    def private_numbers(self) -> NoReturn:
        """It does nothing but sign."""
        raise _nothing_else()

    def private_bytes(self, *_: Any) -> NoReturn:
        """It does nothing but sign."""
        raise _nothing_else()

    def __copy__(self) -> HeldEcKey:
        return self

    def __deepcopy__(self, _memo: Any) -> HeldEcKey:
        return self


class HeldEdKey(ed25519.Ed25519PrivateKey):
    """An Ed25519 key that a signer has."""

    def __init__(self, signer: Signer) -> None:
        assert isinstance(signer.public, ed25519.Ed25519PublicKey)
        self._signer, self._public = signer, signer.public

    def sign(self, data: Any) -> bytes:
        """Return a signature, 64 bytes."""
        return self._signer.sign(bytes(data))

    def public_key(self) -> ed25519.Ed25519PublicKey:
        """Return the public half."""
        return self._public

    def private_bytes_raw(self) -> NoReturn:
        """It does nothing but sign."""
        raise _nothing_else()

    def private_bytes(self, *_: Any) -> NoReturn:
        """It does nothing but sign."""
        raise _nothing_else()

    def __copy__(self) -> HeldEdKey:
        return self

    def __deepcopy__(self, _memo: Any) -> HeldEdKey:
        return self


def _nothing_else() -> TypeError:
    return TypeError("This key is elsewhere, and does nothing but sign.")
