"""What travels between a gateway and the authority: one request and one answer for each connection."""

from __future__ import annotations

import socket

from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    StorageError,
    TokenError,
    UmbelError,
    UnavailableError,
    UsageError,
    VerificationError,
)
from umbel_proto.wire import authority_pb2 as pb
from umbel_server.store.admission import QuotaError, WaitingError

MAX_MESSAGE_BYTES = 64 << 10
_LENGTH_BYTES = 4

# By their names on the wire; of an error of another kind, the nearest that it is.
KINDS: dict[str, type[UmbelError]] = {
    "token": TokenError,
    "certificate": CertificateError,
    "refused": RefusedError,
    "usage": UsageError,
    "verification": VerificationError,
    "waiting": WaitingError,
    "quota": QuotaError,
    "storage": StorageError,
    "unavailable": UnavailableError,
}


class AuthorityDownError(UnavailableError):
    """The fleet's authority does not answer."""


def refusal(exc: UmbelError) -> pb.Refusal:
    """Return an error as the other side reads it."""
    kind = next((name for name, kind in KINDS.items() if isinstance(exc, kind)), "unavailable")
    application = exc.application if isinstance(exc, WaitingError) else ""
    return pb.Refusal(kind=kind, sentence=str(exc), application=application)


def to_error(message: pb.Refusal) -> UmbelError:
    """Return the error that the other side raised."""
    if message.kind == "waiting":
        return WaitingError(message.application)
    if message.kind in ("storage", "unavailable"):
        return AuthorityDownError(message.sentence)
    return KINDS.get(message.kind, AuthorityDownError)(message.sentence)


def send(connection: socket.socket, message: bytes) -> None:
    """Send a message.

    Raises:
        OSError: The connection ended.
    """
    connection.sendall(len(message).to_bytes(_LENGTH_BYTES, "big") + message)


def receive(connection: socket.socket) -> bytes:
    """Return the message that comes.

    Raises:
        OSError: The connection ended, was silent for too long, or the message is too long.
    """
    length = int.from_bytes(_exactly(connection, _LENGTH_BYTES), "big")
    if length > MAX_MESSAGE_BYTES:
        raise ConnectionError(f"a message of {length} bytes")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("it ended early")
        data += part
    return bytes(data)
