"""How a device gets into a fleet: the one-time token it is given, and the proof of its round key.

Source: docs/spec/enrollment.md.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

from umbel_proto.encoding import digest, enc
from umbel_proto.errors import TokenError, UsageError, VerificationError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey, VerifyKey

TOKEN_PREFIX = "umbel1."  # noqa: S105  # The format's name, not a secret.
SECRET_BYTES = 32
MAX_TOKEN_CHARS = 8192
ENROLL_LABEL = "umbel/1/enroll"
RETURN_LABEL = "umbel/1/return"
FINGERPRINT_LABEL = "umbel/1/fingerprint"

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")


def check_address(value: str, what: str) -> str:
    """Return ``value`` if it is ``host:port``; an IPv6 host stands in brackets.

    Raises:
        UsageError: It is anything else.
    """
    match = _ADDRESS.fullmatch(value)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise UsageError(f"The {what} address {value[:80]!r} is not host:port, like fleet.example:8443.")
    return value


@dataclass(frozen=True, slots=True)
class Token:
    """What an operator hands to one device, once.

    It carries the fleet's certificate, so that the first connection is already to the right server.

    Args:
        secret: 32 random bytes; the server stores only their hash.
        enrollment: Where to enroll, ``host:port``.
        ca_certificate: The fleet CA's certificate, DER.
    """

    secret: bytes = field(repr=False)
    enrollment: str
    ca_certificate: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise UsageError(f"A token's secret has {SECRET_BYTES} bytes, this one {len(self.secret)}.")
        check_address(self.enrollment, "enrollment")

    def to_text(self) -> str:
        """Return the token as one line that survives copying."""
        raw = enc(self.secret, self.enrollment, self.ca_certificate)
        return TOKEN_PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> Token:
        """Read what ``to_text`` gave.

        Raises:
            TokenError: It is something else; the sentence does not repeat it.
        """
        body = text.strip().removeprefix(TOKEN_PREFIX)
        if not text.strip().startswith(TOKEN_PREFIX) or len(body) > MAX_TOKEN_CHARS:
            raise TokenError(f"This is not an enrollment token: copy all of it, from {TOKEN_PREFIX!r} on.")
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            secret, enrollment, certificate = _fields(raw)
            return cls(secret, enrollment.decode(), certificate)
        except (binascii.Error, ValueError, UsageError) as exc:
            raise TokenError("The enrollment token is incomplete or altered: copy it again.") from exc


def fingerprint(key: VerifyKey) -> str:
    """Return what people compare to know a device: 128 bits of its identity key's hash, in groups.

    The identity key has signed the other two (`prove_identity`), so that it stands for all three.
    """
    text = digest(FINGERPRINT_LABEL, key.raw)[:16].hex()
    return "-".join(text[start : start + 4] for start in range(0, len(text), 4))


def prove_identity(key: SigningKey, *, csr: bytes, node_key: bytes) -> bytes:
    """Return the signature that ties a device's three keys together; 64 bytes."""
    return key.sign(ENROLL_LABEL, enc(csr, node_key))


def check_identity(key: VerifyKey, proof: bytes, *, csr: bytes, node_key: bytes) -> None:
    """Check what ``prove_identity`` gave.

    Raises:
        VerificationError: Whoever sent it does not hold the private half of ``key``.
    """
    try:
        key.verify(ENROLL_LABEL, enc(csr, node_key), proof)
    except VerificationError as exc:
        raise VerificationError("The device does not hold the identity key it names.") from exc


def prove_return(key: SigningKey, *, fleet: FleetId, device: DeviceId, challenge: bytes, csr: bytes) -> bytes:
    """Return the signature with which a device comes back after its certificate has expired; 64 bytes."""
    return key.sign(RETURN_LABEL, enc(fleet, device, challenge, csr))


def check_return(
    key: VerifyKey, proof: bytes, *, fleet: FleetId, device: DeviceId, challenge: bytes, csr: bytes
) -> None:
    """Check what ``prove_return`` gave.

    Raises:
        VerificationError: Whoever sent it does not hold the private half of ``key``, or signed something else.
    """
    key.verify(RETURN_LABEL, enc(fleet, device, challenge, csr), proof)


def _fields(raw: bytes) -> list[bytes]:
    """Undo ``enc`` of byte strings."""
    fields, position = [], 0
    while position < len(raw):
        size = int.from_bytes(raw[position : position + 8], "big")
        position += 8 + size
        if position > len(raw):
            raise ValueError("A field is longer than what is left.")
        fields.append(raw[position - size : position])
    return fields
