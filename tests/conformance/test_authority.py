"""The fleet's authority, in this process and over its socket, and gateways that lie to it.

Laws: both kinds answer alike; whatever a gateway makes of what devices gave it, it gets no certificate for another name
or key, no other life, no other kind, and none for a device that is out; and without the authority members go on.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from service_fleet import DAY_S, HOUR_S, ManualClock, PlainDevice, make_csr, policy
from umbel_proto.credentials import open_credential
from umbel_proto.enrollment import prove_identity, prove_return
from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    TokenError,
    UmbelError,
    UsageError,
    VerificationError,
)
from umbel_proto.ids import DeviceId
from umbel_proto.keys import SigningKey
from umbel_proto.wire import authority_pb2
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_server.ca import messages
from umbel_server.ca.authority import Authority, Papers
from umbel_server.ca.messages import AuthorityDownError
from umbel_server.ca.registrar import CHALLENGE_SKEW_S, Registrar
from umbel_server.ca.remote import RemoteAuthority
from umbel_server.ca.service import AuthorityService
from umbel_server.fleet.ca import CertificateAuthority, generate_key
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway.server import Gateway
from umbel_server.store.admission import QuotaError, WaitingError
from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class World:
    """A fleet, and its authority as a gateway sees it."""

    fleet: FleetDir
    store: Store
    clock: ManualClock
    authority: Authority

    def token(self, **terms: object) -> bytes:
        return self.store.tokens.issue(valid_s=HOUR_S, **terms)  # type: ignore[arg-type]

    def enrolled(self, name: str = "rose") -> PlainDevice:
        device = PlainDevice()
        take(device, self.authority.enroll(device.enroll_request(self.token(), name=name)))
        return device


def take(device: PlainDevice, papers: Papers) -> None:
    device.id, device.certificate = papers.device, papers.certificate


def terms(fleet: FleetDir, **settings: object) -> None:
    """Change the table [enrollment] of a fleet's file."""
    path = fleet.path / "fleet.toml"
    lines = path.read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("[enrollment]"))
    for name, value in settings.items():
        place = next(n for n in range(begin, len(lines)) if lines[n].startswith(f"{name} ="))
        lines[place] = f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}"
    path.write_text("\n".join(lines))


@functools.cache
def template(apart: bool) -> Path:
    """A fleet to copy: to make one takes longer than what is tested here."""
    root = Path(tempfile.mkdtemp(prefix="umbel-authority-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return create_fleet(root / "garden", name="garden", policy=policy(), ca_apart=apart).path


@contextlib.contextmanager
def world_at(path: Path, *, apart: bool, **settings: object) -> Iterator[World]:
    clock = ManualClock()
    shutil.copytree(template(apart), path / "garden")
    made = FleetDir.open(path / "garden")
    terms(made, **settings)
    fleet = FleetDir.open(made.path)
    with fleet.open_store(clock=clock) as store:
        registrar = Registrar.open(fleet, store, clock=clock)
        if not apart:
            yield World(fleet, store, clock, registrar)
            return
        with AuthorityService(fleet, registrar):
            yield World(fleet, store, clock, RemoteAuthority.of(fleet))


@pytest.fixture(params=[False, True], ids=["here", "apart"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path, apart=request.param) as made:
        yield made


# What it gives


def leaf_of(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem)[0]


def check_papers(world: World, papers: Papers, device: PlainDevice, name: str) -> None:
    """What every paper of a device must be, whoever asked for it and however."""
    leaf = leaf_of(papers.certificate)
    leaf.verify_directly_issued_by(world.fleet.authority().certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(f"umbel://garden/{name}")]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert leaf.public_key() == device.tls.public_key()
    assert leaf.not_valid_after_utc.timestamp() == papers.not_after_s == int(world.clock.now_s) + DAY_S
    credential = open_credential(
        papers.credential.SerializeToString(),
        authority=world.fleet.authority_public(),
        fleet=world.fleet.name,
        now_s=world.clock.now_s,
    )
    assert (credential.device, credential.identity_key) == (name, device.identity.public)
    assert credential.not_after_s == papers.not_after_s


def test_entry_a_repeat_renewal_and_return_give_papers_of_the_same_form(world: World) -> None:
    device = PlainDevice()
    request = device.enroll_request(world.token(), name="rose")
    for _ in range(2):
        papers = world.authority.enroll(request)
        check_papers(world, papers, device, "rose")
    world.clock.advance(16 * HOUR_S)
    papers = world.authority.renew(papers.certificate, make_csr(device.tls))
    check_papers(world, papers, device, "rose")
    world.clock.advance(3 * DAY_S)
    check_papers(world, world.authority.readmit(returning(world, device, "rose")), device, "rose")
    assert len(world.store.devices.all()) == 1


def test_the_services_get_a_certificate_for_their_own_hosts_and_as_servers_only(world: World) -> None:
    key = generate_key()
    wish = x509.SubjectAlternativeName(
        [x509.DNSName("bank.example"), x509.UniformResourceIdentifier("umbel://garden/rose")]
    )
    pem = world.authority.certify_service(
        csr_with(key, wish, x509.BasicConstraints(ca=True, path_length=None))
    )
    leaf = leaf_of(pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == {"127.0.0.1", "localhost"}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]


# What it refuses


def returning(
    world: World,
    device: PlainDevice,
    name: str,
    *,
    asked_s: float | None = None,
    csr: bytes | None = None,
    key: SigningKey | None = None,
) -> pb.ReadmitRequest:
    moment = world.clock.now_s if asked_s is None else asked_s
    challenge = int(moment).to_bytes(8, "big") + secrets.token_bytes(48)
    csr = csr or make_csr(device.tls)
    proof = prove_return(
        key or device.identity, fleet=world.fleet.name, device=DeviceId(name), challenge=challenge, csr=csr
    )
    return pb.ReadmitRequest(device_id=name, challenge=challenge, csr=csr, proof=proof)


def csr_with(key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def forged(world: World, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate for rose that says it is the fleet authority's, and is signed by somebody else."""
    now = datetime.datetime.fromtimestamp(world.clock.now_s, datetime.UTC)
    uri = x509.UniformResourceIdentifier("umbel://garden/rose")
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(world.fleet.authority().certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


Lie = Callable[[World, PlainDevice], object]
MALLORY = generate_key()
"""A gateway's own key: what it would like certified under a device's name."""


def with_its_own_key(world: World, rose: PlainDevice) -> object:
    return world.authority.renew(rose.certificate, make_csr(MALLORY))


def with_a_certificate_it_signed(world: World, rose: PlainDevice) -> object:
    return world.authority.renew(forged(world, MALLORY, MALLORY), make_csr(MALLORY))


def with_one_of_an_authority_of_the_same_name(world: World, rose: PlainDevice) -> object:
    other = CertificateAuthority.create(world.fleet.name, now_s=world.clock.now_s)
    pem = other.issue_device(MALLORY.public_key(), DeviceId("rose"), now_s=world.clock.now_s)
    return world.authority.renew(pem, make_csr(MALLORY))


def with_the_services_certificate(world: World, rose: PlainDevice) -> object:
    pem = world.authority.certify_service(make_csr(MALLORY))
    return world.authority.renew(pem, make_csr(MALLORY))


def with_the_authoritys_certificate(world: World, rose: PlainDevice) -> object:
    return world.authority.renew(world.fleet.ca_pem.read_bytes(), make_csr(MALLORY))


def with_an_expired_certificate(world: World, rose: PlainDevice) -> object:
    world.clock.advance(DAY_S)
    return world.authority.renew(rose.certificate, make_csr(rose.tls))


def while_its_clock_is_ahead_of_ours(world: World, rose: PlainDevice) -> object:
    world.clock.advance(-HOUR_S)
    return world.authority.renew(rose.certificate, make_csr(rose.tls))


def of_a_device_of_another_fleet(world: World, rose: PlainDevice) -> object:
    ca = world.fleet.authority()
    elsewhere = CertificateAuthority(world.fleet.name.__class__("meadow"), ca.certificate, ca._key)
    pem = elsewhere.issue_device(rose.tls.public_key(), rose.id, now_s=world.clock.now_s)
    return world.authority.renew(pem, make_csr(rose.tls))


def of_a_device_that_never_enrolled(world: World, rose: PlainDevice) -> object:
    rose.certify(world.fleet.authority(), now_s=world.clock.now_s, device="nobody")
    return world.authority.renew(rose.certificate, make_csr(rose.tls))


def of_a_revoked_device(world: World, rose: PlainDevice) -> object:
    world.store.devices.revoke(rose.id)
    return world.authority.renew(rose.certificate, make_csr(rose.tls))


def of_a_device_whose_place_is_taken(world: World, rose: PlainDevice) -> object:
    successor = PlainDevice()
    world.authority.enroll(successor.enroll_request(world.token(device="rose", replaces=True)))
    return world.authority.renew(rose.certificate, make_csr(rose.tls))


def back_with_its_own_key(world: World, rose: PlainDevice) -> object:
    request = returning(world, rose, "rose")
    request.csr = make_csr(MALLORY)
    return world.authority.readmit(request)


def back_by_its_own_identity(world: World, rose: PlainDevice) -> object:
    return world.authority.readmit(returning(world, rose, "rose", key=SigningKey.generate()))


def back_as_another(world: World, rose: PlainDevice) -> object:
    world.enrolled("lily")
    request = returning(world, rose, "rose")
    request.device_id = "lily"
    return world.authority.readmit(request)


def back_by_what_was_signed_long_ago(world: World, rose: PlainDevice) -> object:
    return world.authority.readmit(
        returning(world, rose, "rose", asked_s=world.clock.now_s - CHALLENGE_SKEW_S - 1)
    )


def back_by_what_was_signed_for_later(world: World, rose: PlainDevice) -> object:
    return world.authority.readmit(
        returning(world, rose, "rose", asked_s=world.clock.now_s + CHALLENGE_SKEW_S + 1)
    )


def back_though_revoked(world: World, rose: PlainDevice) -> object:
    world.store.devices.revoke(rose.id)
    return world.authority.readmit(returning(world, rose, "rose"))


def back_after_too_long(world: World, rose: PlainDevice) -> object:
    world.clock.advance((world.fleet.settings.return_days + 1) * DAY_S + 1)
    return world.authority.readmit(returning(world, rose, "rose"))


def in_by_a_token_that_nobody_gave_out(world: World, rose: PlainDevice) -> object:
    return world.authority.enroll(PlainDevice().enroll_request(secrets.token_bytes(32), name="weed"))


def in_by_a_token_that_is_spent(world: World, rose: PlainDevice) -> object:
    token = world.token()
    world.authority.enroll(PlainDevice().enroll_request(token, name="lily"))
    return world.authority.enroll(PlainDevice().enroll_request(token, name="weed"))


def in_with_its_own_key(world: World, rose: PlainDevice) -> object:
    request = PlainDevice().enroll_request(world.token(), name="weed")
    request.csr = make_csr(MALLORY)
    return world.authority.enroll(request)


def in_under_a_name_that_is_taken(world: World, rose: PlainDevice) -> object:
    return world.authority.enroll(PlainDevice().enroll_request(world.token(), name="rose"))


def in_with_the_identity_of_another(world: World, rose: PlainDevice) -> object:
    thief = PlainDevice(node=PlainDevice().node)
    request = thief.enroll_request(world.token(), name="weed")
    request.identity_key = rose.identity.public.raw
    return world.authority.enroll(request)


def in_with_another_curve(world: World, rose: PlainDevice) -> object:
    device = PlainDevice()
    request = device.enroll_request(world.token(), name="weed")
    request.csr = make_csr(ec.generate_private_key(ec.SECP384R1()))
    request.identity_proof = prove_identity(device.identity, csr=request.csr, node_key=request.node_key)
    return world.authority.enroll(request)


LIES: dict[Lie, type[UmbelError]] = {
    with_its_own_key: RefusedError,
    with_a_certificate_it_signed: CertificateError,
    with_one_of_an_authority_of_the_same_name: CertificateError,
    with_the_services_certificate: CertificateError,
    with_the_authoritys_certificate: CertificateError,
    with_an_expired_certificate: CertificateError,
    while_its_clock_is_ahead_of_ours: CertificateError,
    of_a_device_of_another_fleet: CertificateError,
    of_a_device_that_never_enrolled: RefusedError,
    of_a_revoked_device: RefusedError,
    of_a_device_whose_place_is_taken: RefusedError,
    back_with_its_own_key: RefusedError,
    back_by_its_own_identity: RefusedError,
    back_as_another: RefusedError,
    back_by_what_was_signed_long_ago: RefusedError,
    back_by_what_was_signed_for_later: RefusedError,
    back_though_revoked: RefusedError,
    back_after_too_long: RefusedError,
    in_by_a_token_that_nobody_gave_out: TokenError,
    in_by_a_token_that_is_spent: TokenError,
    in_with_its_own_key: VerificationError,
    in_under_a_name_that_is_taken: UsageError,
    in_with_the_identity_of_another: VerificationError,
    in_with_another_curve: UsageError,
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_gateway_that_lies_gets_nothing(world: World, lie: Lie) -> None:
    rose = world.enrolled()
    with pytest.raises(LIES[lie]) as refused:
        lie(world, rose)
    assert str(refused.value).endswith((".", "--again", "--replaces"))
    assert world.store.devices.get(DeviceId("weed")) is None


def test_nothing_that_a_request_wishes_for_is_in_what_it_gets(world: World) -> None:
    """A certificate authority, another name, another purpose: a CSR may ask for all, and only its key is used."""
    device = PlainDevice()
    wishes = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier("umbel://garden/lily"), x509.DNSName("a.example")]
        ),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.KeyUsage(True, False, False, False, False, True, True, False, False),
    )
    request = device.enroll_request(world.token(), name="rose")
    request.csr = csr_with(device.tls, *wishes)
    request.identity_proof = prove_identity(device.identity, csr=request.csr, node_key=request.node_key)
    papers = world.authority.enroll(request)
    check_papers(world, papers, device, "rose")
    check_papers(world, world.authority.renew(papers.certificate, request.csr), device, "rose")


def test_a_token_for_one_name_gives_no_other(world: World) -> None:
    device = PlainDevice()
    papers = world.authority.enroll(device.enroll_request(world.token(device="rose"), name="lily"))
    check_papers(world, papers, device, "rose")


def test_a_quarantined_device_renews_and_comes_back(world: World) -> None:
    rose = world.enrolled()
    world.store.devices.quarantine(rose.id, reason="odd answers")
    check_papers(world, world.authority.renew(rose.certificate, make_csr(rose.tls)), rose, "rose")
    check_papers(world, world.authority.readmit(returning(world, rose, "rose")), rose, "rose")


@pytest.mark.parametrize("apart", [False, True], ids=["here", "apart"])
def test_what_passes_is_told_from_what_does_not(tmp_path: Path, apart: bool) -> None:
    with world_at(tmp_path, apart=apart, mode="approve", max_pending=1) as world:
        rose = PlainDevice().enroll_request(world.token(), name="rose")
        with pytest.raises(WaitingError) as waits:
            world.authority.enroll(rose)
        (pending,) = world.store.applications.pending()
        assert waits.value.application == pending.id
        with pytest.raises(QuotaError, match="1 devices wait for approval already"):
            world.authority.enroll(PlainDevice().enroll_request(world.token(), name="lily"))


# The socket


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path, apart=True) as made:
        yield made


def raw(world: World, data: bytes) -> bytes:
    """Send bytes to the authority; return all that comes."""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(20)
        connection.connect(str(world.fleet.path / "ca" / "ca.sock"))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


def test_nobody_but_its_user_can_reach_the_socket(apart: World) -> None:
    mode = (apart.fleet.path / "ca" / "ca.sock").stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)


def test_a_user_that_may_not_ask_gets_no_answer(tmp_path: Path) -> None:
    """The kernel says who asks, and this user is taken off the list."""
    with world_at(tmp_path, apart=False) as world, AuthorityService(world.fleet, world.authority) as service:
        ask = authority_pb2.AuthorityRequest(service_csr=make_csr(MALLORY)).SerializeToString()
        framed = len(ask).to_bytes(4, "big") + ask
        assert b"CERTIFICATE" in raw(world, framed)
        service.users = frozenset({os.geteuid() + 1})
        assert raw(world, framed) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0\0\5abc",
        b"\xff" * 4,
        b"\0\0\0\3abc",
        b"\0\0\0\0",
        (65537).to_bytes(4, "big"),
        secrets.token_bytes(300),
    ],
)
def test_garbage_on_the_socket_gets_nothing_and_harms_nobody(apart: World, data: bytes) -> None:
    answer = raw(apart, data)
    if answer:
        reply = authority_pb2.AuthorityReply.FromString(answer[4:])
        assert reply.WhichOneof("answer") == "refusal"
    apart.enrolled()


def test_who_connects_and_is_silent_keeps_nobody_waiting(apart: World) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(apart.fleet.path / "ca" / "ca.sock"))
        apart.enrolled()


def test_a_second_authority_says_that_one_runs_and_a_killed_ones_socket_is_no_hindrance(apart: World) -> None:
    registrar = Registrar.open(apart.fleet, apart.store, clock=apart.clock)
    with pytest.raises(UmbelError, match="runs already"):
        AuthorityService(apart.fleet, registrar)
    path = apart.fleet.path / "ca" / "ca.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # Bound, never listening: what a kill leaves.
    with AuthorityService(apart.fleet, registrar):
        apart.enrolled()


def test_a_fleet_that_lies_deep_has_an_authority_too(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with world_at(deep, apart=True) as world:
        world.enrolled()


def test_every_kind_of_refusal_arrives_as_what_it_was() -> None:
    for kind in set(messages.KINDS.values()) - {WaitingError}:
        sentence = "One sentence."
        back = messages.to_error(messages.refusal(kind(sentence)))
        passes = kind.__name__ in ("StorageError", "UnavailableError")
        assert (type(back), str(back)) == (AuthorityDownError if passes else kind, sentence)


# The gateway without it


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    told = {str(item.key): str(item.value) for item in error.trailing_metadata()}
    return error.code(), str(error.details()), told


def test_while_the_authority_is_away_members_go_on_and_the_rest_waits(tmp_path: Path) -> None:
    fleet = create_fleet(tmp_path / "garden", name="garden", policy=policy(), ca_apart=True)
    with fleet.open_store() as store:
        registrar = Registrar.open(fleet, store, clock=store.clock)
        # The gateway's machine has none of the authority's keys.
        for key in (fleet.ca_key, fleet.authority_key):
            key.unlink()
        with Gateway(fleet, store):
            rose, lily = PlainDevice(), PlainDevice()
            tokens = [store.tokens.issue(valid_s=HOUR_S) for _ in range(2)]
            with AuthorityService(fleet, registrar):
                rose.enroll(fleet, tokens[0], name="rose")
            for ask in (lambda: lily.enroll(fleet, tokens[1], name="lily"), lambda: rose.renew(fleet)):
                code, sentence, told = refusal(ask)
                assert (code, told["umbel-retry-after-s"]) == (grpc.StatusCode.UNAVAILABLE, "30")
                assert "authority does not answer" in sentence
                assert str(tmp_path) not in sentence
            rose.check(fleet)
            rose.upload(fleet, [rose.sealed(fleet)])
            with AuthorityService(fleet, registrar):
                lily.enroll(fleet, tokens[1], name="lily")
                rose.certificate = rose.renew(fleet).certificate
            rose.check(fleet)
            assert [device.id for device in store.devices.all()] == ["lily", "rose"]
