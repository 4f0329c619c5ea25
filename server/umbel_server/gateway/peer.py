"""Who calls: the device that the client certificate names, if the fleet still wants it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from umbel_proto.errors import CertificateError, StorageError, UnavailableError
from umbel_proto.ids import DeviceId, FleetId
from umbel_server.ca.registrar import key_hash, require_own_key
from umbel_server.clock import Clock
from umbel_server.fleet.ca import device_of
from umbel_server.gateway.allowance import Allowance
from umbel_server.gateway.rpc import Call
from umbel_server.services.logs import current_call
from umbel_server.store.devices import Device, Devices

SEEN_EVERY_S = 5.0
MOST_CALLERS = 8192
"""Certificates that are kept as read, some kilobytes each."""
UNLIMITED = Allowance(0.0, 1, time.monotonic)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a certificate says that it is; its chain was checked by TLS.

    Args:
        name: The device.
        certificate: The certificate.
        key_hash: SHA-256 of its key's SubjectPublicKeyInfo, DER.
        not_after_s: When it ends, Unix seconds.
    """

    name: DeviceId
    certificate: x509.Certificate = field(repr=False)
    key_hash: bytes = field(repr=False)
    not_after_s: float


class Peers:
    """Tells who calls, and keeps when each device was last heard of.

    What it keeps is written at most every ``SEEN_EVERY_S``, for all devices at once: presence is
    worth a write now and then, not one for every call.

    Args:
        fleet: The fleet whose devices may call.
        devices: The store's devices.
        clock: Tells whether a certificate has run out since the connection was made.
        allowance: Tells whether a device calls too often.
    """

    def __init__(
        self, fleet: FleetId, devices: Devices, clock: Clock, *, allowance: Allowance = UNLIMITED
    ) -> None:
        self._fleet = fleet
        self._devices = devices
        self._clock = clock
        self._allowance = allowance
        self._lock = threading.Lock()
        self._seen: dict[DeviceId, float] = {}
        self._written_s = 0.0
        self._callers: dict[bytes, Caller] = {}

    def authenticate(self, call: Call) -> Device:
        """Return the device that calls.

        Raises:
            CertificateError: Its certificate names no device of this fleet or has expired.
            RefusedError: It is not enrolled, or revoked, or its name is another's by now.
        """
        caller = self.identify(call)
        device = self._devices.admit(caller.name)
        require_own_key(device, caller.certificate)
        now_s = self._clock()
        with self._lock:
            self._seen[caller.name] = now_s
            due = now_s - self._written_s >= SEEN_EVERY_S
            if due:
                self._written_s = now_s
        if due:
            self.flush()
        return device

    def identify(self, call: Call) -> Caller:
        """Return who calls, by its certificate alone: whether it may is for the store to say.

        Raises:
            CertificateError: The certificate names no device of this fleet or has expired.
            TooOftenError: It called too often.
        """
        pem = certificate_of(call)
        now_s = self._clock()
        caller = self._callers.get(pem)
        if caller is None or now_s >= caller.not_after_s:
            caller = self._read(pem, now_s)
            if len(self._callers) >= MOST_CALLERS:
                self._callers.clear()  # Simpler than to forget the oldest, and as rare as a device's second call.
            self._callers[pem] = caller
        facts = current_call.get()
        if facts is not None:
            facts.device = caller.name
        self._allowance.take(caller.name)
        return caller

    def _read(self, pem: bytes, now_s: float) -> Caller:
        certificate = x509.load_pem_x509_certificate(pem)
        name = device_of(certificate, fleet=self._fleet, now_s=now_s)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise CertificateError(
                "The certificate is for a key of another kind than this fleet's: enroll again."
            )
        return Caller(name, certificate, key_hash(key), certificate.not_valid_after_utc.timestamp())

    def flush(self) -> None:
        """Write down when devices were last heard of."""
        with self._lock:
            seen, self._seen = self._seen, {}
        try:
            self._devices.seen(seen)
        except (StorageError, UnavailableError) as exc:
            # Whoever called is answered all the same: only the presence of some devices is late.
            log.warning("presence of %d devices was not kept: %s", len(seen), exc)


def certificate_of(call: Call) -> bytes:
    """Return the certificate, PEM, that a caller showed.

    Raises:
        CertificateError: It showed none.
    """
    # The stubs say bytes; it is a list of them.
    facts = cast("Mapping[str, Sequence[bytes]]", call.auth_context())
    pem = facts.get("x509_pem_cert")
    if not pem:
        raise CertificateError("The call came without a client certificate: enroll first.")
    return pem[0]
