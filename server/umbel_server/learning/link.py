"""The seam between a round and whatever carries its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

NodeId = int
"""Where a device can be reached during a run; what it is called is for the carrier to say."""


@dataclass(frozen=True, slots=True)
class Payload:
    """What one message carries.

    Args:
        body: A serialized message of ``umbel.wire.v1``.
        vector: Raw bytes of the long vector beside it, or empty.
    """

    body: bytes = field(repr=False)
    vector: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A node's answer to the message of the current phase.

    Args:
        node: Who answered.
        payload: The answer, or None if the node failed or refused.
        reason: Why there is none, as the node or the carrier says it.
        size_up: Bytes of the answer as serialized for the wire.
    """

    node: NodeId
    payload: Payload | None
    reason: str = ""
    size_up: int = 0


class Link(Protocol):
    """Carries a round's messages to nodes and their answers back."""

    def nodes(self) -> Sequence[NodeId]:
        """Return the nodes that can be reached now."""
        ...

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        """Send one message to each node and return the bytes that went down in all.

        Answers of earlier phases that have not come yet are given up.

        Args:
            kind: The message type, such as ``query.share``.
            group: For logs only; the payload says which round it is of.
            payloads: What each node gets.
            ttl_s: After this, a message not yet fetched is dropped.
        """
        ...

    def receive(self) -> Sequence[Answer]:
        """Return the answers that came since the last call, without waiting."""
        ...
