"""Reading a message so that only one sequence of bytes stands for it.

Source: docs/spec/secure-aggregation.md, "Notation".
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from umbel_proto.errors import RemoteProtocolError

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes, *, limit: int, peer: str) -> M:
    """Return the message in ``data``.

    Args:
        kind: The protobuf class.
        data: The bytes received.
        limit: The most bytes a message of this kind may have.
        peer: Who sent it.

    Raises:
        RemoteProtocolError: Too large, cut off, or not the canonical form: an unknown field, a
            field given twice, a padded integer.
    """
    name = kind.DESCRIPTOR.name
    if len(data) > limit:
        raise RemoteProtocolError(peer, f"{name} has {len(data)} bytes, more than {limit}")
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as exc:
        raise RemoteProtocolError(peer, f"{name} is malformed") from exc
    message.DiscardUnknownFields()  # type: ignore[no-untyped-call,unused-ignore]
    if serialize(message) != data:
        raise RemoteProtocolError(peer, f"{name} is not in canonical form")
    return message


def serialize(message: Message) -> bytes:
    """Return the canonical bytes of a message."""
    return message.SerializeToString(deterministic=True)
