"""What the gateway hands to devices: papers that the fleet's authority signed, and the fleet's public keys."""

from __future__ import annotations

from dataclasses import dataclass

from umbel_proto.credentials import open_policy
from umbel_proto.errors import CertificateError, StorageError
from umbel_proto.ids import DeviceId
from umbel_proto.wire import enrollment_pb2 as pb
from umbel_proto.wire import identity_pb2
from umbel_server.ca.authority import Authority, Papers, open_authority
from umbel_server.clock import Clock
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store
from umbel_server.trust.repository import Repository


@dataclass(frozen=True, slots=True)
class Issuer:
    """Has papers issued, and knows what else a device needs to know of its fleet.

    What an operator may change meanwhile is read whenever a device is told.

    Args:
        fleet: The fleet's directory.
        clock: Tells the time.
        repository: What devices trust releases by.
        authority: Issues papers.
        store: Knows what devices were charged.
    """

    fleet: FleetDir
    clock: Clock
    repository: Repository
    authority: Authority
    store: Store

    @classmethod
    def open(cls, fleet: FleetDir, store: Store, *, clock: Clock) -> Issuer:
        """Reach the authority; the keys for releases and telemetry stay unread.

        Raises:
            UsageError: The fleet's releases are not signed yet.
            StorageError: A file is missing or damaged.
        """
        authority = open_authority(fleet, store, clock=clock)
        issuer = cls(fleet, clock, Repository.of(fleet, clock=clock), authority, store)
        _ = (
            issuer.policy,
            issuer.telemetry_key,
            issuer.root,
        )  # What is damaged is said when the gateway starts.
        return issuer

    @property
    def policy(self) -> identity_pb2.Signed:
        """The signed fleet policy.

        Raises:
            StorageError: It cannot be read, or is not this fleet's.
        """
        signed = self.fleet.signed_policy()
        try:
            open_policy(signed, authority=self.fleet.authority_public(), fleet=self.fleet.name)
        except CertificateError as exc:
            raise StorageError(f"{self.fleet.policy_bin}: {exc} Restore it from a backup.") from exc
        return identity_pb2.Signed.FromString(signed)

    @property
    def telemetry_key(self) -> pb.TelemetryKey:
        """The key that telemetry is sealed to.

        Raises:
            StorageError: It cannot be read.
        """
        key = self.fleet.telemetry_public()
        return pb.TelemetryKey(key_id=key.key_id, suite=key.suite, public_key=key.raw)

    @property
    def root(self) -> bytes:
        """The newest root of trust for releases.

        Raises:
            UsageError: The fleet's releases are not signed yet.
            StorageError: It cannot be read.
        """
        return self.repository.newest_root()

    def charges(self, device: DeviceId) -> tuple[pb.PastCharge, ...]:
        """Return what devices of a name were charged: one whose ledger was lost with its disk goes on from there.

        Raises:
            StorageError: A run's record is damaged.
        """
        from umbel_server.learning.fleet_ledger import past_charges

        return past_charges(self.store, self.fleet.runs, device)

    def renewal(self, papers: Papers) -> pb.RenewReply:
        """Return papers with what else a device is told when it renews."""
        return pb.RenewReply(
            certificate=papers.certificate,
            credential=papers.credential,
            policy=self.policy,
            telemetry_key=self.telemetry_key,
            enrollment=self.fleet.settings.enrollment,
            root=self.root,
        )
