"""The directory that makes a machine one device of one fleet."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from umbel._home.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    make_private_directory,
    read_file,
    storage_error,
    write_atomically,
)
from umbel_proto.errors import CertificateError, StorageError, UmbelError, UsageError
from umbel_proto.ids import DeviceId, FleetId, check_name

if TYPE_CHECKING:
    from umbel_proto.credentials import Credential, FleetPolicy
    from umbel_proto.keys import SigningKey, VerifyKey
    from umbel_proto.seal import SealPublicKey

HOME_VARIABLE = "UMBEL_HOME"
RENEW_AT = 2 / 3
"""The share of a certificate's life after which it is renewed."""
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the device is, and where its fleet is.

    Args:
        fleet: The fleet.
        device: The device.
        gateway: ``host:port`` of telemetry, delivery and renewal; mutual TLS.
        superlink: ``host:port`` of Flower's Fleet API; empty if the fleet runs no rounds.
        enrollment: ``host:port`` of where it enrolled, and comes back after its certificate has expired; empty if it
            does not know.
    """

    fleet: FleetId
    device: DeviceId
    gateway: str
    superlink: str
    enrollment: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """What a device waits for before it is enrolled: an operator's word.

    Args:
        application: What operators call it.
        fingerprint: What they compare.
        enrollment: ``host:port`` of where it asked.
    """

    application: str
    fingerprint: str
    enrollment: str


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate holds, Unix seconds."""

    begins_s: float
    ends_s: float

    def renew_at_s(self) -> float:
        """When to ask for the next one."""
        return self.begins_s + RENEW_AT * (self.ends_s - self.begins_s)


class DeviceHome:
    """The files of a device.

    Nothing is read before it is asked for. ``identity.json`` is written last: where it is, the
    device is enrolled and every other file is there.

    Args:
        path: The directory; it need not exist yet. ``~`` is the user's own.

    Raises:
        UsageError: There is no user that it names.
    """

    def __init__(self, path: Path) -> None:
        try:
            path = path.expanduser()
        except RuntimeError as exc:
            raise UsageError(f"{path} names a user that is not known here: give the whole path.") from exc
        self.path: Path = path
        self.identity_file: Path = path / "identity.json"
        self.enrolling: Path = path / "enrolling.json"
        self.pending_file: Path = path / "pending.json"
        self.ca_certificate: Path = path / "ca.pem"
        self.tls_key: Path = path / "tls.key"
        self.tls_certificate: Path = path / "tls.pem"
        self.identity_key: Path = path / "identity.key"
        self.node_key: Path = path / "node.key"
        self.credential: Path = path / "credential.bin"
        self.policy: Path = path / "policy.bin"
        self.authority_key: Path = path / "authority.pub"
        self.release_key: Path = path / "release.pub"
        self.root: Path = path / "root.json"
        self.trust: Path = path / "trust"
        self.telemetry_key: Path = path / "telemetry.pub"
        self.ledger: Path = path / "ledger.db"
        self.queries: Path = path / "queries.db"
        self.spool: Path = path / "spool.db"
        self.shelf: Path = path / "shelf"
        self.incoming: Path = path / "incoming"
        self.data: Path = path / "data"
        self.reviews: Path = self.data / "reviews.db"
        self.reviews_key: Path = self.data / "reviews.key"
        self.examples: Path = self.data / "examples.db"
        self.examples_key: Path = self.data / "examples.key"
        self.consent: Path = path / "consent.json"
        self.conditions: Path = path / "conditions.json"
        self.lock_file: Path = path / "agent.lock"
        self.delivery_lock: Path = path / "delivery.lock"
        self.settings_file: Path = path / "device.toml"

    @classmethod
    def default(cls) -> DeviceHome:
        """Return the home that ``UMBEL_HOME`` names, else ``~/.umbel``."""
        return cls(Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".umbel"))

    def __repr__(self) -> str:
        return f"DeviceHome({str(self.path)!r})"

    def make(self) -> None:
        """Make the directories.

        Raises:
            StorageError: They cannot be made.
        """
        for directory in (self.path, self.shelf, self.incoming, self.data):
            make_private_directory(directory)

    @property
    def enrolled(self) -> bool:
        """Whether the device belongs to a fleet."""
        return self.identity_file.exists()

    @property
    def identity(self) -> Identity:
        """Who the device is.

        Raises:
            UsageError: It is not enrolled.
            StorageError: The file is damaged.
        """
        if (waits := self.pending) is not None:
            raise UsageError(
                f"{self.path} waits for approval as {waits.application}, fingerprint {waits.fingerprint}: have an "
                "operator approve it, and run  umbel enroll  again with the same token."
            )
        if not self.enrolled:
            raise UsageError(
                f"{self.path} is not an enrolled device: run  umbel enroll TOKEN --home {self.path}"
            )
        try:
            fields = json.loads(read_file(self.identity_file))
            return Identity(
                FleetId(check_name(fields["fleet"], "fleet")),
                DeviceId(check_name(fields["device"], "device")),
                str(fields["gateway"]),
                str(fields["superlink"]),
                str(fields.get("enrollment", "")),
            )
        except (ValueError, KeyError, TypeError, UsageError) as exc:
            raise self._damaged(self.identity_file) from exc

    def write_identity(self, identity: Identity) -> None:
        """Make the device enrolled; the last step of enrolling."""
        fields = {
            "fleet": identity.fleet,
            "device": identity.device,
            "gateway": identity.gateway,
            "superlink": identity.superlink,
            "enrollment": identity.enrollment,
        }
        self.write(self.identity_file, json.dumps(fields, indent=2).encode() + b"\n", secret=False)

    @property
    def pending(self) -> Pending | None:
        """What it waits for; None if for nothing.

        Raises:
            StorageError: The file is damaged.
        """
        if self.enrolled or not self.pending_file.exists():
            return None
        try:
            fields = json.loads(read_file(self.pending_file))
            return Pending(str(fields["application"]), str(fields["fingerprint"]), str(fields["enrollment"]))
        except (ValueError, KeyError, TypeError) as exc:
            raise self._damaged(self.pending_file) from exc

    def write_pending(self, pending: Pending) -> None:
        """Keep what the device waits for, so that its user can be told."""
        data = json.dumps(asdict(pending), indent=2).encode() + b"\n"
        if not self.pending_file.exists() or read_file(self.pending_file) != data:
            self.write(self.pending_file, data, secret=False)

    def write(self, file: Path, data: bytes, *, secret: bool) -> None:
        """Write one of the home's files.

        Raises:
            StorageError: The disk is full or the home cannot be written.
        """
        write_atomically(file, data, SECRET_MODE if secret else PUBLIC_MODE)

    def certificate_validity(self) -> Validity:
        """Return how long the TLS certificate holds.

        Raises:
            StorageError: The file is damaged.
        """
        from cryptography import x509

        try:
            leaf = x509.load_pem_x509_certificates(read_file(self.tls_certificate))[0]
        except (ValueError, IndexError) as exc:
            raise self._damaged(self.tls_certificate) from exc
        return Validity(leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp())

    def require_valid_certificate(self, now_s: float) -> None:
        """Check that the gateway will still know this device.

        Raises:
            CertificateError: The certificate has expired: the device has to come back to its fleet.
        """
        ends_s = self.certificate_validity().ends_s
        if now_s >= ends_s:
            when = datetime.datetime.fromtimestamp(ends_s, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
            enrollment = self.identity.enrollment
            way = (
                f"let  umbel run  reach {enrollment}, which takes it back for some time (30 days, unless its fleet chose "
                "otherwise), or "
                if enrollment
                else ""
            )
            raise CertificateError(
                f"The certificate of {self.identity.device} expired on {when}, by this machine's clock: set that if "
                f"it is wrong, or else {way}ask the fleet's operator for a token and run  "
                f"umbel enroll TOKEN --again --home {self.path}"
            )

    def signing_key(self) -> SigningKey:
        """Return the key that speaks for the device in rounds.

        Raises:
            StorageError: The file is missing or damaged.
        """
        from umbel_proto.keys import SigningKey

        with self._damage(self.identity_key):
            return SigningKey.from_pem(read_file(self.identity_key))

    def authority(self) -> VerifyKey:
        """Return the key that signs credentials and policy.

        Raises:
            StorageError: The file is missing or damaged.
        """
        return self._verify_key(self.authority_key)

    def release_authority(self) -> VerifyKey:
        """Return the key that signs packages.

        Raises:
            StorageError: The file is missing or damaged.
        """
        return self._verify_key(self.release_key)

    def telemetry_seal_key(self) -> SealPublicKey:
        """Return the key that telemetry is sealed to.

        Raises:
            StorageError: The file is missing or damaged.
        """
        from umbel_proto.seal import SealPublicKey

        with self._damage(self.telemetry_key):
            raw = read_file(self.telemetry_key)
            return SealPublicKey(raw[4:], int.from_bytes(raw[:4], "big"))

    def write_telemetry_key(self, key: SealPublicKey) -> None:
        """Keep the key that telemetry is sealed to: its suite as 4 bytes big-endian, then its bytes."""
        self.write(self.telemetry_key, key.suite.to_bytes(4, "big") + key.raw, secret=False)

    def open_policy(self) -> FleetPolicy:
        """Return what the device insists on.

        Raises:
            CertificateError: The file is not the fleet's.
        """
        from umbel_proto.credentials import open_policy

        fleet = self.identity.fleet  # First of all: a home that is not enrolled has no other file either.
        return open_policy(read_file(self.policy), authority=self.authority(), fleet=fleet)

    def open_credential(self, now_s: float) -> Credential:
        """Return what the fleet says of the device's round key.

        Raises:
            CertificateError: The file is not the fleet's, or has expired.
        """
        from umbel_proto.credentials import open_credential

        fleet = self.identity.fleet
        return open_credential(
            read_file(self.credential), authority=self.authority(), fleet=fleet, now_s=now_s
        )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one agent of this home for the length of a block.

        The lock is the kernel's: it goes with the process, however that ends.

        Raises:
            UsageError: Another agent runs.
        """
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, SECRET_MODE)
        except OSError as exc:
            raise storage_error(exc, self.lock_file) from exc
        try:
            if not _lock(descriptor):
                raise UsageError(f"An agent already runs on {self.path}: stop it, or give another --home.")
            yield
        finally:
            os.close(descriptor)

    def agent_runs(self) -> bool:
        """Whether an agent holds the home's lock at this moment."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR)
        except OSError:
            return False
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def _verify_key(self, file: Path) -> VerifyKey:
        from umbel_proto.keys import VerifyKey

        with self._damage(file):
            return VerifyKey(read_file(file))

    @contextlib.contextmanager
    def _damage(self, file: Path) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except UmbelError as exc:
            raise self._damaged(file) from exc

    def _damaged(self, file: Path) -> StorageError:
        return StorageError(
            f"{file} is damaged: restore it, or enroll again with  umbel enroll TOKEN --again."
        )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(descriptor: int) -> bool:
    # Somebody who asks `agent_runs` holds the lock for some microseconds: ask again before giving up.
    for _ in range(_LOCK_ATTEMPTS):
        if _try_lock(descriptor):
            return True
        time.sleep(_LOCK_PAUSE_S)
    return False
