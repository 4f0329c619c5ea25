"""Make a fleet: its keys, its policy, its store, its directory."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from umbel_proto.credentials import FleetPolicy, sign_policy
from umbel_proto.errors import StorageError, UnavailableError, UsageError
from umbel_proto.ids import FleetId, check_name
from umbel_proto.keys import SigningKey
from umbel_proto.seal import generate_keypair
from umbel_server.api.settings import ApiSettings
from umbel_server.ca.settings import Ca
from umbel_server.clock import Clock, system_clock
from umbel_server.console.settings import ConsoleSettings
from umbel_server.files import PUBLIC_MODE, read_file, storage_error, sync_directory, write_atomically
from umbel_server.fleet.ca import (
    SERVER_LIFE_S,
    CertificateAuthority,
    generate_key,
    make_csr,
    private_pem,
    read_csr,
)
from umbel_server.fleet.layout import DIRECTORIES, SETTINGS_FILE, FleetDir
from umbel_server.fleet.ports import free_ports
from umbel_server.fleet.settings import FleetSettings, Ports
from umbel_server.registry.settings import Registry
from umbel_server.services.health_settings import HealthSettings
from umbel_server.trust.repository import sign_releases

RETRY_S = 60.0
"""How long to wait for an authority that did not answer, seconds."""

log = logging.getLogger(__name__)


def create_fleet(
    path: Path,
    *,
    name: str,
    policy: FleetPolicy,
    host: str = "127.0.0.1",
    listen: str = "127.0.0.1",
    gateway_port: int = 0,
    enroll_port: int = 0,
    superlink_port: int = 0,
    control_port: int = 0,
    api_port: int = 0,
    console_port: int = 0,
    health_port: int = 0,
    ca_apart: bool = False,
    approvals: int = 0,
    clock: Clock = system_clock,
) -> FleetDir:
    """Make a new fleet's directory: all of it, or nothing.

    Args:
        path: The directory to make; it may exist if it is empty.
        name: The fleet's id.
        policy: What its devices will insist on; of the same fleet.
        host: Where devices reach the services: a DNS name or an IP address.
        listen: The address the services bind.
        gateway_port: gRPC with mutual TLS; 0 for a free one, as for the other ports.
        enroll_port: gRPC with TLS, for enrollment.
        superlink_port: Flower's Fleet API.
        control_port: Flower's Control and Runtime API, on loopback only.
        api_port: The REST API.
        console_port: The console.
        health_port: Health and metrics.
        ca_apart: Whether only  umbel serve ca  has the authority's keys; else each service reads them.
        approvals: How many accounts must approve of a version before it is released.
        clock: Dates the certificates.

    Raises:
        UsageError: The directory is not empty, or an argument cannot be used.
        StorageError: The directory cannot be written.
    """
    fleet = FleetId(check_name(name, "fleet"))
    if policy.fleet != fleet:
        raise UsageError(f"The policy is of fleet {policy.fleet}, not {fleet}.")
    asked = (gateway_port, enroll_port, superlink_port, control_port, api_port, console_port, health_port)
    free = iter(free_ports(asked.count(0), listen=listen, taken=frozenset(asked)))
    *ports, api, console, health = (port or next(free) for port in asked)
    settings = FleetSettings(
        fleet,
        host,
        listen,
        Ports(*ports),
        ca=Ca(apart=ca_apart),
        api=ApiSettings(port=api),
        console=ConsoleSettings(port=console),
        health=HealthSettings(port=health),
        registry=Registry(approvals=approvals),
    )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is not empty: choose another directory for the fleet.")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fill(FleetDir(draft, settings), policy, clock)
        draft.replace(path)
        sync_directory(path.parent)
    except OSError as exc:
        raise storage_error(exc, path) from exc
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return FleetDir(path, settings)


def renew_server_certificate(fleet: FleetDir, *, now_s: float) -> float:
    """Give the services a new certificate if theirs is missing or in the last third of its life.

    While the authority does not answer they keep the one they have, as long as it holds.

    Returns:
        From when on to call this again, Unix seconds.

    Raises:
        StorageError: A file is damaged, or the disk is full.
        UnavailableError: There is no certificate that holds, and the authority does not answer.
    """
    if not (fleet.server_pem.exists() and fleet.server_key.exists()):
        _issue_server(fleet, _certifier(fleet, now_s))
    if now_s >= _renew_from_s(fleet):
        try:
            _issue_server(fleet, _certifier(fleet, now_s))
        except UnavailableError as exc:
            if now_s >= _renew_from_s(fleet) + SERVER_LIFE_S / 3:
                raise
            log.warning("the server certificate was not renewed: %s", exc)
            return now_s + RETRY_S
    return _renew_from_s(fleet)


def _certifier(fleet: FleetDir, now_s: float) -> Callable[[bytes], bytes]:
    """Return who turns a certificate request into a certificate."""
    if fleet.settings.ca.apart:
        from umbel_server.ca.remote import RemoteAuthority

        return RemoteAuthority.of(fleet).certify_service
    return _own_certifier(fleet, fleet.authority(), now_s)


def _own_certifier(fleet: FleetDir, ca: CertificateAuthority, now_s: float) -> Callable[[bytes], bytes]:
    return lambda csr: ca.issue_server(read_csr(csr), service_hosts(fleet), now_s=now_s)


def service_hosts(fleet: FleetDir) -> tuple[str, ...]:
    """Return the names that the services' certificate has, and no others."""
    return (fleet.settings.host, "localhost", "127.0.0.1")


def _fill(fleet: FleetDir, policy: FleetPolicy, clock: Clock) -> None:
    fleet.path.mkdir(mode=0o700)
    for directory in DIRECTORIES:
        (fleet.path / directory).mkdir(mode=0o700)
    ca = CertificateAuthority.create(fleet.name, now_s=clock())
    authority, release = SigningKey.generate(), SigningKey.generate()
    telemetry, telemetry_public = generate_keypair()
    for path, public in (
        (fleet.ca_pem, ca.certificate_pem),
        (fleet.authority_pub, authority.public.raw),
        (fleet.release_pub, release.public.raw),
        (fleet.telemetry_pub, telemetry_public.raw),
        (fleet.policy_bin, sign_policy(authority, policy)),
        (fleet.path / SETTINGS_FILE, fleet.settings.to_toml().encode()),
    ):
        write_atomically(path, public, mode=PUBLIC_MODE)
    for path, secret in (
        (fleet.ca_key, ca.key_pem),
        (fleet.authority_key, authority.to_pem()),
        (fleet.release_key, release.to_pem()),
        (fleet.telemetry_key, telemetry.raw),
        (fleet.control_secret, secrets.token_hex(32).encode()),
        (fleet.superexec_secret, secrets.token_hex(32).encode()),
    ):
        write_atomically(path, secret)
    sign_releases(fleet, clock=clock)
    _issue_server(fleet, _own_certifier(fleet, ca, clock()))
    fleet.open_store(clock=clock, new=True).close()


def _issue_server(fleet: FleetDir, certify: Callable[[bytes], bytes]) -> None:
    # The key outlives its certificates, so that no crash leaves a key beside another's certificate.
    if fleet.server_key.exists():
        key = _read_server_key(fleet.server_key)
    else:
        key = generate_key()
        write_atomically(fleet.server_key, private_pem(key))
    write_atomically(fleet.server_pem, certify(make_csr(key)), mode=PUBLIC_MODE)


def _renew_from_s(fleet: FleetDir) -> float:
    try:
        leaf = x509.load_pem_x509_certificate(read_file(fleet.server_pem, "server certificate"))
    except ValueError as exc:
        raise StorageError(f"{fleet.server_pem} is damaged: remove it, and a new one is made.") from exc
    return leaf.not_valid_after_utc.timestamp() - SERVER_LIFE_S / 3


def _read_server_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_file(path, "server key"), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError(f"{path} is damaged: remove it, and a new one is made.")
    return key
