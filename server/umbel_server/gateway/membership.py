"""Membership: a device renews its papers before they end."""

from __future__ import annotations

import logging

from google.protobuf.descriptor import ServiceDescriptor

from umbel_proto.wire import enrollment_pb2 as pb
from umbel_server.fleet.ca import read_csr
from umbel_server.gateway.papers import Issuer
from umbel_server.gateway.peer import Peers
from umbel_server.gateway.rpc import Call, Method
from umbel_server.store.devices import Devices

log = logging.getLogger(__name__)


class Membership:
    """The service that keeps devices in."""

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Membership"]

    def __init__(self, issuer: Issuer, devices: Devices, peers: Peers) -> None:
        self._issuer = issuer
        self._devices = devices
        self._peers = peers

    @property
    def methods(self) -> dict[str, Method]:
        """Its methods by name."""
        return {"Renew": self.renew}

    def renew(self, request: pb.RenewRequest, call: Call) -> pb.RenewReply:
        """Give the calling device new papers, for the TLS key in its request: the old one or a new one."""
        device = self._peers.authenticate(call)
        papers = self._issuer.issue(device, read_csr(request.csr))
        self._devices.renewed(device.id, not_after_s=papers.not_after_s)
        log.info("renewed device=%s", device.id)
        return pb.RenewReply(
            certificate=papers.certificate,
            credential=papers.credential,
            policy=self._issuer.policy,
            telemetry_key=self._issuer.telemetry_key,
        )
