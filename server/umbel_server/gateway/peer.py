"""Who calls: the device that the client certificate names, if the fleet still wants it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import cast

from cryptography import x509

from umbel_proto.errors import CertificateError, StorageError, UnavailableError
from umbel_proto.ids import DeviceId, FleetId
from umbel_server.clock import Clock
from umbel_server.fleet.ca import device_of
from umbel_server.gateway.rpc import Call
from umbel_server.store.devices import Device, Devices

SEEN_EVERY_S = 5.0

log = logging.getLogger(__name__)


class Peers:
    """Tells who calls, and keeps when each device was last heard of.

    What it keeps is written at most every ``SEEN_EVERY_S``, for all devices at once: presence is
    worth a write now and then, not one for every call.

    Args:
        fleet: The fleet whose devices may call.
        devices: The store's devices.
        clock: Tells whether a certificate has run out since the connection was made.
    """

    def __init__(self, fleet: FleetId, devices: Devices, clock: Clock) -> None:
        self._fleet = fleet
        self._devices = devices
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[DeviceId, float] = {}
        self._written_s = 0.0

    def authenticate(self, call: Call) -> Device:
        """Return the device that calls.

        Raises:
            CertificateError: Its certificate names no device of this fleet or has expired.
            RefusedError: It is not enrolled, or revoked.
        """
        # The stubs say bytes; it is a list of them.
        facts = cast("Mapping[str, Sequence[bytes]]", call.auth_context())
        pem = facts.get("x509_pem_cert")
        if not pem:
            raise CertificateError("The call came without a client certificate: enroll first.")
        now_s = self._clock()
        name = device_of(x509.load_pem_x509_certificate(pem[0]), fleet=self._fleet, now_s=now_s)
        device = self._devices.admit(name)
        with self._lock:
            self._seen[name] = now_s
            due = now_s - self._written_s >= SEEN_EVERY_S
            if due:
                self._written_s = now_s
        if due:
            self.flush()
        return device

    def flush(self) -> None:
        """Write down when devices were last heard of."""
        with self._lock:
            seen, self._seen = self._seen, {}
        try:
            self._devices.seen(seen)
        except (StorageError, UnavailableError) as exc:
            # Whoever called is answered all the same: only the presence of some devices is late.
            log.warning("presence of %d devices was not kept: %s", len(seen), exc)
