"""The gateway's own certificate, renewed while it runs."""

from __future__ import annotations

import logging

import grpc

from umbel_proto.errors import StorageError
from umbel_server.clock import Clock
from umbel_server.files import read_file
from umbel_server.fleet.create import renew_server_certificate
from umbel_server.fleet.layout import FleetDir

log = logging.getLogger(__name__)


class ServerCertificate:
    """The certificate of one listener. Each handshake asks whether there is a newer one.

    Args:
        fleet: Where it lies.
        clock: Tells when it is to be renewed.
        mutual: Whether clients must show a certificate of the fleet's CA.
    """

    def __init__(self, fleet: FleetDir, clock: Clock, *, mutual: bool) -> None:
        self._fleet = fleet
        self._clock = clock
        self._mutual = mutual
        self._renew_from_s = 0.0

    def credentials(self) -> grpc.ServerCredentials:
        """Return the listener's credentials.

        Raises:
            StorageError: A file is missing or damaged.
        """
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            self._newer,  # type: ignore[arg-type]  # None, for no change, is missing in the stubs.
            require_client_authentication=self._mutual,
        )

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        if self._clock() < self._renew_from_s:
            return None
        try:
            return self._read()
        except StorageError as exc:
            log.warning("the server certificate was not renewed: %s", exc)
            return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._renew_from_s = renew_server_certificate(self._fleet, now_s=self._clock())
        key = read_file(self._fleet.server_key, "server key")
        chain = read_file(self._fleet.server_pem, "server certificate")
        return grpc.ssl_server_certificate_configuration(
            [(key, chain)],
            root_certificates=read_file(self._fleet.ca_pem, "CA certificate") if self._mutual else None,
        )
