"""Getting into a fleet, and staying in it: keys made here, certificates from there."""

from __future__ import annotations

import logging

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from umbel._channel import Gateway, call, enrollment
from umbel._files import read_file
from umbel._home import DeviceHome, Identity
from umbel._keys import EnrollmentKeys, load_ec_key
from umbel._ledger import Ledger
from umbel._spool import Spool
from umbel_proto.credentials import open_credential, open_policy
from umbel_proto.enrollment import Token, check_address, prove_identity
from umbel_proto.errors import (
    CertificateError,
    RemoteProtocolError,
    StorageError,
    TokenError,
    UmbelError,
    UsageError,
)
from umbel_proto.ids import DeviceId, FleetId, check_name
from umbel_proto.keys import VerifyKey
from umbel_proto.seal import SealPublicKey
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_proto.wire.identity_pb2 import Signed

log = logging.getLogger(__name__)


def enroll(
    home: DeviceHome,
    token_text: str,
    gateway: str | None = None,
    *,
    name: str = "",
    again: bool = False,
    now_s: float,
) -> Identity:
    """Make this home a device of the fleet that gave the token.

    The keys are made here and their private halves never leave. The privacy ledger is kept when
    the device enrolls again: what its data has given away does not come back.

    Args:
        home: Where.
        token_text: The operator's token.
        gateway: ``host:port`` to enroll at instead of the token's.
        name: What the operator will see it called.
        again: Replace an identity that is there, for one whose certificate has expired.
        now_s: The time, Unix seconds.

    Returns:
        Who the device is now.

    Raises:
        UsageError: The home is enrolled already.
        TokenError: The token is malformed, unknown, used or expired.
        UnavailableError: The server does not answer.
        CertificateError: The answer does not hold together.
        StorageError: The home cannot be written.
    """
    if home.enrolled and not again:
        raise UsageError(
            f"{home.path} is already device {home.identity.device} of fleet {home.identity.fleet}: give "
            "another --home, or replace it with --again."
        )
    token = Token.from_text(token_text)
    address = check_address(gateway, "gateway") if gateway else token.enrollment
    try:
        authority = x509.load_der_x509_certificate(token.ca_certificate)
    except ValueError as exc:
        raise TokenError("The enrollment token is incomplete or altered: copy it again.") from exc
    ca_pem = authority.public_bytes(serialization.Encoding.PEM)

    home.make()
    Ledger.create(home.ledger).close()
    keys = EnrollmentKeys.of_attempt(home.enrolling, token)
    csr = _csr(keys.tls)
    node_key = keys.node.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    request = pb.EnrollRequest(
        token=token.secret,
        csr=csr,
        identity_key=keys.identity.public.raw,
        identity_proof=prove_identity(keys.identity, csr=csr, node_key=node_key),
        node_key=node_key,
        name=name,
    )
    with enrollment(address, ca_pem) as stub:
        reply: pb.EnrollReply = call(stub.Enroll, request, address, unknown=TokenError)
    return _settle(home, keys, authority, reply, now_s)


def renew(home: DeviceHome, gateway: Gateway, *, now_s: float) -> None:
    """Get a new certificate, credential and policy for the keys the device has.

    Raises:
        UnavailableError: The gateway does not answer.
        RefusedError: The device was removed from the fleet.
        CertificateError: The answer does not hold together, or the policy is older than ours.
        StorageError: The home cannot be written.
    """
    identity = home.identity
    try:
        tls = load_ec_key(read_file(home.tls_key))
    except UsageError as exc:
        raise StorageError(f"{home.tls_key} is damaged: enroll again with --again.") from exc
    reply: pb.RenewReply = call(gateway.membership.Renew, pb.RenewRequest(csr=_csr(tls)), gateway.address)
    authority = _read_ca(home)
    _check_certificate(reply.certificate, authority, tls.public_key(), identity, now_s)
    key = home.authority()
    _check_credential(reply.credential, key, identity, home.signing_key().public, now_s)
    policy = open_policy(reply.policy.SerializeToString(), authority=key, fleet=identity.fleet)
    if policy.version < home.open_policy().version:
        raise CertificateError(f"The gateway offers policy {policy.version}, older than the one in force.")
    seal_key = _seal_key(reply.telemetry_key)

    home.write(home.policy, reply.policy.SerializeToString(), secret=False)
    home.write_telemetry_key(seal_key)
    home.write(home.credential, reply.credential.SerializeToString(), secret=False)
    home.write(home.tls_certificate, reply.certificate, secret=False)
    log.info("certificate of %s renewed", identity.device)


def _settle(
    home: DeviceHome, keys: EnrollmentKeys, authority: x509.Certificate, reply: pb.EnrollReply, now_s: float
) -> Identity:
    """Check everything the fleet answered, then write it, the identity last."""
    try:
        identity = Identity(
            FleetId(check_name(reply.fleet_id, "fleet")),
            DeviceId(check_name(reply.device_id, "device")),
            check_address(reply.gateway, "gateway"),
            check_address(reply.superlink, "SuperLink") if reply.superlink else "",
        )
        authority_key, release_key = VerifyKey(reply.authority_key), VerifyKey(reply.release_key)
    except UsageError as exc:
        raise RemoteProtocolError("server", str(exc)) from exc
    seal_key = _seal_key(reply.telemetry_key)
    _check_certificate(reply.certificate, authority, keys.tls.public_key(), identity, now_s)
    _check_credential(reply.credential, authority_key, identity, keys.identity.public, now_s)
    open_policy(reply.policy.SerializeToString(), authority=authority_key, fleet=identity.fleet)

    home.identity_file.unlink(missing_ok=True)
    with Spool(home.spool) as spool:
        spool.clear()  # Batches of an earlier identity: no gateway takes them from this one.
    home.write(home.tls_key, keys.tls_pem(), secret=True)
    home.write(home.identity_key, keys.identity.to_pem(), secret=True)
    home.write(home.node_key, keys.node_openssh(), secret=True)
    home.write(home.ca_certificate, authority.public_bytes(serialization.Encoding.PEM), secret=False)
    home.write(home.tls_certificate, reply.certificate, secret=False)
    home.write(home.credential, reply.credential.SerializeToString(), secret=False)
    home.write(home.policy, reply.policy.SerializeToString(), secret=False)
    home.write(home.authority_key, authority_key.raw, secret=False)
    home.write(home.release_key, release_key.raw, secret=False)
    home.write_telemetry_key(seal_key)
    home.write_identity(identity)
    home.enrolling.unlink(missing_ok=True)
    log.info("enrolled as %s in fleet %s", identity.device, identity.fleet)
    return identity


def _csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a request to certify a key, DER; the fleet, not the request, says whom it names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _check_certificate(
    pem: bytes, authority: x509.Certificate, key: ec.EllipticCurvePublicKey, identity: Identity, now_s: float
) -> None:
    """Check that a certificate is the fleet's, for this device, this key and this time.

    Raises:
        CertificateError: It is not.
    """
    try:
        leaf = x509.load_pem_x509_certificates(pem)[0]
        leaf.verify_directly_issued_by(authority)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, TypeError, IndexError, InvalidSignature, x509.ExtensionNotFound) as exc:
        raise CertificateError(
            "The fleet answered with a certificate that its own authority did not sign."
        ) from exc
    if uris != [f"umbel://{identity.fleet}/{identity.device}"] or leaf.public_key() != key:
        raise CertificateError(f"The fleet answered with a certificate that is not for {identity.device}.")
    if not leaf.not_valid_before_utc.timestamp() <= now_s < leaf.not_valid_after_utc.timestamp():
        raise CertificateError(
            "The new certificate does not hold now: set this machine's clock and try again."
        )


def _check_credential(
    signed: Signed, authority: VerifyKey, identity: Identity, key: VerifyKey, now_s: float
) -> None:
    credential = open_credential(
        signed.SerializeToString(), authority=authority, fleet=identity.fleet, now_s=now_s
    )
    if (credential.device, credential.identity_key) != (identity.device, key):
        raise CertificateError(f"The fleet answered with a credential that is not for {identity.device}.")


def _seal_key(message: pb.TelemetryKey) -> SealPublicKey:
    try:
        key = SealPublicKey(message.public_key, message.suite)
    except UmbelError as exc:
        raise RemoteProtocolError("server", str(exc)) from exc
    if key.key_id != message.key_id:
        raise RemoteProtocolError("server", "the telemetry key is not the one its name says")
    return key


def _read_ca(home: DeviceHome) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_file(home.ca_certificate))
    except ValueError as exc:
        raise StorageError(f"{home.ca_certificate} is damaged: enroll again with --again.") from exc
