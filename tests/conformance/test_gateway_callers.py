"""The gateway over real gRPC and TLS: who may call what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway_world import Served, refusal, stored
from service_fleet import DAY_S, ManualClock, PlainDevice, invoke, upload
from umbel_proto.ids import ModelName
from umbel_proto.wire import delivery_pb2, enrollment_pb2, telemetry_pb2
from umbel_server.fleet.ca import CertificateAuthority
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

METHODS: dict[str, Callable[[PlainDevice, FleetDir], object]] = {
    "Renew": PlainDevice.renew,
    "Check": PlainDevice.check,
    "Fetch": PlainDevice.fetch,
    "Upload": PlainDevice.upload,
}


def no_certificate(device: PlainDevice, fleet: FleetDir, store: Store, clock: ManualClock) -> None:
    device.certificate = b""


def expired(device: PlainDevice, fleet: FleetDir, store: Store, clock: ManualClock) -> None:
    device.certify(fleet.authority(), now_s=clock.now_s - DAY_S - 1)


def foreign(device: PlainDevice, fleet: FleetDir, store: Store, clock: ManualClock) -> None:
    device.certify(CertificateAuthority.create(fleet.name, now_s=clock.now_s), now_s=clock.now_s)


def self_signed(device: PlainDevice, fleet: FleetDir, store: Store, clock: ManualClock) -> None:
    own = CertificateAuthority.create(fleet.name, now_s=clock.now_s)
    device.tls, device.certificate = own._key, own.certificate_pem


def a_servers(device: PlainDevice, fleet: FleetDir, store: Store, clock: ManualClock) -> None:
    device.certificate = fleet.authority().issue_server(
        device.tls.public_key(), ["localhost"], now_s=clock.now_s
    )


def unknown(device: PlainDevice, fleet: FleetDir, store: Store, clock: ManualClock) -> None:
    device.certify(fleet.authority(), now_s=clock.now_s, device="nobody")


def revoked(device: PlainDevice, fleet: FleetDir, store: Store, clock: ManualClock) -> None:
    store.devices.revoke(device.id)


TLS_SAYS_NO = {grpc.StatusCode.UNAVAILABLE}
WE_SAY_NO = {grpc.StatusCode.PERMISSION_DENIED}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("spoil", "codes"),
    [
        (no_certificate, TLS_SAYS_NO),
        (expired, TLS_SAYS_NO),
        (foreign, TLS_SAYS_NO),
        (self_signed, TLS_SAYS_NO),
        (a_servers, TLS_SAYS_NO),
        (unknown, WE_SAY_NO),
        (revoked, WE_SAY_NO),
    ],
)
def test_every_method_refuses_every_wrong_certificate(
    served: Served, member: PlainDevice, method: str, spoil: Any, codes: set[grpc.StatusCode]
) -> None:
    fleet, store, clock = served
    spoil(member, fleet, store, clock)
    before = [device.certificate_not_after_s for device in store.devices.all()]
    code, _ = refusal(lambda: METHODS[method](member, fleet))
    assert code in codes
    assert [device.certificate_not_after_s for device in store.devices.all()] == before


@pytest.mark.parametrize("method", METHODS)
def test_the_same_calls_with_the_right_certificate_are_answered(
    served: Served, member: PlainDevice, method: str
) -> None:
    """Or the refusals above would prove nothing."""
    fleet, store, _ = served
    fleet.package(bytes(32)).write_bytes(b"package")
    store.releases.publish(ModelName("digits"), 1, sha256=bytes(32), size=7)
    METHODS[method](member, fleet)


@pytest.mark.parametrize("method", METHODS)
def test_a_certificate_that_expires_while_the_connection_stands_is_refused(
    served: Served, member: PlainDevice, method: str
) -> None:
    fleet, _, clock = served
    clock.advance(DAY_S)
    code, sentence = refusal(lambda: METHODS[method](member, fleet))
    assert code == grpc.StatusCode.UNAUTHENTICATED
    assert "expired" in sentence


def test_a_device_is_cut_off_in_the_middle_of_a_connection_when_it_is_revoked(
    served: Served, member: PlainDevice
) -> None:
    fleet, store, _ = served
    with member.channel(fleet) as channel:
        upload(channel, [member.sealed(fleet)])
        store.devices.revoke(member.id)
        code, sentence = refusal(lambda: upload(channel, [member.sealed(fleet)]))
    assert code == grpc.StatusCode.PERMISSION_DENIED
    assert sentence.startswith("Device rose is revoked: ")
    assert stored(store) == 1


@pytest.mark.parametrize(
    ("module", "service", "method", "message"),
    [
        (enrollment_pb2, "Membership", "Renew", enrollment_pb2.RenewRequest()),
        (delivery_pb2, "Delivery", "Check", delivery_pb2.CheckRequest()),
        (telemetry_pb2, "Telemetry", "Upload", telemetry_pb2.UploadRequest()),
    ],
)
def test_the_enrollment_listener_offers_nothing_but_enrollment(
    served: Served, module: Any, service: str, method: str, message: Any
) -> None:
    fleet, _, _ = served
    credentials = grpc.ssl_channel_credentials(fleet.ca_pem.read_bytes())
    with grpc.secure_channel(fleet.settings.enrollment, credentials) as channel:
        code, _ = refusal(lambda: invoke(channel, module, service, method, message))
    assert code == grpc.StatusCode.UNIMPLEMENTED


def test_a_client_that_pins_another_authority_does_not_talk_to_us(
    served: Served, member: PlainDevice, tmp_path: Path
) -> None:
    fleet, _, clock = served
    other = CertificateAuthority.create(fleet.name, now_s=clock.now_s)
    credentials = grpc.ssl_channel_credentials(other.certificate_pem)
    with grpc.secure_channel(fleet.settings.enrollment, credentials) as channel:
        message = member.enroll_request(bytes(32))
        code, _ = refusal(lambda: invoke(channel, enrollment_pb2, "Enrollment", "Enroll", message))
    assert code == grpc.StatusCode.UNAVAILABLE
