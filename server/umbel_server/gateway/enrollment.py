"""Enrollment: a token and three keys in, a device with papers out."""

from __future__ import annotations

from google.protobuf.descriptor import ServiceDescriptor

from umbel_proto.wire import enrollment_pb2 as pb
from umbel_server.gateway.papers import Issuer
from umbel_server.gateway.rpc import Call, Method


class Enrollment:
    """The service that lets devices in.

    It passes on what a device sent: the authority checks it, whether it is a process of its own or not.
    """

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Enrollment"]

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    @property
    def methods(self) -> dict[str, Method]:
        """Its methods by name."""
        return {"Enroll": self.enroll}

    def enroll(self, request: pb.EnrollRequest, _call: Call) -> pb.EnrollReply:
        """Let a device in, or tell again a device whose reply was lost."""
        papers = self._issuer.authority.enroll(request)
        fleet = self._issuer.fleet
        return pb.EnrollReply(
            fleet_id=fleet.name,
            device_id=papers.device,
            certificate=papers.certificate,
            credential=papers.credential,
            policy=self._issuer.policy,
            authority_key=fleet.authority_public().raw,
            release_key=fleet.release_public().raw,
            telemetry_key=self._issuer.telemetry_key,
            gateway=fleet.settings.gateway,
            superlink=fleet.settings.superlink,
            root=self._issuer.root,
            charges=self._issuer.charges(papers.device),
        )
