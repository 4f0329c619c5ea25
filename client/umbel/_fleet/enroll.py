"""Getting into a fleet, and staying in it: keys made here, certificates from there."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from fractions import Fraction

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from umbel._fleet.approval import facts
from umbel._fleet.channel import Gateway, PendingError, call, enrollment, readmission
from umbel._home.directory import DeviceHome, Identity, Pending
from umbel._home.files import read_file, sync_directory
from umbel._home.keys import EnrollmentKeys, load_ec_key
from umbel._rounds.ledger import Ledger
from umbel._telemetry.spool import Spool
from umbel_proto.credentials import open_credential, open_policy
from umbel_proto.encoding import digest
from umbel_proto.enrollment import Token, check_address, fingerprint, prove_identity, prove_return
from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    RemoteProtocolError,
    StorageError,
    TokenError,
    UmbelError,
    UsageError,
)
from umbel_proto.ids import DeviceId, FleetId, RunId, check_name
from umbel_proto.keys import VerifyKey
from umbel_proto.privacy.ledger import Charge
from umbel_proto.seal import SealPublicKey
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_proto.wire.identity_pb2 import Signed
from umbel_proto.wire.telemetry_pb2 import BatchHeader

PAST_LABEL = "umbel/1/past-charge"

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
    the device enrolls again: what its data has given away does not come back. One that comes back to its
    fleet keeps its name too, and with it the reports that wait, unless it asks for another name.

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
        PendingError: An operator is to approve first: ask again with the same token, as `umbel._fleet.approval` does.
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
    kept = _kept_keys(home, ca_pem, name)
    keys = EnrollmentKeys.of_attempt(home.enrolling, token, kept)
    try:
        try:
            reply = _apply(keys, token, address, ca_pem, name)
        except RefusedError:
            if kept is None:
                raise
            # The fleet does not want this identity back, or the token is another device's: the token still admits one.
            home.enrolling.unlink()
            keys = EnrollmentKeys.of_attempt(home.enrolling, token)
            reply = _apply(keys, token, address, ca_pem, name)
    except PendingError as exc:
        home.write_pending(Pending(exc.application, fingerprint(keys.identity.public), address))
        raise
    except RefusedError:
        home.pending_file.unlink(missing_ok=True)
        raise
    return _settle(home, keys, authority, reply, address, now_s)


def _kept_keys(home: DeviceHome, ca_pem: bytes, name: str) -> EnrollmentKeys | None:
    """Return the keys of an identity that comes back to its fleet; None for another name or fleet, or without keys."""
    try:
        if name not in ("", home.identity.device) or read_file(home.ca_certificate) != ca_pem:
            return None
        return EnrollmentKeys.renewed(home.signing_key(), load_ec_key(read_file(home.node_key)))
    except UmbelError:
        return None  # Not enrolled, or damaged: what enrolling again is for.


def _apply(keys: EnrollmentKeys, token: Token, address: str, ca_pem: bytes, name: str) -> pb.EnrollReply:
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
        facts=facts(),
    )
    with enrollment(address, ca_pem) as stub:
        reply: pb.EnrollReply = call(stub.Enroll, request, address, unknown=TokenError)
    return reply


def renew(home: DeviceHome, gateway: Gateway, *, now_s: float) -> None:
    """Get a new certificate, credential and policy for the keys the device has.

    Raises:
        UnavailableError: The gateway does not answer.
        RefusedError: The device was removed from the fleet.
        CertificateError: The answer does not hold together, or the policy is older than ours.
        StorageError: The home cannot be written.
    """
    tls = _tls_key(home)
    reply: pb.RenewReply = call(gateway.membership.Renew, pb.RenewRequest(csr=_csr(tls)), gateway.address)
    _take(home, reply, tls, now_s)
    log.info("certificate of %s renewed", home.identity.device)


def come_back(home: DeviceHome, *, now_s: float) -> None:
    """Get new papers for a device whose certificate has expired: its identity key says who it is.

    Args:
        home: The device's files.
        now_s: The time, Unix seconds.

    Raises:
        UnavailableError: The fleet does not answer.
        RefusedError: The device was removed from the fleet, or was away for too long.
        CertificateError: The device does not know where to come back, the fleet takes nobody back, or the answer
            does not hold together.
        StorageError: The home cannot be written.
    """
    identity, tls, key = home.identity, _tls_key(home), home.signing_key()
    address = identity.enrollment
    if not address:
        home.require_valid_certificate(now_s)  # It enrolled with an older umbel.
    ca, csr = read_file(home.ca_certificate), _csr(tls)
    with readmission(address, ca) as stub:
        try:
            asked: pb.ChallengeReply = call(stub.Challenge, pb.ChallengeRequest(), address)
        except RemoteProtocolError as exc:
            home.require_valid_certificate(now_s)
            raise exc  # An older gateway, and the certificate still holds.
        challenge = asked.challenge
        proof = prove_return(key, fleet=identity.fleet, device=identity.device, challenge=challenge, csr=csr)
        request = pb.ReadmitRequest(device_id=identity.device, challenge=challenge, csr=csr, proof=proof)
        reply: pb.RenewReply = call(stub.Readmit, request, address)
    _take(home, reply, tls, now_s)
    log.info("%s is back in fleet %s", identity.device, identity.fleet)


def keep_certificate(home: DeviceHome, *, now_s: float) -> None:
    """Come back to the fleet if the certificate has expired; do nothing if it holds.

    Raises:
        UmbelError: As ``come_back``.
    """
    if now_s >= home.certificate_validity().ends_s:
        come_back(home, now_s=now_s)


def _take(home: DeviceHome, reply: pb.RenewReply, tls: ec.EllipticCurvePrivateKey, now_s: float) -> None:
    """Check new papers, then write them, the certificate last: as long as that is old, it is tried again."""
    identity, authority = home.identity, _read_ca(home)
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
    if reply.root and not home.root.exists():
        # Learned late: it enrolled before releases were signed so. The connection says whose it is, as at enrollment.
        from umbel._fleet.updater import check_root

        check_root(reply.root)
        home.write(home.root, reply.root, secret=False)
    if reply.enrollment and not identity.enrollment:
        # Learned late: it enrolled with an older umbel.
        home.write_identity(replace(identity, enrollment=check_address(reply.enrollment, "enrollment")))
    home.write(home.tls_certificate, reply.certificate, secret=False)


def _tls_key(home: DeviceHome) -> ec.EllipticCurvePrivateKey:
    try:
        return load_ec_key(read_file(home.tls_key))
    except UsageError as exc:
        raise StorageError(f"{home.tls_key} is damaged: enroll again with --again.") from exc


def _settle(
    home: DeviceHome,
    keys: EnrollmentKeys,
    authority: x509.Certificate,
    reply: pb.EnrollReply,
    address: str,
    now_s: float,
) -> Identity:
    """Check everything the fleet answered, then write it, the identity last."""
    from umbel._fleet.updater import check_root

    try:
        identity = Identity(
            FleetId(check_name(reply.fleet_id, "fleet")),
            DeviceId(check_name(reply.device_id, "device")),
            check_address(reply.gateway, "gateway"),
            check_address(reply.superlink, "SuperLink") if reply.superlink else "",
            address,
        )
        authority_key, release_key = VerifyKey(reply.authority_key), VerifyKey(reply.release_key)
    except UsageError as exc:
        raise RemoteProtocolError("server", str(exc)) from exc
    seal_key = _seal_key(reply.telemetry_key)
    _check_certificate(reply.certificate, authority, keys.tls.public_key(), identity, now_s)
    _check_credential(reply.credential, authority_key, identity, keys.identity.public, now_s)
    open_policy(reply.policy.SerializeToString(), authority=authority_key, fleet=identity.fleet)
    check_root(reply.root)
    past = [_past_charge(each, now_s) for each in reply.charges]

    home.identity_file.unlink(missing_ok=True)
    sync_directory(home.path)  # Not there again after a power cut, with half of another's files.
    with Ledger.create(home.ledger) as ledger:
        if entered := ledger.inherit(past):
            log.warning("%d charges of the fleet's record are in the privacy ledger now", entered)
    with Spool(home.spool) as spool:
        # Batches of an earlier identity: no gateway takes them from this one.
        if given_up := spool.keep(lambda header: _is_of(header, identity)):
            log.warning("%d reports of an earlier identity of this device are given up", given_up)
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
    # What was kept by an earlier root says nothing of this one, and its versions may be higher.
    shutil.rmtree(home.trust, ignore_errors=True)
    home.write(home.root, reply.root, secret=False)
    if not home.consent.exists():
        home.write(home.consent, b"{}\n", secret=True)  # Room for a no: a full disk takes no new file.
    home.write_identity(identity)
    home.enrolling.unlink(missing_ok=True)
    home.pending_file.unlink(missing_ok=True)
    log.info("enrolled as %s in fleet %s", identity.device, identity.fleet)
    return identity


def _past_charge(message: pb.PastCharge, now_s: float) -> Charge:
    """Return what the fleet says that a device of this name was charged.

    Raises:
        RemoteProtocolError: It is malformed.
    """
    try:
        return Charge(
            run=RunId(check_name(message.run, "run")),
            round=message.round,
            attempt=message.attempt,
            sid=digest(PAST_LABEL, message.run, message.round, message.attempt),
            bound_sq=int(message.bound_sq),
            padded=message.coordinates,
            variance=Fraction(message.variance),
            at_s=now_s,
        )
    except (UsageError, ValueError, ZeroDivisionError) as exc:
        raise RemoteProtocolError("server", "a charge of the fleet's record is malformed") from exc


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


def _is_of(header: bytes, identity: Identity) -> bool:
    try:
        of = BatchHeader.FromString(header)
    except DecodeError:
        return False
    return (of.fleet_id, of.device_id) == (identity.fleet, identity.device)
