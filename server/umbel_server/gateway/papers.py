"""What the gateway hands to devices: certificates, credentials, and the fleet's public keys."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from umbel_proto.credentials import Credential, sign_credential
from umbel_proto.keys import SigningKey
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_proto.wire import identity_pb2
from umbel_server.clock import Clock
from umbel_server.fleet.ca import DEVICE_LIFE_S, CertificateAuthority
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.devices import Device


@dataclass(frozen=True, slots=True)
class Papers:
    """A device's papers: a certificate for connections, and a credential for rounds.

    Both end together, after 24 hours. A longer credential would outlive the revocation of its
    device; a shorter one would gain nothing, as both are renewed in one call.

    Args:
        certificate: PEM: the device's certificate, then the CA's.
        credential: The signed credential.
        not_after_s: When both end, Unix seconds.
    """

    certificate: bytes
    credential: identity_pb2.Signed
    not_after_s: int


@dataclass(frozen=True, slots=True)
class Issuer:
    """Issues papers, and knows what else a device needs to know of its fleet.

    Args:
        fleet: The fleet's directory.
        clock: Dates the papers.
        policy: The signed fleet policy.
        telemetry_key: The key that telemetry is sealed to.
    """

    fleet: FleetDir
    clock: Clock
    policy: identity_pb2.Signed
    telemetry_key: pb.TelemetryKey
    _ca: CertificateAuthority = field(repr=False)
    _authority: SigningKey = field(repr=False)

    @classmethod
    def open(cls, fleet: FleetDir, *, clock: Clock) -> Issuer:
        """Read the CA's and the authority's keys; the keys for releases and telemetry stay unread.

        Raises:
            StorageError: A file is missing or damaged.
        """
        fleet.policy()
        key = fleet.telemetry_public()
        return cls(
            fleet,
            clock,
            identity_pb2.Signed.FromString(fleet.signed_policy()),
            pb.TelemetryKey(key_id=key.key_id, suite=key.suite, public_key=key.raw),
            fleet.authority(),
            fleet.authority_signer(),
        )

    def issue(self, device: Device, tls_key: ec.EllipticCurvePublicKey) -> Papers:
        """Return new papers for a device, valid for 24 hours."""
        now_s = self.clock()
        not_after_s = int(now_s) + DEVICE_LIFE_S
        credential = Credential(self.fleet.name, device.id, device.identity_key, not_after_s)
        return Papers(
            self._ca.issue_device(tls_key, device.id, now_s=now_s),
            identity_pb2.Signed.FromString(sign_credential(self._authority, credential)),
            not_after_s,
        )
