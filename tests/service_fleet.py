"""A fleet's service side for tests, and a device that speaks to it in plain gRPC."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from umbel_proto.credentials import FleetPolicy
from umbel_proto.enrollment import prove_identity
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.seal import SealPublicKey, seal
from umbel_proto.wire import delivery_pb2, enrollment_pb2, telemetry_pb2
from umbel_server.clock import Clock, system_clock
from umbel_server.clock import ManualClock as ManualClock
from umbel_server.fleet.ca import CertificateAuthority, generate_key, private_pem
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway.server import Gateway
from umbel_server.store.devices import Application, Device
from umbel_server.store.store import Store

HOUR_S = 3600
DAY_S = 86400
CALL_TIMEOUT_S = 20.0
NOBODY = DeviceId("")


def policy(fleet: str = "garden") -> FleetPolicy:
    return FleetPolicy(
        fleet=FleetId(fleet),
        corrupt_fraction=0.1,
        dropout_fraction=0.2,
        server_malicious=True,
        min_cohort=3,
        noise_floor=0.0,
        budget_epsilon=8.0,
        budget_delta=1e-6,
    )


def make_fleet(path: Path, *, name: str = "garden", clock: Clock = system_clock) -> FleetDir:
    return create_fleet(path, name=name, policy=policy(name), clock=clock)


@contextlib.contextmanager
def running(fleet: FleetDir, *, clock: Clock = system_clock) -> Iterator[tuple[Gateway, Store]]:
    with fleet.open_store(clock=clock) as store, Gateway(fleet, store, clock=clock) as gateway:
        yield gateway, store


def spki(key: Any) -> bytes:
    der: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return der


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "whatever it likes")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


@dataclass(slots=True)
class PlainDevice:
    """A device's keys, and the calls it makes: no retries, no checks, errors as gRPC gives them."""

    tls: ec.EllipticCurvePrivateKey = field(default_factory=generate_key)
    identity: SigningKey = field(default_factory=SigningKey.generate)
    node: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    certificate: bytes = b""
    id: DeviceId = NOBODY
    sequence: int = 0

    def enroll_request(self, token: bytes, *, name: str = "") -> enrollment_pb2.EnrollRequest:
        csr, node_key = make_csr(self.tls), spki(self.node.public_key())
        return enrollment_pb2.EnrollRequest(
            token=token,
            csr=csr,
            identity_key=self.identity.public.raw,
            identity_proof=prove_identity(self.identity, csr=csr, node_key=node_key),
            node_key=node_key,
            name=name,
        )

    def application(self, token: bytes, *, name: str = "") -> Application:
        return Application(
            token,
            name,
            self.identity.public,
            spki(self.node.public_key()),
            hashlib.sha256(spki(self.tls.public_key())).digest(),
        )

    def admit(self, fleet: FleetDir, store: Store, *, name: str = "", now_s: float | None = None) -> Device:
        """Become a device of the fleet without the gateway, with a certificate of that moment."""
        device = store.devices.enroll(
            self.application(store.tokens.issue(valid_s=60), name=name), certificate_life_s=DAY_S
        )
        self.id = device.id
        self.certify(fleet.authority(), now_s=time.time() if now_s is None else now_s)
        return device

    def certify(self, authority: CertificateAuthority, *, now_s: float, device: str = "") -> None:
        name = DeviceId(device) if device else self.id
        self.certificate = authority.issue_device(self.tls.public_key(), name, now_s=now_s)

    def enroll(
        self, fleet: FleetDir, token: bytes, *, name: str = "", request: object = None
    ) -> enrollment_pb2.EnrollReply:
        credentials = grpc.ssl_channel_credentials(fleet.ca_pem.read_bytes())
        with grpc.secure_channel(fleet.settings.enrollment, credentials) as channel:
            message = request or self.enroll_request(token, name=name)
            reply: enrollment_pb2.EnrollReply = invoke(
                channel, enrollment_pb2, "Enrollment", "Enroll", message
            )
        self.certificate, self.id = reply.certificate, DeviceId(reply.device_id)
        return reply

    @contextlib.contextmanager
    def channel(self, fleet: FleetDir) -> Iterator[grpc.Channel]:
        """A connection to the gateway, with the certificate if there is one."""
        pair = (private_pem(self.tls), self.certificate) if self.certificate else (None, None)
        credentials = grpc.ssl_channel_credentials(fleet.ca_pem.read_bytes(), *pair)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.secure_channel(fleet.settings.gateway, credentials, options) as channel:
            yield channel

    def renew(self, fleet: FleetDir, *, csr: bytes | None = None) -> enrollment_pb2.RenewReply:
        message = enrollment_pb2.RenewRequest(csr=make_csr(self.tls) if csr is None else csr)
        with self.channel(fleet) as channel:
            reply: enrollment_pb2.RenewReply = invoke(channel, enrollment_pb2, "Membership", "Renew", message)
            return reply

    def check(self, fleet: FleetDir) -> delivery_pb2.CheckReply:
        message = delivery_pb2.CheckRequest()
        with self.channel(fleet) as channel:
            reply: delivery_pb2.CheckReply = invoke(channel, delivery_pb2, "Delivery", "Check", message)
            return reply

    def fetch(self, fleet: FleetDir, sha256: bytes = bytes(32), *, offset: int = 0) -> bytes:
        message = delivery_pb2.FetchRequest(sha256=sha256, offset=offset)
        with self.channel(fleet) as channel:
            return b"".join(
                chunk.data for chunk in invoke(channel, delivery_pb2, "Delivery", "Fetch", message)
            )

    def upload(
        self, fleet: FleetDir, batches: Sequence[telemetry_pb2.SealedBatch] = ()
    ) -> telemetry_pb2.UploadReply:
        with self.channel(fleet) as channel:
            return upload(channel, batches)

    def sealed(
        self,
        fleet: FleetDir,
        *,
        plaintext: bytes = b"",
        key: SealPublicKey | None = None,
        **header: Any,
    ) -> telemetry_pb2.SealedBatch:
        """A batch sealed to the fleet; ``header`` replaces fields of a right one."""
        self.sequence += 1
        to = key or fleet.telemetry_public()
        fields = {
            "schema": 1,
            "suite": to.suite,
            "key_id": to.key_id,
            "fleet_id": fleet.name,
            "device_id": self.id,
            "batch_id": secrets.token_bytes(16),
            "sequence": self.sequence,
            "created_s": int(time.time()),
        }
        raw = telemetry_pb2.BatchHeader(**{**fields, **header}).SerializeToString()
        return telemetry_pb2.SealedBatch(header=raw, ciphertext=seal(to, raw, plaintext))


def upload(channel: grpc.Channel, batches: Sequence[telemetry_pb2.SealedBatch]) -> telemetry_pb2.UploadReply:
    message = telemetry_pb2.UploadRequest(batches=batches)
    reply: telemetry_pb2.UploadReply = invoke(channel, telemetry_pb2, "Telemetry", "Upload", message)
    return reply


def invoke(channel: grpc.Channel, module: Any, service: str, method: str, message: Any) -> Any:
    """Call a method by its name in the .proto file, as any language would."""
    described = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    reply = getattr(module, described.output_type.name)
    make = channel.unary_stream if described.server_streaming else channel.unary_unary
    stub = make(
        f"/{described.containing_service.full_name}/{method}",
        request_serializer=type(message).SerializeToString,
        response_deserializer=reply.FromString,
    )
    return stub(message, timeout=CALL_TIMEOUT_S)


def window(model: str = "digits", version: int = 1, start_s: int = 7200, **fields: Any) -> Any:
    """A telemetry window of two predictions, of label 3 and 7."""
    latency = Histogram.empty("latency_us", LATENCY_US).observe([90.0, 300.0])
    confidence = Histogram.empty("confidence", CONFIDENCE).observe([0.5, 1.0])
    right = {
        "model": model,
        "version": version,
        "variant": "int8",
        "engine": "onnx",
        "start_s": start_s,
        "end_s": start_s + 60,
        "counters": {"predictions": 2, "label.3": 1, "label.7": 1},
        "histograms": [latency.to_wire(), confidence.to_wire()],
    }
    return telemetry_pb2.Window(**{**right, **fields})


def batch(*windows: Any) -> bytes:
    raw: bytes = telemetry_pb2.Batch(windows=windows).SerializeToString()
    return raw
