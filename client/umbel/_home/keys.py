"""The three private keys of a device, kept from the first attempt to enroll to the last."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from umbel._home.files import read_file, write_atomically
from umbel_proto.encoding import digest
from umbel_proto.enrollment import Token
from umbel_proto.errors import StorageError, UsageError
from umbel_proto.keys import SigningKey

# The home's files are their owner's only, and nobody is there to type a password.
_PLAIN = serialization.NoEncryption()


@dataclass(frozen=True, slots=True)
class EnrollmentKeys:
    """The keys a device enrolls with.

    Args:
        tls: For connections, P-256.
        identity: For rounds, Ed25519.
        node: For Flower, P-384.
    """

    tls: ec.EllipticCurvePrivateKey = field(repr=False)
    identity: SigningKey = field(repr=False)
    node: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def renewed(cls, identity: SigningKey, node: ec.EllipticCurvePrivateKey) -> EnrollmentKeys:
        """Return the keys with which a device comes back as itself: only the one for connections is new."""
        return cls(ec.generate_private_key(ec.SECP256R1()), identity, node)

    @classmethod
    def of_attempt(cls, file: Path, token: Token, kept: EnrollmentKeys | None = None) -> EnrollmentKeys:
        """Return the keys of an earlier attempt with this token, or else others, on disk by now.

        When the server's answer is lost, the token is spent but the same keys still get the same
        device: so they are kept before they are first sent.

        Args:
            file: Where keys of an attempt lie.
            token: The token of this one.
            kept: What to use where there was no earlier attempt; by default new keys.

        Raises:
            StorageError: The file cannot be written.
        """
        attempt = digest("umbel/1/attempt", token.secret).hex()
        if file.exists():
            try:
                fields = json.loads(read_file(file))
                if fields["attempt"] == attempt:
                    return cls(
                        load_ec_key(fields["tls"].encode()),
                        SigningKey.from_pem(fields["identity"].encode()),
                        load_ec_key(fields["node"].encode()),
                    )
            except (ValueError, KeyError, TypeError, AttributeError, UsageError) as exc:
                raise StorageError(f"{file} is damaged: delete it and enroll again.") from exc
        keys = kept or cls.renewed(SigningKey.generate(), ec.generate_private_key(ec.SECP384R1()))
        fields = {
            "attempt": attempt,
            "tls": keys.tls_pem().decode(),
            "identity": keys.identity.to_pem().decode(),
            "node": keys.node_openssh().decode(),
        }
        write_atomically(file, json.dumps(fields).encode())
        return keys

    def tls_pem(self) -> bytes:
        """Return the TLS key as unencrypted PKCS#8 PEM."""
        return self.tls.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, _PLAIN)

    def node_openssh(self) -> bytes:
        """Return the node key in OpenSSH's format, which Flower reads."""
        return self.node.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, _PLAIN
        )


def load_ec_key(text: bytes) -> ec.EllipticCurvePrivateKey:
    """Read an elliptic curve key from PEM or OpenSSH text.

    Raises:
        UsageError: It holds something else.
    """
    ssh = text.startswith(b"-----BEGIN OPENSSH")
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        key = load(text, None)
    except (ValueError, TypeError) as exc:
        raise UsageError("The private key is malformed.") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError("The private key is not one of an elliptic curve.")
    return key
