"""Phase 1's request: a session's descriptor and what to train, which travel beside the model.

Source: docs/spec/secure-aggregation.md, "Notation" and "Phase 1: train".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from umbel_proto.secagg.canonical import parse, serialize
from umbel_proto.secagg.session import MAX_DESCRIPTOR_BYTES
from umbel_proto.wire import rounds_pb2 as pb

MAX_PLAN_BYTES = 8 << 10
MAX_REQUEST_BYTES = MAX_DESCRIPTOR_BYTES + MAX_PLAN_BYTES + 16


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What a device is invited to.

    Args:
        descriptor: Serialized SessionDescriptor.
        plan: Serialized TrainPlan.
    """

    descriptor: bytes
    plan: bytes

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return serialize(pb.TrainRequest(descriptor=self.descriptor, plan=self.plan))

    @classmethod
    def from_bytes(cls, data: bytes, peer: str) -> Self:
        """Read what ``peer`` sent.

        Raises:
            RemoteProtocolError: It is too large, cut off or not canonical.
        """
        m = parse(pb.TrainRequest, data, limit=MAX_REQUEST_BYTES, peer=peer)
        return cls(m.descriptor, m.plan)


def read_plan(data: bytes, peer: str) -> pb.TrainPlan:
    """Return the training plan that ``peer`` sent; whether it makes sense is the trainer's to say.

    Raises:
        RemoteProtocolError: It is too large, cut off or not canonical.
    """
    return parse(pb.TrainPlan, data, limit=MAX_PLAN_BYTES, peer=peer)
