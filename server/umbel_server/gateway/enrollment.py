"""Enrollment: a token and three keys in, a device with papers out."""

from __future__ import annotations

import hashlib
import logging

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.descriptor import ServiceDescriptor

from umbel_proto.enrollment import SECRET_BYTES, check_identity
from umbel_proto.errors import TokenError, UsageError
from umbel_proto.ids import check_name
from umbel_proto.keys import VerifyKey
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_server.fleet.ca import DEVICE_LIFE_S, read_csr
from umbel_server.gateway.papers import Issuer
from umbel_server.gateway.rpc import Call, Method
from umbel_server.store.devices import Application
from umbel_server.store.store import Store

MAX_NODE_KEY_BYTES = 512

log = logging.getLogger(__name__)


class Enrollment:
    """The service that lets devices in."""

    descriptor: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Enrollment"]

    def __init__(self, issuer: Issuer, store: Store) -> None:
        self._issuer = issuer
        self._store = store

    @property
    def methods(self) -> dict[str, Method]:
        """Its methods by name."""
        return {"Enroll": self.enroll}

    def enroll(self, request: pb.EnrollRequest, _call: Call) -> pb.EnrollReply:
        """Let a device in, or tell again a device whose reply was lost."""
        if len(request.token) != SECRET_BYTES:
            raise TokenError(f"An enrollment token has {SECRET_BYTES} bytes, not {len(request.token)}.")
        # Without a token that may be used, nobody makes us check signatures or wait to write.
        self._store.tokens.check(request.token)
        if request.name:
            check_name(request.name, "device")
        tls_key = read_csr(request.csr)
        identity_key = VerifyKey(request.identity_key)
        check_identity(identity_key, request.identity_proof, csr=request.csr, node_key=request.node_key)
        application = Application(
            token=request.token,
            name=request.name,
            identity_key=identity_key,
            node_key=_check_node_key(request.node_key),
            tls_key_hash=hashlib.sha256(_spki(tls_key)).digest(),
        )
        device = self._store.devices.enroll(application, certificate_life_s=DEVICE_LIFE_S)
        papers = self._issuer.issue(device, tls_key)
        log.info("enrolled device=%s", device.id)
        fleet = self._issuer.fleet
        return pb.EnrollReply(
            fleet_id=fleet.name,
            device_id=device.id,
            certificate=papers.certificate,
            credential=papers.credential,
            policy=self._issuer.policy,
            authority_key=fleet.authority_public().raw,
            release_key=fleet.release_public().raw,
            telemetry_key=self._issuer.telemetry_key,
            gateway=fleet.settings.gateway,
            superlink=fleet.settings.superlink,
        )


def _check_node_key(der: bytes) -> bytes:
    """Return a Flower node key as the store keeps it: one form for one key."""
    try:
        if len(der) > MAX_NODE_KEY_BYTES:
            raise ValueError("too long")
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError("The node key is malformed.") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UsageError("The node key is not a P-384 key.")
    return _spki(key)


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
