"""Who signs for the fleet: a key in a file, or a program that asks a key service.

A security module is a third, in `umbel_server.ca.pkcs11`; another is one more class that passes
tests/conformance/test_signers.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from umbel_proto.errors import StorageError, UnavailableError
from umbel_server.files import read_file

TIMEOUT_S = 10.0
MAX_SIGNATURE_BYTES = 256
_REASON_CHARACTERS = 300

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
"""P-256 for certificates, whose signatures are ECDSA with SHA-256, DER; Ed25519 for the rest, 64 bytes."""


class Signer(Protocol):
    """Signs with one key."""

    @property
    def public(self) -> PublicKey:
        """The public half."""

    def sign(self, data: bytes) -> bytes:
        """Return the signature over ``data``, which it hashes itself.

        Raises:
            UnavailableError: Who has the key does not answer, or answers with no signature of it.
            StorageError: The key cannot be read.
        """


class FileSigner:
    """A key in a file, PKCS#8 PEM.

    Args:
        path: The file; read at once.
        public: The key that it must be.
        what: What to call it.

    Raises:
        StorageError: It is missing, damaged, or another key.
    """

    def __init__(self, path: Path, public: PublicKey, what: str) -> None:
        try:
            key = serialization.load_pem_private_key(read_file(path, what), None)
        except (ValueError, TypeError) as exc:
            raise StorageError(f"The {what} at {path} is damaged: restore it from a backup.") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            raise StorageError(f"The {what} at {path} is of another kind: restore it from a backup.")
        if key.public_key() != public:
            raise StorageError(f"The {what} at {path} is not the fleet's: restore it from a backup.")
        self._key = key
        self.public = public

    def sign(self, data: bytes) -> bytes:
        """Return the signature over ``data``."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(data, ec.ECDSA(hashes.SHA256()))
        return self._key.sign(data)


class CommandSigner:
    """A program that signs: a security module's tool, a key service's client.

    It gets the bytes to sign on standard input and writes the signature, and nothing else, to standard output. What it
    writes is verified: no mistake of it, and no confusion of keys, ever leaves this process as a signature.

    Args:
        command: The program and its arguments; started without a shell, for each signature.
        public: The key that it signs with.
    """

    def __init__(self, command: Sequence[str], public: PublicKey) -> None:
        self._command = tuple(command)
        self.public = public

    def sign(self, data: bytes) -> bytes:
        """Return the signature over ``data``."""
        program = self._command[0]
        try:
            ran = subprocess.run(
                self._command, input=data, capture_output=True, timeout=TIMEOUT_S, check=False
            )
        except OSError as exc:
            raise UnavailableError(f"The signing command {program} cannot be run: {exc.strerror}.") from exc
        except subprocess.TimeoutExpired as exc:
            raise UnavailableError(f"The signing command {program} took over {TIMEOUT_S:g} s.") from exc
        if ran.returncode != 0:
            words = ran.stderr.decode(errors="replace").split()
            reason = " ".join(words)[:_REASON_CHARACTERS] or "without a word"
            raise UnavailableError(f"The signing command {program} ended with {ran.returncode}: {reason}")
        try:
            if len(ran.stdout) > MAX_SIGNATURE_BYTES:
                raise InvalidSignature
            check_signature(self.public, ran.stdout, data)
        except InvalidSignature as exc:
            raise UnavailableError(
                f"The signing command {program} wrote no signature of the fleet's key: it must write ECDSA in DER for "
                "ca, and 64 bytes of Ed25519 for authority."
            ) from exc
        return ran.stdout


def check_signature(public: PublicKey, signature: bytes, data: bytes) -> None:
    """Check a signature.

    Raises:
        InvalidSignature: It is not this key's over these bytes.
    """
    if isinstance(public, ec.EllipticCurvePublicKey):
        public.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    else:
        public.verify(signature, data)
