"""The gateway over real gRPC and TLS: how a token becomes papers, and papers are renewed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import event

from gateway_world import HOUR_S, Served, refusal
from service_fleet import DAY_S, ManualClock, PlainDevice, make_csr, make_fleet, running, spki
from umbel_proto.credentials import open_credential, open_policy
from umbel_proto.enrollment import prove_identity
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.wire import enrollment_pb2
from umbel_server.fleet.ca import generate_key
from umbel_server.gateway.server import ENROLL_MESSAGE_BYTES


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
    assert "issued device=" in caplog.text
    assert "refused Enroll" in caplog.text
    for shown in (token.hex(), repr(token)[2:-1]):
        assert shown not in caplog.text


def test_a_request_larger_than_any_right_one_is_not_read(served: Served) -> None:
    fleet, store, _ = served
    device, token = PlainDevice(), store.tokens.issue(valid_s=HOUR_S)
    request = device.enroll_request(token, name="x" * ENROLL_MESSAGE_BYTES)
    code, _ = refusal(lambda: device.enroll(fleet, token, request=request))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_renewed_papers_take_over_from_the_old_ones(served: Served, member: PlainDevice) -> None:
    fleet, store, clock = served
    clock.advance(16 * HOUR_S)
    reply = member.renew(fleet)
    credential = open_credential(
        reply.credential.SerializeToString(),
        authority=fleet.authority_public(),
        fleet=fleet.name,
        now_s=clock.now_s,
    )
    leaf = x509.load_pem_x509_certificates(reply.certificate)[0]
    ends_s = int(clock.now_s) + DAY_S
    assert leaf.public_key() == member.tls.public_key()
    assert leaf.not_valid_after_utc.timestamp() == credential.not_after_s == ends_s
    assert credential.identity_key == member.identity.public
    assert store.devices.admit(member.id).certificate_not_after_s == ends_s


def test_renewed_papers_work(served: Served, member: PlainDevice) -> None:
    fleet, _, _ = served
    member.certificate = member.renew(fleet).certificate
    member.check(fleet)


def test_a_device_renews_only_the_key_that_it_has(served: Served, member: PlainDevice) -> None:
    """Or whoever carries its request could put in a key of their own."""
    fleet, _, _ = served
    code, sentence = refusal(lambda: member.renew(fleet, csr=make_csr(generate_key())))
    assert (code, "the key that it has" in sentence) == (grpc.StatusCode.PERMISSION_DENIED, True)


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
