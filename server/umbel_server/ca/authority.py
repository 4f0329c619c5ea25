"""What the services ask of the fleet's authority, whether it is a process of its own or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from umbel_proto.ids import DeviceId
from umbel_proto.wire import authority_pb2, enrollment_pb2, identity_pb2

if TYPE_CHECKING:
    from umbel_server.clock import Clock
    from umbel_server.fleet.layout import FleetDir
    from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Papers:
    """A device's papers: a certificate for connections, and a credential for rounds.

    Both end together, after 24 hours. A longer credential would outlive the revocation of its
    device; a shorter one would gain nothing, as both are renewed in one call.

    Args:
        device: Whose they are.
        certificate: PEM: the device's certificate, then the CA's.
        credential: The signed credential.
        not_after_s: When both end, Unix seconds.
    """

    device: DeviceId
    certificate: bytes
    credential: identity_pb2.Signed
    not_after_s: int


class Authority(Protocol):
    """Says who is a device of the fleet.

    It is shown what the device itself sent or showed, and decides by that: who asks on the device's behalf is not
    believed. Each method raises ``TokenError``, ``CertificateError``, ``RefusedError``, ``UsageError`` or
    ``VerificationError`` for what it refuses; ``QuotaError`` and ``WaitingError`` for what may pass; and
    ``AuthorityDownError`` where it does not answer.
    """

    def enroll(self, request: enrollment_pb2.EnrollRequest) -> Papers:
        """Let a device in by its token, or tell again one whose answer was lost."""

    def renew(self, certificate: bytes, csr: bytes) -> Papers:
        """Give a device new papers for the key of a certificate that still holds, PEM."""

    def readmit(self, request: enrollment_pb2.ReadmitRequest) -> Papers:
        """Give new papers to a device that came back by its identity key."""

    def certify_service(self, csr: bytes) -> bytes:
        """Return a certificate for the services themselves, then the CA's, PEM; for the fleet's hosts and no other."""

    def change_policy(self, change: authority_pb2.PolicyChange) -> identity_pb2.Signed:
        """Sign the fleet's next policy for an operator who shows a token that is for it; return the policy in force."""

    def sign_query(self, ask: authority_pb2.QueryAsk) -> identity_pb2.Signed:
        """Sign a question to the fleet for an operator who shows a token or a session that is for it."""

    def answer_review(self, ask: authority_pb2.ReviewAsk) -> identity_pb2.Signed:
        """Sign an answer to a review, and put it on record, for an operator who shows a token or a session for it."""


def open_authority(fleet: FleetDir, store: Store, *, clock: Clock) -> Authority:
    """Return the fleet's authority as its settings say: over its socket, or with its keys.

    Raises:
        StorageError: A key cannot be read.
    """
    if fleet.settings.ca.apart:
        from umbel_server.ca.remote import RemoteAuthority

        return RemoteAuthority.of(fleet)
    from umbel_server.ca.registrar import Registrar

    return Registrar.open(fleet, store, clock=clock)
