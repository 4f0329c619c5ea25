"""The fleet's certificate authority: what it issues and what it takes."""

from __future__ import annotations

import datetime
import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from service_fleet import DAY_S, make_csr, spki
from umbel_proto.errors import CertificateError, StorageError, UsageError
from umbel_proto.ids import DeviceId, FleetId
from umbel_server.fleet.ca import (
    BACKDATE_S,
    CertificateAuthority,
    device_of,
    generate_key,
    private_pem,
    read_csr,
)

NOW_S = 1_800_000_000
FLEET = FleetId("garden")
CA = CertificateAuthority.create(FLEET, now_s=NOW_S)
KEY = generate_key()


def leaf(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def device_certificate(now_s: float = NOW_S, device: str = "rose") -> x509.Certificate:
    return leaf(CA.issue_device(KEY.public_key(), DeviceId(device), now_s=now_s))


def at(now_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now_s, datetime.UTC)


def test_a_device_certificate_holds_for_24_hours_and_names_the_device_only_as_a_uri() -> None:
    certificate = device_certificate()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("umbel://garden/rose")]
    assert certificate.not_valid_before_utc == at(NOW_S - BACKDATE_S)
    assert certificate.not_valid_after_utc == at(NOW_S + DAY_S)
    assert certificate.subject == x509.Name([])


def test_a_device_certificate_is_for_clients_and_a_server_certificate_for_servers() -> None:
    server = leaf(CA.issue_server(KEY.public_key(), ["fleet.example", "127.0.0.1"], now_s=NOW_S))
    for certificate, usage in (
        (device_certificate(), ExtendedKeyUsageOID.CLIENT_AUTH),
        (server, ExtendedKeyUsageOID.SERVER_AUTH),
    ):
        found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(found) == [usage]


def test_another_implementation_of_path_validation_accepts_what_is_issued() -> None:
    trusted = PolicyBuilder().store(Store([CA.certificate])).time(at(NOW_S + 10))
    verified = trusted.build_client_verifier().verify(device_certificate(), [])
    assert verified.subjects == [x509.UniformResourceIdentifier("umbel://garden/rose")]
    server = leaf(CA.issue_server(KEY.public_key(), ["fleet.example"], now_s=NOW_S))
    trusted.build_server_verifier(x509.DNSName("fleet.example")).verify(server, [])


def test_the_certificate_names_the_device_to_the_last_second_of_its_life() -> None:
    certificate = device_certificate()
    assert device_of(certificate, fleet=FLEET, now_s=NOW_S + DAY_S - 1) == "rose"
    with pytest.raises(CertificateError, match="expired"):
        device_of(certificate, fleet=FLEET, now_s=NOW_S + DAY_S)


def test_a_certificate_of_another_fleet_names_no_device() -> None:
    with pytest.raises(CertificateError, match="no device of fleet meadow"):
        device_of(device_certificate(), fleet=FleetId("meadow"), now_s=NOW_S)


def test_a_server_certificate_names_no_device() -> None:
    certificate = leaf(CA.issue_server(KEY.public_key(), ["fleet.example"], now_s=NOW_S))
    with pytest.raises(CertificateError, match="names no device"):
        device_of(certificate, fleet=FLEET, now_s=NOW_S)


@pytest.mark.parametrize("device", ["", "a/b", "../rose", "Rose", "x" * 64])
def test_a_uri_that_holds_no_legal_name_names_no_device(device: str) -> None:
    with pytest.raises(CertificateError, match="names no device"):
        device_of(device_certificate(device=device), fleet=FLEET, now_s=NOW_S)


def test_a_request_gives_its_key_and_nothing_else_in_it_counts() -> None:
    assert read_csr(make_csr(KEY)) == KEY.public_key()


def test_a_request_with_any_bit_of_its_signature_flipped_is_refused() -> None:
    altered = bytearray(make_csr(KEY))
    altered[-1] ^= 1
    with pytest.raises(UsageError, match=r"signed by the key|malformed"):
        read_csr(bytes(altered))


def test_a_request_for_another_persons_key_is_refused() -> None:
    der = make_csr(KEY)
    other = generate_key().public_key()
    altered = der.replace(spki(KEY.public_key()), spki(other))
    with pytest.raises(UsageError, match="not signed by the key"):
        read_csr(altered)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_only_p256_keys_are_certified(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, algorithm)
    with pytest.raises(UsageError, match="P-256"):
        read_csr(request.public_bytes(serialization.Encoding.DER))


@pytest.mark.parametrize(
    "der", [b"", b"\x30\x80", b"\x00" * 100, make_csr(KEY)[:-1], make_csr(KEY) + b"\x00"]
)
def test_a_malformed_request_is_refused(der: bytes) -> None:
    with pytest.raises(UsageError, match="malformed"):
        read_csr(der)


def test_a_request_longer_than_any_right_one_is_not_even_read() -> None:
    with pytest.raises(UsageError, match="4097 bytes, more than 4096"):
        read_csr(bytes(4097))


def test_the_authority_survives_its_files() -> None:
    again = CertificateAuthority.from_pem(FLEET, CA.certificate_pem, CA.key_pem)
    device = leaf(again.issue_device(KEY.public_key(), DeviceId("rose"), now_s=NOW_S))
    device.verify_directly_issued_by(CA.certificate)


@pytest.mark.parametrize("damage", ["certificate", "key", "pair"])
def test_a_damaged_authority_says_to_restore_it(damage: str) -> None:
    certificate, key = CA.certificate_pem, CA.key_pem
    if damage == "certificate":
        certificate = certificate[:100]
    elif damage == "key":
        key = b"-----BEGIN PRIVATE KEY-----\n"
    else:
        key = private_pem(generate_key())
    with pytest.raises(StorageError, match="restore"):
        CertificateAuthority.from_pem(FLEET, certificate, key)


def test_the_repr_shows_no_key() -> None:
    assert not re.search(r"EllipticCurvePrivateKey|PRIVATE", repr(CA))
