"""The gateway over real gRPC and TLS: whom it lets in, what it gives, what it keeps."""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import event

from service_fleet import (
    DAY_S,
    ManualClock,
    PlainDevice,
    invoke,
    make_csr,
    make_fleet,
    running,
    spki,
    upload,
)
from umbel_proto.credentials import open_credential, open_policy
from umbel_proto.enrollment import prove_identity
from umbel_proto.errors import UnavailableError
from umbel_proto.ids import ModelName
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.seal import generate_keypair
from umbel_proto.wire import delivery_pb2, enrollment_pb2, telemetry_pb2
from umbel_server.fleet.ca import CertificateAuthority, generate_key, private_pem
from umbel_server.fleet.create import renew_server_certificate
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway.delivery import CHUNK_BYTES
from umbel_server.gateway.rpc import RETRY_AFTER
from umbel_server.gateway.server import ENROLL_MESSAGE_BYTES, FETCHES, Gateway
from umbel_server.gateway.telemetry import MAX_BATCH_BYTES, MAX_BATCHES
from umbel_server.store.store import Store

Served = tuple[FleetDir, Store, ManualClock]
HOUR_S = 3600


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    with running(fleet, clock=clock) as (_, store):
        yield fleet, store, clock


@pytest.fixture
def member(served: Served) -> PlainDevice:
    fleet, store, clock = served
    device = PlainDevice()
    device.admit(fleet, store, name="rose", now_s=clock.now_s)
    return device


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


def stored(store: Store) -> int:
    return len(store.batches.sealed(limit=10_000))


# Who may call what

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
    assert (code, sentence) == (grpc.StatusCode.PERMISSION_DENIED, "Device rose is revoked.")
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


# Enrollment


def test_a_token_is_turned_into_papers_that_every_part_accepts(served: Served) -> None:
    fleet, store, clock = served
    device = PlainDevice()
    reply = device.enroll(fleet, store.tokens.issue(valid_s=HOUR_S), name="lily")
    authority = VerifyKey(reply.authority_key)
    credential = open_credential(
        reply.credential.SerializeToString(), authority=authority, fleet=fleet.name, now_s=clock.now_s
    )
    assert (credential.device, credential.identity_key) == ("lily", device.identity.public)
    assert (
        open_policy(reply.policy.SerializeToString(), authority=authority, fleet=fleet.name) == fleet.policy()
    )
    leaf = x509.load_pem_x509_certificates(reply.certificate)[0]
    assert leaf.not_valid_after_utc.timestamp() == credential.not_after_s == int(clock.now_s) + DAY_S
    assert reply.release_key == fleet.release_public().raw
    assert reply.telemetry_key.key_id == fleet.telemetry_public().key_id
    assert (reply.gateway, reply.superlink) == (fleet.settings.gateway, fleet.settings.superlink)
    device.check(fleet)


def test_a_lost_reply_is_given_again_to_the_same_key_and_to_no_other(served: Served) -> None:
    fleet, store, _ = served
    device, token = PlainDevice(), store.tokens.issue(valid_s=HOUR_S)
    first, second = device.enroll(fleet, token), device.enroll(fleet, token)
    assert first.device_id == second.device_id
    thief = PlainDevice()
    code, sentence = refusal(lambda: thief.enroll(fleet, token))
    assert code == grpc.StatusCode.UNAUTHENTICATED
    assert "already used" in sentence
    assert len(store.devices.all()) == 1


def other_csr(request: enrollment_pb2.EnrollRequest) -> None:
    request.csr = make_csr(generate_key())


def wrong_curve(request: enrollment_pb2.EnrollRequest) -> None:
    request.csr = make_csr(ec.generate_private_key(ec.SECP384R1()))


def other_identity(request: enrollment_pb2.EnrollRequest) -> None:
    request.identity_key = SigningKey.generate().public.raw


def other_node_key(request: enrollment_pb2.EnrollRequest) -> None:
    request.node_key = spki(ec.generate_private_key(ec.SECP384R1()).public_key())


def node_key_of_another_kind(request: enrollment_pb2.EnrollRequest) -> None:
    identity = SigningKey.generate()
    request.identity_key = identity.public.raw
    request.node_key = spki(generate_key().public_key())
    request.identity_proof = prove_identity(identity, csr=request.csr, node_key=request.node_key)


def no_csr(request: enrollment_pb2.EnrollRequest) -> None:
    request.csr = b""


def short_identity(request: enrollment_pb2.EnrollRequest) -> None:
    request.identity_key = b"short"


def no_name(request: enrollment_pb2.EnrollRequest) -> None:
    request.name = "../../etc"


@pytest.mark.parametrize(
    "spoil",
    [
        other_csr,
        wrong_curve,
        other_identity,
        other_node_key,
        node_key_of_another_kind,
        no_csr,
        short_identity,
        no_name,
    ],
)
def test_an_enrollment_with_one_thing_wrong_is_refused_and_uses_up_no_token(
    served: Served, spoil: Callable[[enrollment_pb2.EnrollRequest], None]
) -> None:
    fleet, store, _ = served
    device, token = PlainDevice(), store.tokens.issue(valid_s=HOUR_S)
    request = device.enroll_request(token)
    spoil(request)
    code, sentence = refusal(lambda: device.enroll(fleet, token, request=request))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert sentence.endswith(".")
    assert store.devices.all() == ()
    device.enroll(fleet, token)


@pytest.mark.parametrize("token", [b"", b"short", bytes(32), bytes(33)])
def test_without_a_known_token_nothing_else_is_looked_at(served: Served, token: bytes) -> None:
    fleet, _, _ = served
    request = enrollment_pb2.EnrollRequest(token=token, csr=b"nonsense")
    code, sentence = refusal(lambda: PlainDevice().enroll(fleet, token, request=request))
    assert code == grpc.StatusCode.UNAUTHENTICATED
    assert "token" in sentence


def test_an_expired_token_is_refused(served: Served) -> None:
    fleet, store, clock = served
    token = store.tokens.issue(valid_s=HOUR_S)
    clock.advance(HOUR_S)
    code, sentence = refusal(lambda: PlainDevice().enroll(fleet, token))
    assert (code, "expired" in sentence) == (grpc.StatusCode.UNAUTHENTICATED, True)


def test_no_secret_is_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    fleet, store, _ = served
    caplog.set_level(logging.DEBUG)
    token = store.tokens.issue(valid_s=HOUR_S)
    PlainDevice().enroll(fleet, token)
    refusal(lambda: PlainDevice().enroll(fleet, token))
    assert "enrolled device=" in caplog.text
    assert "refused Enroll" in caplog.text
    for shown in (token.hex(), repr(token)[2:-1]):
        assert shown not in caplog.text


def test_a_request_larger_than_any_right_one_is_not_read(served: Served) -> None:
    fleet, store, _ = served
    device, token = PlainDevice(), store.tokens.issue(valid_s=HOUR_S)
    request = device.enroll_request(token, name="x" * ENROLL_MESSAGE_BYTES)
    code, _ = refusal(lambda: device.enroll(fleet, token, request=request))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


# Membership


def test_renewed_papers_take_over_from_the_old_ones(served: Served, member: PlainDevice) -> None:
    fleet, store, clock = served
    clock.advance(16 * HOUR_S)
    key = generate_key()
    reply = member.renew(fleet, csr=make_csr(key))
    credential = open_credential(
        reply.credential.SerializeToString(),
        authority=fleet.authority_public(),
        fleet=fleet.name,
        now_s=clock.now_s,
    )
    leaf = x509.load_pem_x509_certificates(reply.certificate)[0]
    ends_s = int(clock.now_s) + DAY_S
    assert leaf.public_key() == key.public_key()
    assert leaf.not_valid_after_utc.timestamp() == credential.not_after_s == ends_s
    assert credential.identity_key == member.identity.public
    assert store.devices.admit(member.id).certificate_not_after_s == ends_s


def test_renewed_papers_work(served: Served, member: PlainDevice) -> None:
    fleet, _, _ = served
    key = generate_key()
    member.certificate = member.renew(fleet, csr=make_csr(key)).certificate
    member.tls = key
    member.check(fleet)


def test_a_bad_request_renews_nothing(served: Served, member: PlainDevice) -> None:
    fleet, store, _ = served
    before = store.devices.all()
    code, _ = refusal(lambda: member.renew(fleet, csr=b"nonsense"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert store.devices.all()[0].certificate_not_after_s == before[0].certificate_not_after_s


def test_calls_tell_when_a_device_was_last_seen_without_a_write_for_each(
    served: Served, member: PlainDevice
) -> None:
    fleet, store, clock = served
    writes: list[str] = []
    event.listen(
        store.database.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: writes.append(statement) if "UPDATE" in statement else None,
    )
    clock.advance(100)
    for _ in range(5):
        member.check(fleet)
    assert len(writes) == 1
    assert store.devices.admit(member.id).last_seen_s == clock.now_s


def test_what_was_seen_last_is_written_when_the_gateway_stops(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    device = PlainDevice()
    with running(fleet, clock=clock) as (_, store):
        device.admit(fleet, store)
        device.check(fleet)
        clock.advance(1)
        device.check(fleet)
    with fleet.open_store() as store:
        assert store.devices.admit(device.id).last_seen_s == clock.now_s


# Delivery


def release(served: Served, data: bytes, *, version: int = 1) -> bytes:
    fleet, store, _ = served
    sha256 = secrets.token_bytes(32)
    fleet.package(sha256).write_bytes(data)
    store.releases.publish(ModelName("digits"), version, sha256=sha256, size=len(data))
    return sha256


def test_check_offers_the_newest_version(served: Served, member: PlainDevice) -> None:
    fleet, _, _ = served
    assert list(member.check(fleet).releases) == []
    release(served, b"first", version=1)
    sha256 = release(served, b"second", version=2)
    (offered,) = member.check(fleet).releases
    expected = ("digits", 2, sha256, 6)
    assert (offered.model, offered.version, offered.sha256, offered.size) == expected


@pytest.mark.parametrize("offset", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7, 3 * CHUNK_BYTES])
def test_a_package_is_fetched_from_where_the_device_stopped(
    served: Served, member: PlainDevice, offset: int
) -> None:
    data = secrets.token_bytes(3 * CHUNK_BYTES)
    sha256 = release(served, data)
    assert member.fetch(served[0], sha256, offset=offset) == data[offset:]


def test_a_package_comes_in_chunks_of_at_most_256_kib(served: Served, member: PlainDevice) -> None:
    sha256 = release(served, bytes(2 * CHUNK_BYTES + 1))
    with member.channel(served[0]) as channel:
        message = delivery_pb2.FetchRequest(sha256=sha256)
        chunks = [len(chunk.data) for chunk in invoke(channel, delivery_pb2, "Delivery", "Fetch", message)]
    assert chunks == [CHUNK_BYTES, CHUNK_BYTES, 1]


def test_an_offset_beyond_the_end_is_refused(served: Served, member: PlainDevice) -> None:
    sha256 = release(served, b"package")
    code, sentence = refusal(lambda: member.fetch(served[0], sha256, offset=8))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "ends at 7 bytes" in sentence


@pytest.mark.parametrize("sha256", [b"", bytes(31), bytes(32), b"../../ca/ca.key"])
def test_only_released_packages_are_given_out(served: Served, member: PlainDevice, sha256: bytes) -> None:
    fleet, _, _ = served
    fleet.package(bytes(32)).write_bytes(b"lies there, but is not released")
    code, _ = refusal(lambda: member.fetch(fleet, sha256))
    assert code == grpc.StatusCode.NOT_FOUND


def test_a_released_package_that_is_gone_is_our_trouble_and_names_no_file_of_ours(
    served: Served, member: PlainDevice
) -> None:
    fleet, _, _ = served
    sha256 = release(served, b"package")
    fleet.package(sha256).unlink()
    code, sentence = refusal(lambda: member.fetch(fleet, sha256))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert str(fleet.path) not in sentence


def test_slow_readers_leave_room_for_everyone_else(served: Served, member: PlainDevice) -> None:
    fleet, store, _ = served
    small, large = release(served, b"package"), secrets.token_bytes(32)
    with fleet.package(large).open("wb") as file:
        file.truncate(1 << 30)  # More than any buffer on the way takes; no bytes on the disk.
    store.releases.publish(ModelName("digits"), 2, sha256=large, size=1 << 30)
    streams: list[Any] = []
    with ExitStack() as stack:
        for _ in range(FETCHES):
            channel = stack.enter_context(member.channel(fleet))
            message = delivery_pb2.FetchRequest(sha256=large)
            streams.append(invoke(channel, delivery_pb2, "Delivery", "Fetch", message))
            next(streams[-1])
        code, sentence = refusal(lambda: member.fetch(fleet, small))
        assert (code, "busy" in sentence) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        member.check(fleet)


def test_readers_that_go_away_make_room(served: Served, member: PlainDevice) -> None:
    fleet, _, _ = served
    data = bytes(64 * CHUNK_BYTES)
    sha256 = release(served, data)
    message = delivery_pb2.FetchRequest(sha256=sha256)
    with member.channel(fleet) as channel:
        streams = [invoke(channel, delivery_pb2, "Delivery", "Fetch", message) for _ in range(FETCHES)]
        for stream in streams:
            next(stream)
            stream.cancel()
        for _ in range(1000):  # The gateway hears of it a moment later.
            with contextlib.suppress(grpc.RpcError):
                assert member.fetch(fleet, sha256) == data
                return
    pytest.fail("The gateway still holds room for readers that went away.")


# Telemetry


def test_what_is_acknowledged_is_stored_as_it_came(served: Served, member: PlainDevice) -> None:
    fleet, store, _ = served
    ids = [secrets.token_bytes(16) for _ in range(3)]
    batches = [member.sealed(fleet, batch_id=batch_id) for batch_id in ids]
    assert list(member.upload(fleet, batches).acknowledged) == ids
    assert [(batch.header, batch.ciphertext) for batch in store.batches.sealed(limit=9)] == [
        (batch.header, batch.ciphertext) for batch in batches
    ]


def test_a_batch_that_is_sent_twice_is_acknowledged_twice_and_stored_once(
    served: Served, member: PlainDevice
) -> None:
    fleet, store, _ = served
    batch = member.sealed(fleet)
    assert member.upload(fleet, [batch]) == member.upload(fleet, [batch])
    assert stored(store) == 1


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"device_id": "lily"}, grpc.StatusCode.PERMISSION_DENIED),
        ({"device_id": ""}, grpc.StatusCode.PERMISSION_DENIED),
        ({"fleet_id": "meadow"}, grpc.StatusCode.PERMISSION_DENIED),
        ({"schema": 2}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"batch_id": b"short"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"key_id": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"key_id": "k" * 65}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"key_id": "k" * 2000}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_one_wrong_header_and_the_whole_upload_is_refused(
    served: Served, member: PlainDevice, header: dict[str, Any], code: grpc.StatusCode
) -> None:
    fleet, store, _ = served
    batches = [member.sealed(fleet), member.sealed(fleet, **header)]
    assert refusal(lambda: member.upload(fleet, batches))[0] == code
    assert stored(store) == 0


@pytest.mark.parametrize(
    "batch",
    [
        telemetry_pb2.SealedBatch(),
        telemetry_pb2.SealedBatch(header=b"\xff\xff", ciphertext=b"x"),
        telemetry_pb2.SealedBatch(header=b"", ciphertext=b"x"),
    ],
)
def test_a_malformed_batch_is_refused(
    served: Served, member: PlainDevice, batch: telemetry_pb2.SealedBatch
) -> None:
    code, _ = refusal(lambda: member.upload(served[0], [batch]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT


def test_an_upload_is_limited_in_batches_and_a_batch_in_bytes(served: Served, member: PlainDevice) -> None:
    fleet, store, _ = served
    batch = member.sealed(fleet)
    fits = telemetry_pb2.SealedBatch(header=batch.header, ciphertext=bytes(MAX_BATCH_BYTES))
    too_long = telemetry_pb2.SealedBatch(header=batch.header, ciphertext=bytes(MAX_BATCH_BYTES + 1))
    for batches in ([too_long], [member.sealed(fleet) for _ in range(MAX_BATCHES + 1)]):
        code, _ = refusal(functools.partial(member.upload, fleet, batches))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
    code, _ = refusal(lambda: member.upload(fleet, [fits] * 17))  # More than 4 MiB.
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stored(store) == 0
    member.upload(fleet, [fits])
    member.upload(fleet, [member.sealed(fleet) for _ in range(MAX_BATCHES)])
    assert stored(store) == 1 + MAX_BATCHES


def test_a_batch_sealed_to_a_key_of_yesterday_is_kept_for_the_opener(
    served: Served, member: PlainDevice
) -> None:
    """Refused here, it would come again for ever."""
    fleet, store, _ = served
    member.upload(fleet, [member.sealed(fleet, key=generate_keypair()[1])])
    assert stored(store) == 1


def test_the_gateway_needs_no_key_that_opens_or_releases(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    fleet.telemetry_key.unlink()
    fleet.release_key.unlink()
    device = PlainDevice()
    with running(fleet) as (_, store):
        device.enroll(fleet, store.tokens.issue(valid_s=HOUR_S))
        device.upload(fleet, [device.sealed(fleet)])
        assert stored(store) == 1


def test_a_full_disk_acknowledges_nothing_and_says_when_to_come_back(
    served: Served, member: PlainDevice
) -> None:
    fleet, store, _ = served

    def fill_disk(connection: Any, _record: object, _proxy: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(store.database.engine, "checkout", fill_disk)
    with pytest.raises(grpc.RpcError) as caught:
        member.upload(fleet, [member.sealed(fleet, plaintext=bytes(100_000))])
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "disk is full" in error.details()
    assert str(fleet.path) not in error.details()
    assert dict(error.trailing_metadata())[RETRY_AFTER] == "60"
    assert stored(store) == 0
    member.check(fleet)  # What needs no room goes on.


def test_a_bug_of_ours_is_logged_here_and_told_to_nobody(
    served: Served, member: PlainDevice, caplog: pytest.LogCaptureFixture
) -> None:
    fleet, store, _ = served
    with store.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE devices RENAME COLUMN status TO state")
    with pytest.raises(grpc.RpcError) as caught:
        member.check(fleet)
    error: Any = caught.value
    assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    assert "status" not in error.details()
    assert "no such column: devices.status" in caplog.text


# The listeners


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    address = ("127.0.0.1", fleet.settings.enroll_port)
    with (
        socket.create_server(address),
        fleet.open_store() as store,
        pytest.raises(UnavailableError, match=f"port of 127.0.0.1:{address[1]} is taken"),
    ):
        Gateway(fleet, store)


def test_two_gateways_do_not_share_a_port(served: Served) -> None:
    fleet, store, _ = served
    with pytest.raises(UnavailableError, match="is taken"):
        Gateway(fleet, store)


def test_calls_under_way_are_answered_when_the_gateway_stops(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    device = PlainDevice()
    data = secrets.token_bytes(16 * CHUNK_BYTES)
    with ExitStack() as client:
        with running(fleet) as (_, store):
            device.admit(fleet, store)
            sha256 = release((fleet, store, ManualClock()), data)
            channel = client.enter_context(device.channel(fleet))
            message = delivery_pb2.FetchRequest(sha256=sha256)
            stream = invoke(channel, delivery_pb2, "Delivery", "Fetch", message)
            received = [next(stream).data]
            rest = threading.Thread(target=lambda: received.extend(chunk.data for chunk in stream))
            rest.start()
        rest.join()
    assert b"".join(received) == data


def shown_certificate(fleet: FleetDir, device: PlainDevice, tmp_path: Path) -> x509.Certificate:
    """The certificate that the gateway shows to a new connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    pair = tmp_path / "pair.pem"
    pair.write_bytes(private_pem(device.tls) + device.certificate)
    context.load_cert_chain(pair)
    address = ("127.0.0.1", fleet.settings.gateway_port)
    with socket.create_connection(address) as raw, context.wrap_socket(raw) as secure:
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


def test_a_gateway_that_runs_for_months_renews_its_certificate(
    served: Served, member: PlainDevice, tmp_path: Path
) -> None:
    fleet, _, clock = served
    first = shown_certificate(fleet, member, tmp_path)
    clock.advance(59 * DAY_S)
    assert shown_certificate(fleet, member, tmp_path) == first
    clock.advance(2 * DAY_S)
    second = shown_certificate(fleet, member, tmp_path)
    assert second.not_valid_after_utc.timestamp() == int(clock.now_s) + 90 * DAY_S
    assert second.public_key() == first.public_key()


def test_a_lost_server_certificate_is_made_again(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    fleet.server_pem.unlink()
    fleet.server_key.unlink()
    with running(fleet) as (_, store):
        PlainDevice().enroll(fleet, store.tokens.issue(valid_s=HOUR_S))


def test_a_server_certificate_in_its_last_third_is_replaced_at_the_start(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    before = fleet.server_pem.read_bytes()
    due_s = renew_server_certificate(fleet, now_s=clock.now_s)
    assert fleet.server_pem.read_bytes() == before
    assert renew_server_certificate(fleet, now_s=due_s) > due_s
    assert fleet.server_pem.read_bytes() != before
