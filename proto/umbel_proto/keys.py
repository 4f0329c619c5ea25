"""Keys whose repr hides secrets, and signatures over labelled bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from umbel_proto.encoding import enc
from umbel_proto.errors import UsageError, VerificationError

SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """An Ed25519 public key.

    Args:
        raw: 32 bytes (RFC 8032).
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != PUBLIC_KEY_BYTES:
            raise UsageError(f"An Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, this one {len(self.raw)}.")

    @classmethod
    def read(cls, content: bytes) -> VerifyKey:
        """Read what a file of a public key holds: its 32 bytes, or PEM.

        Raises:
            UsageError: It holds something else.
        """
        if len(content) == PUBLIC_KEY_BYTES or not content.startswith(b"-----"):
            return cls(content)
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(content)
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise UsageError("It is not a public key in PEM.") from exc
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError("It is not an Ed25519 key.")
        return cls(key.public_bytes_raw())

    def verify(self, label: str, body: bytes, signature: bytes) -> None:
        """Check a signature over ``enc(label, body)``.

        Raises:
            VerificationError: The signature is not this key's over these bytes.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, enc(label, body))
        except (InvalidSignature, ValueError) as exc:
            raise VerificationError(f"The signature over {label} does not verify.") from exc


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 private key. Its repr shows nothing of it."""

    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Read an unencrypted PKCS#8 PEM file's bytes.

        Raises:
            UsageError: It holds something else.
        """
        from cryptography.hazmat.primitives import serialization  # Only who signs pays for it.

        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError) as exc:
            raise UsageError("The signing key is not an unencrypted PEM private key.") from exc
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError("The signing key is not an Ed25519 key.")
        return cls(key)

    def to_pem(self) -> bytes:
        """Return the key as unencrypted PKCS#8 PEM, for a file only its owner can read."""
        from cryptography.hazmat.primitives import serialization

        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public(self) -> VerifyKey:
        """The public half."""
        return VerifyKey(self._private.public_key().public_bytes_raw())

    def sign(self, label: str, body: bytes) -> bytes:
        """Sign ``enc(label, body)``; 64 bytes."""
        return self._private.sign(enc(label, body))
