"""The directory of a fleet: what lies where, and who may read it.

::

    fleet.toml               settings
    policy.bin               the signed fleet policy
    ca/ca.pem ca.key         certificate authority            authority
    ca/authority.key         signs credentials and policy     authority
    ca/ca.sock               where it is asked for signatures
    ca/authority.pub         Ed25519, 32 bytes
    tls/server.pem .key      the services' own certificate    gateway, SuperLink
    keys/release.key         signs packages                   release manager
    keys/release.pub         Ed25519, 32 bytes
    keys/telemetry.key       opens telemetry                  opener, and nobody else
    keys/telemetry.pub       X-Wing, 1216 bytes
    keys/telemetry-ID.key    opens what was sealed before the key was changed
    keys/root.key            says whom devices trust           keep it elsewhere
    keys/targets.key         says who signs for which model    keep it elsewhere
    trust/metadata           what devices may install: TUF metadata
    trust/online/ID.key      signs what is newest              gateway
    trust/staged             metadata that waits for signatures
    store.db                 everything the services know
    packages/SHA256.umbel    released packages
    packages/SHA256.delta    what the newest differ by from those before them
    runs/ superlink/ log/    checkpoints, Flower's state, logs
    superlink/control.secret    opens Flower's Control API      operators
    superlink/superexec.secret  starts Flower's task processes  SuperExec
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from umbel_proto.credentials import FleetPolicy, open_policy
from umbel_proto.errors import MissingExtraError, StorageError, UsageError
from umbel_proto.ids import FleetId
from umbel_proto.keys import SigningKey, VerifyKey
from umbel_proto.seal import SealPrivateKey, SealPublicKey
from umbel_server.clock import Clock, system_clock
from umbel_server.files import read_file
from umbel_server.fleet.settings import FleetSettings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sqlalchemy import URL

    from umbel_server.ca.signer import PublicKey, Signer
    from umbel_server.fleet.ca import CertificateAuthority
    from umbel_server.store.store import Store

DIRECTORIES = ("ca", "tls", "keys", "packages", "runs", "superlink", "log", "trust")
SETTINGS_FILE = "fleet.toml"


@dataclass(frozen=True, slots=True)
class FleetDir:
    """A fleet's directory.

    Args:
        path: The directory.
        settings: What its ``fleet.toml`` says.
    """

    path: Path
    settings: FleetSettings

    @classmethod
    def open(cls, path: Path) -> FleetDir:
        """Open an existing fleet.

        Raises:
            UsageError: There is none, or its settings cannot be used.
        """
        try:
            text = (path / SETTINGS_FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(
                f"{path} holds no fleet: make one with  umbel fleet create, or name yours with --fleet."
            ) from exc
        return cls(path, FleetSettings.from_toml(text))

    @property
    def name(self) -> FleetId:
        """The fleet's id."""
        return self.settings.name

    @property
    def ca_pem(self) -> Path:
        """The CA's certificate, which every client of the services pins."""
        return self.path / "ca" / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The CA's private key."""
        return self.path / "ca" / "ca.key"

    @property
    def authority_key(self) -> Path:
        """The private key that signs credentials and policy."""
        return self.path / "ca" / "authority.key"

    @property
    def authority_pub(self) -> Path:
        """The public key that verifies credentials and policy."""
        return self.path / "ca" / "authority.pub"

    @property
    def policy_bin(self) -> Path:
        """The signed fleet policy."""
        return self.path / "policy.bin"

    @property
    def server_pem(self) -> Path:
        """The services' certificate, then the CA's."""
        return self.path / "tls" / "server.pem"

    @property
    def server_key(self) -> Path:
        """The services' private TLS key."""
        return self.path / "tls" / "server.key"

    @property
    def release_key(self) -> Path:
        """The private key that signs packages."""
        return self.path / "keys" / "release.key"

    @property
    def release_pub(self) -> Path:
        """The public key that verifies packages."""
        return self.path / "keys" / "release.pub"

    @property
    def root_key(self) -> Path:
        """The private key that says whom devices trust with what; nothing needs it here from day to day."""
        return self.path / "keys" / "root.key"

    @property
    def targets_key(self) -> Path:
        """The private key that says who signs for which model; nothing but a new model needs it here."""
        return self.path / "keys" / "targets.key"

    @property
    def trust(self) -> Path:
        """What devices may install: signed metadata."""
        return self.path / "trust"

    @property
    def telemetry_key(self) -> Path:
        """The private key that opens telemetry: read by the opener only."""
        return self.path / "keys" / "telemetry.key"

    def retired_telemetry_key(self, key_id: str) -> Path:
        """Where a private key lies that devices seal to no more."""
        return self.telemetry_key.with_name(f"telemetry-{key_id}.key")

    def retired_telemetry_keys(self) -> list[Path]:
        """The private keys that devices seal to no more, and that still open."""
        return sorted(self.telemetry_key.parent.glob("telemetry-*.key"))

    @property
    def telemetry_pub(self) -> Path:
        """The public key that devices seal telemetry to."""
        return self.path / "keys" / "telemetry.pub"

    @property
    def store_db(self) -> Path:
        """The store, where no database is set."""
        return self.path / "store.db"

    @property
    def packages(self) -> Path:
        """Released packages, named by their hash."""
        return self.path / "packages"

    @property
    def runs(self) -> Path:
        """Checkpoints of runs, a directory each."""
        return self.path / "runs"

    @property
    def superlink(self) -> Path:
        """Flower's state."""
        return self.path / "superlink"

    @property
    def control_secret(self) -> Path:
        """The secret that Flower's Control API asks for."""
        return self.superlink / "control.secret"

    @property
    def superexec_secret(self) -> Path:
        """The secret that Flower's SuperExec shares with the SuperLink."""
        return self.superlink / "superexec.secret"

    @property
    def metrics(self) -> Path:
        """What the services count, a few files for each process."""
        return self.path / "metrics"

    @property
    def log(self) -> Path:
        """Logs of the services."""
        return self.path / "log"

    def package(self, sha256: bytes) -> Path:
        """Where the package with this hash lies, released or not."""
        return self.packages / f"{sha256.hex()}.umbel"

    def delta(self, sha256: bytes) -> Path:
        """Where the delta with this hash lies."""
        return self.packages / f"{sha256.hex()}.delta"

    def authority(self) -> CertificateAuthority:
        """Reach the certificate authority, its private key included: for the authority's own process.

        Raises:
            StorageError: A file is missing or damaged.
        """
        from cryptography.hazmat.primitives.asymmetric import ec

        from umbel_server.ca.held import HeldEcKey
        from umbel_server.fleet.ca import CertificateAuthority

        certificate = self._ca_certificate()
        public = certificate.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise StorageError(f"The CA certificate {self.ca_pem} is damaged: restore it.")
        key = HeldEcKey(self._signer("ca", self.ca_key, public, "CA key"))
        return CertificateAuthority(self.name, certificate, key)

    def authority_certificate_der(self) -> bytes:
        """Read the CA's certificate as tokens carry it, DER.

        Raises:
            StorageError: The file is missing or damaged.
        """
        from cryptography.hazmat.primitives.serialization import Encoding

        return self._ca_certificate().public_bytes(Encoding.DER)

    def authority_signer(self) -> SigningKey:
        """Reach the private key that signs credentials and policy: for the authority's own process, and operators.

        Raises:
            StorageError: A file is missing or damaged.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        from umbel_server.ca.held import HeldEdKey

        public = Ed25519PublicKey.from_public_bytes(self.authority_public().raw)
        return SigningKey(HeldEdKey(self._signer("authority", self.authority_key, public, "authority key")))

    def _ca_certificate(self) -> Certificate:
        from cryptography import x509

        try:
            return x509.load_pem_x509_certificate(read_file(self.ca_pem, "CA certificate"))
        except ValueError as exc:
            raise StorageError(f"The CA certificate {self.ca_pem} is damaged: restore it.") from exc

    def _signer(self, key: str, file: Path, public: PublicKey, what: str) -> Signer:
        from umbel_server.ca.settings import COMMAND, PKCS11
        from umbel_server.ca.signer import CommandSigner, FileSigner

        chosen = self.settings.ca
        if chosen.signer == COMMAND:
            return CommandSigner((*chosen.words(), key), public)
        if chosen.signer == PKCS11 and key in chosen.module_keys.split():
            try:
                from umbel_server.ca.pkcs11 import Pkcs11Signer, TokenPlace
            except ImportError as exc:
                raise MissingExtraError("pkcs11", "Signing with a security module") from exc
            from umbel_server.ca.pin import read_pin

            place = TokenPlace(Path(chosen.module), chosen.token, read_pin(self.path, chosen, os.environ))
            return Pkcs11Signer(place, key, public)
        return FileSigner(file, public, what)

    def authority_public(self) -> VerifyKey:
        """Read the public key that verifies credentials and policy."""
        return VerifyKey(read_file(self.authority_pub, "authority's public key"))

    def release_signer(self) -> SigningKey:
        """Read the private key that signs packages."""
        return SigningKey.from_pem(read_file(self.release_key, "release key"))

    def release_public(self) -> VerifyKey:
        """Read the public key that verifies packages."""
        return VerifyKey(read_file(self.release_pub, "public release key"))

    def telemetry_private(self) -> SealPrivateKey:
        """Read the key that opens telemetry: for the opener only."""
        return SealPrivateKey(read_file(self.telemetry_key, "telemetry key"))

    def telemetry_privates(self) -> list[SealPrivateKey]:
        """Read all keys that open telemetry, the one in force first: for the opener only."""
        retired = (read_file(file, "retired telemetry key") for file in self.retired_telemetry_keys())
        return [self.telemetry_private(), *map(SealPrivateKey, retired)]

    def telemetry_public(self) -> SealPublicKey:
        """Read the key that devices seal telemetry to."""
        return SealPublicKey(read_file(self.telemetry_pub, "public telemetry key"))

    def signed_policy(self) -> bytes:
        """Read the fleet policy as devices get it: signed."""
        return read_file(self.policy_bin, "fleet policy")

    def policy(self) -> FleetPolicy:
        """Read and verify the fleet policy.

        Raises:
            CertificateError: It is not signed by this fleet's authority.
        """
        return open_policy(self.signed_policy(), authority=self.authority_public(), fleet=self.name)

    def open_store(self, *, clock: Clock = system_clock, new: bool = False) -> Store:
        """Open the store, bringing its tables up to date.

        Args:
            clock: Dates what is stored.
            new: Whether to make it where it is not there: the fleet is being made.

        Raises:
            StorageError: It is damaged, or made by a newer umbel.
            UsageError: It cannot be, or is not, where the settings or the environment say.
            UnavailableError: It does not answer.
        """
        from umbel_server.store.store import open_store

        return open_store(self.store_place(new=new), clock=clock)

    def store_place(self, *, new: bool = False) -> Path | URL:
        """Return where the store is: a file, or the URL of a PostgreSQL database.

        Args:
            new: Whether it may be a file that is not there.

        Raises:
            StorageError: The file with the URL cannot be read.
            UsageError: The URL cannot be used, or the file is not there.
        """
        from umbel_server.store.settings import ENVIRONMENT, store_place

        place = store_place(self.path, self.settings.store, os.environ)
        if not new and isinstance(place, Path) and not place.exists():
            raise UsageError(
                f"The store {place} is not there: if it is in PostgreSQL, say where in {ENVIRONMENT} or in [store] of "
                "fleet.toml; if it is lost, restore a copy."
            )
        return place
