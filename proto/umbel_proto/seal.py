"""Sealed envelopes: what a device reports is readable only by the holder of the fleet's telemetry key.

One single-shot HPKE seal in base mode for each batch. The header travels in clear beside the
ciphertext and is bound to it through HPKE's ``info``, as the bytes received: a changed header
does not open. Base mode says nothing about the sender; the mutual TLS connection does.

Suite 1 is X-Wing (ML-KEM-768 with X25519), HKDF-SHA256 and AES-256-GCM: what is recorded today
stays closed to a quantum computer tomorrow.

Source: RFC 9180; draft-connolly-cfrg-xwing-kem; docs/spec/telemetry.md.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from umbel_proto.encoding import digest, enc
from umbel_proto.errors import UsageError, VerificationError

SUITE_XWING = 1
SEAL_LABEL = "umbel/1/telemetry"
ENCAPSULATED_BYTES = 1120  # X-Wing: an ML-KEM-768 ciphertext (1088), then an X25519 share (32).
TAG_BYTES = 16
OVERHEAD_BYTES = ENCAPSULATED_BYTES + TAG_BYTES

_MLKEM_PUBLIC_BYTES = 1184
_PUBLIC_BYTES = _MLKEM_PUBLIC_BYTES + 32
_SEED_BYTES = 32
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class SealPublicKey:
    """The key that devices seal to.

    Args:
        raw: X-Wing's encapsulation key, 1216 bytes: ML-KEM-768's, then X25519's.
        suite: How to use it; ``SUITE_XWING`` is the only one.
    """

    raw: bytes = field(repr=False)
    suite: int = SUITE_XWING
    _key: MLKEM768X25519PublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_suite(self.suite)
        if len(self.raw) != _PUBLIC_BYTES:
            raise UsageError(f"A telemetry key has {_PUBLIC_BYTES} bytes, this one {len(self.raw)}.")
        try:
            key = MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(self.raw[:_MLKEM_PUBLIC_BYTES]),
                X25519PublicKey.from_public_bytes(self.raw[_MLKEM_PUBLIC_BYTES:]),
            )
        except ValueError as exc:
            raise UsageError("The telemetry key is not an X-Wing public key.") from exc
        object.__setattr__(self, "_key", key)

    @property
    def key_id(self) -> str:
        """The key's name in every header: 16 hex digits of its hash."""
        return digest("umbel/1/seal-key", self.suite, self.raw)[:8].hex()


@dataclass(frozen=True, slots=True)
class SealPrivateKey:
    """The key that opens envelopes. Its repr shows nothing of it.

    Args:
        raw: X-Wing's decapsulation key, a seed of 32 bytes.
        suite: How to use it; ``SUITE_XWING`` is the only one.
    """

    raw: bytes = field(repr=False)
    suite: int = SUITE_XWING
    public: SealPublicKey = field(init=False, compare=False)
    _key: MLKEM768X25519PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_suite(self.suite)
        if len(self.raw) != _SEED_BYTES:
            raise UsageError(f"A telemetry private key has {_SEED_BYTES} bytes, this one {len(self.raw)}.")
        # X-Wing's expandDecapsulationKey: 64 bytes seed ML-KEM-768, 32 are the X25519 key.
        expanded = hashlib.shake_256(self.raw).digest(96)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
        public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        object.__setattr__(self, "public", SealPublicKey(public, self.suite))
        object.__setattr__(self, "_key", MLKEM768X25519PrivateKey(mlkem, x25519))


def generate_keypair() -> tuple[SealPrivateKey, SealPublicKey]:
    """Return a new pair of keys from the operating system's randomness."""
    private = SealPrivateKey(secrets.token_bytes(_SEED_BYTES))
    return private, private.public


def seal(public_key: SealPublicKey, header: bytes, plaintext: bytes) -> bytes:
    """Return ``plaintext`` sealed to a key and bound to a header.

    Args:
        public_key: Whose holder may open it.
        header: What travels beside it in clear, exactly as it will be sent.
        plaintext: The secret.

    Returns:
        The encapsulated key, the ciphertext and its tag: ``OVERHEAD_BYTES`` more than the plaintext.
    """
    return _SUITE.encrypt(plaintext, public_key._key, enc(SEAL_LABEL, header))


def open_sealed(private_key: SealPrivateKey, header: bytes, ciphertext: bytes) -> bytes:
    """Return what was sealed to this key beside exactly this header.

    Raises:
        VerificationError: Another key, another header, or altered bytes; which of them, nobody can tell.
    """
    try:
        return _SUITE.decrypt(ciphertext, private_key._key, enc(SEAL_LABEL, header))
    except (InvalidTag, ValueError) as exc:
        raise VerificationError(
            "The envelope does not open: it was sealed to another key, or altered on the way."
        ) from exc


def _check_suite(suite: int) -> None:
    if suite != SUITE_XWING:
        raise UsageError(f"Sealing suite {suite} is unknown here: update umbel.")
