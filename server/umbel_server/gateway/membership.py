"""Membership: a device renews its papers before they end."""

from __future__ import annotations

import logging

from google.protobuf.descriptor import ServiceDescriptor

from umbel_proto.wire import enrollment_pb2 as pb
from umbel_server.gateway.papers import Issuer
from umbel_server.gateway.peer import Peers, certificate_of
from umbel_server.gateway.rpc import Call, Method

log = logging.getLogger(__name__)


class Membership:
    """The service that keeps devices in."""

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Membership"]

    def __init__(self, issuer: Issuer, peers: Peers) -> None:
        self._issuer = issuer
        self._peers = peers

    @property
    def methods(self) -> dict[str, Method]:
        """Its methods by name."""
        return {"Renew": self.renew}

    def renew(self, request: pb.RenewRequest, call: Call) -> pb.RenewReply:
        """Give the calling device new papers, for the TLS key that it has."""
        device = self._peers.authenticate(call)
        papers = self._issuer.authority.renew(certificate_of(call), request.csr)
        log.info("renewed device=%s", device.id)
        return self._issuer.renewal(papers)
