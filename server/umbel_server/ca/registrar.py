"""The fleet's authority at work: checks what it is shown against the store and its own clock, keeps record, and signs.

Whoever asks it, a gateway or the API, may lie. It gets papers only for what devices have proven themselves: a token, a
certificate that still holds, or a signature of the identity key on record; only for the key that the device has
certified so; and never for longer than a day. It gets a policy only for an operator's token, and only one that differs
in when devices train or in whether they announce reviews; and a question or an answer to a review only for an operator
who is signed in, one of each name and one to each review.

Source: docs/spec/enrollment.md, section 6.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from dataclasses import asdict, dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from umbel_proto.analytics.query import read_query, sign_query
from umbel_proto.credentials import Credential, FleetPolicy, rules_of, sign_credential
from umbel_proto.enrollment import SECRET_BYTES, check_identity, check_return
from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    RemoteProtocolError,
    TokenError,
    UsageError,
    VerificationError,
)
from umbel_proto.ids import DeviceId, check_name
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.wire import authority_pb2, identity_pb2
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_server.access.permissions import Permission, held
from umbel_server.ca.authority import Papers
from umbel_server.clock import Clock
from umbel_server.fleet.ca import DEVICE_LIFE_S, CertificateAuthority, device_of, read_csr
from umbel_server.fleet.create import service_hosts
from umbel_server.fleet.facts import facts_json
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.policy_command import ANNOUNCE, change_policy
from umbel_server.reviews.answer import answer
from umbel_server.store.accounts import Account
from umbel_server.store.admission import another_key
from umbel_server.store.audit import Sought
from umbel_server.store.devices import Application, Device
from umbel_server.store.store import Store

MAX_NODE_KEY_BYTES = 512
MAX_CERTIFICATE_BYTES = 16 << 10
DAY_S = 86400
MAX_QUERY_LIFE_S = 4 * 3600.0
"""How long devices may answer a query after it was signed, at most: the server asks for two hours, and for up to one in
which it waits for devices."""
CHALLENGE_SKEW_S = 180
"""A gateway's challenge holds for a minute; its clock and ours may differ by two."""
_TIME_BYTES = 8
MAX_REVIEW = (1 << 62) - 1
"""No review has that number, and databases can be asked for it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registrar:
    """The authority, with its keys and the fleet's store.

    Args:
        fleet: Says which hosts the services have, and on what terms devices come in.
        store: Knows tokens and devices.
        clock: Dates the papers.
    """

    fleet: FleetDir
    store: Store
    clock: Clock
    _ca: CertificateAuthority = field(repr=False)
    _authority: SigningKey = field(repr=False)

    @classmethod
    def open(cls, fleet: FleetDir, store: Store, *, clock: Clock) -> Registrar:
        """Reach the keys, wherever the settings say that they are.

        Raises:
            StorageError: A file is missing or damaged.
        """
        return cls(fleet, store, clock, fleet.authority(), fleet.authority_signer())

    def enroll(self, request: pb.EnrollRequest) -> Papers:
        """Let a device in by its token, or tell again one whose answer was lost."""
        if len(request.token) != SECRET_BYTES:
            raise TokenError(f"An enrollment token has {SECRET_BYTES} bytes, not {len(request.token)}.")
        # Without a token that was given out, nobody makes us check signatures or wait to write.
        self.store.tokens.known(request.token)
        if request.name:
            check_name(request.name, "device")
        tls_key = read_csr(request.csr)
        identity_key = VerifyKey(request.identity_key)
        check_identity(identity_key, request.identity_proof, csr=request.csr, node_key=request.node_key)
        application = Application(
            token=request.token,
            name=request.name,
            identity_key=identity_key,
            node_key=check_node_key(request.node_key),
            tls_key_hash=key_hash(tls_key),
            facts=facts_json(request.facts),
        )
        device = self.store.devices.enroll(
            application, certificate_life_s=DEVICE_LIFE_S, terms=self.fleet.settings.admission.terms()
        )
        return self._issue(device, tls_key)

    def renew(self, certificate: bytes, csr: bytes) -> Papers:
        """Give a device new papers for the key of a certificate that still holds, PEM."""
        leaf = self._check_certificate(certificate)
        device = self.store.devices.admit(device_of(leaf, fleet=self.fleet.name, now_s=self.clock()))
        key = read_csr(csr)
        if key != leaf.public_key():
            raise RefusedError(
                f"Device {device.id} renews the key that it has: for another it enrolls again."
            )
        require_own_key(device, leaf)
        return self._renewed(device, key)

    def readmit(self, request: pb.ReadmitRequest) -> Papers:
        """Give new papers to a device that came back by its identity key."""
        device = self.store.devices.get(DeviceId(check_name(request.device_id, "device")))
        try:
            if device is None:
                raise VerificationError("unknown")
            check_return(
                device.identity_key,
                request.proof,
                fleet=self.fleet.name,
                device=device.id,
                challenge=request.challenge,
                csr=request.csr,
            )
        except VerificationError as exc:
            raise RefusedError(
                "This fleet knows no device of this name and identity key: enroll with a token."
            ) from exc
        device = self.store.devices.admit(device.id)
        if abs(self.clock() - int.from_bytes(request.challenge[:_TIME_BYTES], "big")) > CHALLENGE_SKEW_S:
            raise RefusedError("What the device signed is too old: let it ask for another challenge.")
        days = self.fleet.settings.return_days
        if self.clock() - device.certificate_not_after_s > days * DAY_S:
            raise RefusedError(
                f"Device {device.id} was away for more than {days} days: ask the fleet's operator for a token, "
                "and run  umbel enroll TOKEN --again"
            )
        return self._renewed(device, read_csr(request.csr))

    def certify_service(self, csr: bytes) -> bytes:
        """Return a certificate for the services themselves, then the CA's, PEM."""
        return self._ca.issue_server(read_csr(csr), service_hosts(self.fleet), now_s=self.clock())

    def change_policy(self, change: authority_pb2.PolicyChange) -> identity_pb2.Signed:
        """Sign the fleet's next policy for an operator who shows a token that is for it; return the policy in force."""
        bearer = self.store.api_tokens.bearer(change.token)
        if Permission.POLICY_WRITE not in bearer.permissions:
            raise RefusedError(
                f"User {bearer.account.name} may not change the policy: it asks for {Permission.POLICY_WRITE}."
            )
        if not change.reason.strip():
            raise UsageError("A change of the policy needs a reason, for the audit log.")

        def check(seen: FleetPolicy) -> None:
            if seen.version != change.version:
                raise RefusedError(
                    f"The policy has version {seen.version}, not {change.version}: look again, then decide."
                )

        after = change_policy(
            self.fleet,
            self.store,
            {
                **asdict(rules_of(change.training)),
                **({ANNOUNCE: change.announce_reviews} if change.HasField(ANNOUNCE) else {}),
            },
            actor=bearer.account.actor,
            reason=change.reason,
            check=check,
            key=self._authority,
        )
        log.info("policy version=%d actor=%s", after.version, bearer.account.name)
        return identity_pb2.Signed.FromString(self.fleet.signed_policy())

    def sign_query(self, ask: authority_pb2.QueryAsk) -> identity_pb2.Signed:
        """Sign a question to the fleet for an operator who shows a token or a session that is for it."""
        account = self._operator(ask, Permission.QUERIES_WRITE, "ask the fleet")
        try:
            query = read_query(ask.query)
        except RemoteProtocolError as exc:
            raise UsageError("The question is malformed, or none that can be answered.") from exc
        policy = self.fleet.policy()
        if query.fleet != self.fleet.name:
            raise RefusedError(f"The question is to fleet {query.fleet}, not to {self.fleet.name}.")
        if query.asked_by != account.actor.name:
            raise RefusedError(f"The question is not in the name of {account.name}, who asks it.")
        if not self.clock() < query.not_after_s <= self.clock() + MAX_QUERY_LIFE_S:
            raise RefusedError(
                f"The question is not to be answered within {MAX_QUERY_LIFE_S / 3600:g} hours."
            )
        if query.min_cohort < policy.min_cohort:
            raise RefusedError(
                f"The question is content with {query.min_cohort} devices, the policy with {policy.min_cohort} or more."
            )
        signed = sign_query(self._authority, query)
        hashed = hashlib.sha256(signed).hexdigest()
        # On record before it leaves: who was let to ask is known, whatever becomes of the question.
        with self.store.database.write() as connection:
            self._require_only(f"query:{query.id}", hashed)
            self.store.audit.append(
                connection,
                account.actor,
                action="query.sign",
                object=f"query:{query.id}",
                reason=query.why,
                after={"asks": query.sentence, "query_sha256": hashed},
            )
        log.info("signed query=%s actor=%s", query.id, account.name)
        return identity_pb2.Signed.FromString(signed)

    def answer_review(self, ask: authority_pb2.ReviewAsk) -> identity_pb2.Signed:
        """Sign an answer to a review, and put it on record, for an operator who shows a token or a session for it."""
        account = self._operator(ask, Permission.REVIEWS_WRITE, "answer reviews")
        # Signed and on record in one step: of two answers to one review, the second is never signed.
        done = answer(
            self.fleet,
            self.store,
            min(ask.review, MAX_REVIEW),
            ask.label,
            actor=account.actor,
            reason=ask.why,
            key=self._authority,
        )
        log.info("signed answer review=%d actor=%s", done.id, account.name)
        return identity_pb2.Signed.FromString(self.store.reviews.signed(done.id))

    def _operator(
        self, ask: authority_pb2.QueryAsk | authority_pb2.ReviewAsk, needed: Permission, what: str
    ) -> Account:
        """Return who shows a token or a session, if they may do with it what they ask for."""
        if ask.token:
            bearer = self.store.api_tokens.bearer(ask.token)
            account, permissions = bearer.account, bearer.permissions
        else:
            found = self.store.sessions.find(ask.session, busy=False) if ask.session else None
            if found is None:
                raise RefusedError("Nobody is signed in who asks: sign in again.")
            account, permissions = found, held(found.roles)
        if needed not in permissions:
            raise RefusedError(f"User {account.name} may not {what}: it asks for {needed}.")
        return account

    def _require_only(self, query: str, hashed: str) -> None:
        """Check that no other question was signed under a name: devices and people know it by that alone."""
        for entry in self.store.audit.all(Sought(action="query", object=query)):
            if json.loads(entry.after).get("query_sha256", hashed) != hashed:
                name = query.partition(":")[2]
                raise RefusedError(f"Another question {name} was signed already: choose another name.")

    def _renewed(self, device: Device, key: ec.EllipticCurvePublicKey) -> Papers:
        papers = self._issue(device, key)
        self.store.devices.renewed(device.id, not_after_s=papers.not_after_s, tls_key_hash=key_hash(key))
        return papers

    def _issue(self, device: Device, tls_key: ec.EllipticCurvePublicKey) -> Papers:
        """Return new papers for a device, valid for 24 hours."""
        now_s = self.clock()
        not_after_s = int(now_s) + DEVICE_LIFE_S
        log.info("issued device=%s not_after_s=%d", device.id, not_after_s)
        credential = Credential(self.fleet.name, device.id, device.identity_key, not_after_s)
        return Papers(
            device.id,
            self._ca.issue_device(tls_key, device.id, now_s=now_s),
            identity_pb2.Signed.FromString(sign_credential(self._authority, credential)),
            not_after_s,
        )

    def _check_certificate(self, pem: bytes) -> x509.Certificate:
        """Return a device's certificate that this authority issued, and that holds now.

        Raises:
            CertificateError: It did not, or does not.
        """
        try:
            if len(pem) > MAX_CERTIFICATE_BYTES:
                raise ValueError("too long")
            leaf = x509.load_pem_x509_certificate(pem)
            leaf.verify_directly_issued_by(self._ca.certificate)
            usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as exc:
            raise CertificateError("The certificate is not one of this fleet's authority.") from exc
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            raise CertificateError("The certificate is not a device's.")
        if self.clock() < leaf.not_valid_before_utc.timestamp():
            raise CertificateError(
                "The certificate does not hold yet: set the clocks of the fleet's machines."
            )
        return leaf


def require_own_key(device: Device, certificate: x509.Certificate) -> None:
    """Check that a certificate is for the key that the device has now.

    Raises:
        RefusedError: It is for an earlier one: the name is another machine's by now, or it has enrolled again.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not hmac.compare_digest(
        key_hash(key), device.tls_key_hash
    ):
        raise another_key(device.id)


def check_node_key(der: bytes) -> bytes:
    """Return a Flower node key as the store keeps it: one form for one key.

    Raises:
        UsageError: It is malformed, or not P-384.
    """
    try:
        if len(der) > MAX_NODE_KEY_BYTES:
            raise ValueError("too long")
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError("The node key is malformed.") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UsageError("The node key is not a P-384 key.")
    return _spki(key)


def key_hash(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return SHA-256 of a public key's SubjectPublicKeyInfo, DER: what the store keeps of a TLS key."""
    return hashlib.sha256(_spki(key)).digest()


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
