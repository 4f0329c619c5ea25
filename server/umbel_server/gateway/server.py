"""The gateway's process: two listeners, one for devices that bring a token and one for members."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from umbel_proto.errors import UnavailableError
from umbel_server.clock import Clock, system_clock
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.settings import address
from umbel_server.gateway.certificate import ServerCertificate
from umbel_server.gateway.delivery import Delivery
from umbel_server.gateway.enrollment import Enrollment
from umbel_server.gateway.membership import Membership
from umbel_server.gateway.papers import Issuer
from umbel_server.gateway.peer import Peers
from umbel_server.gateway.rpc import Method, service
from umbel_server.gateway.telemetry import Telemetry
from umbel_server.store.store import Store

MEMBER_THREADS = 16
ENROLL_THREADS = 4
FETCHES = MEMBER_THREADS // 2  # The other threads stay free for calls that take no time.
QUEUE = 8  # Calls that may wait for each thread; the rest are refused at once, with RESOURCE_EXHAUSTED.
MEMBER_MESSAGE_BYTES = 4 << 20
ENROLL_MESSAGE_BYTES = 64 << 10
DRAIN_S = 5.0

log = logging.getLogger(__name__)


class _Service(Protocol):
    @property
    def descriptor(self) -> ServiceDescriptor: ...

    @property
    def methods(self) -> dict[str, Method]: ...


class Gateway:
    """A running gateway; use it with ``with``.

    Enrollment listens apart, since its callers have no certificate yet: it has its own threads,
    and whoever floods it disturbs no member.

    Args:
        fleet: The fleet it serves.
        store: The fleet's store.
        clock: Dates what it issues and judges what has expired.

    Raises:
        StorageError: A key or certificate is missing or damaged.
        UnavailableError: A port is taken.
    """

    def __init__(self, fleet: FleetDir, store: Store, *, clock: Clock = system_clock) -> None:
        issuer = Issuer.open(fleet, clock=clock)
        self._peers = Peers(fleet.name, store.devices, clock)
        self._members = _server(
            [
                Membership(issuer, store.devices, self._peers),
                Delivery(fleet, store.releases, self._peers, streams=FETCHES),
                Telemetry(fleet.name, store.batches, self._peers),
            ],
            threads=MEMBER_THREADS,
            message_bytes=MEMBER_MESSAGE_BYTES,
        )
        self._enrollment = _server(
            [Enrollment(issuer, store)], threads=ENROLL_THREADS, message_bytes=ENROLL_MESSAGE_BYTES
        )
        settings = fleet.settings
        self.address = _listen(
            self._members,
            settings.listen,
            settings.gateway_port,
            ServerCertificate(fleet, clock, mutual=True),
        )
        self.enroll_address = _listen(
            self._enrollment,
            settings.listen,
            settings.enroll_port,
            ServerCertificate(fleet, clock, mutual=False),
        )

    def __enter__(self) -> Gateway:
        self._members.start()
        self._enrollment.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take no more calls, and finish those under way."""
        stopped = [server.stop(DRAIN_S) for server in (self._enrollment, self._members)]
        for event in stopped:
            event.wait()
        self._peers.flush()


def _server(services: Sequence[_Service], *, threads: int, message_bytes: int) -> grpc.Server:
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="umbel-gateway"),
        options=[
            ("grpc.so_reuseport", 0),  # Or two gateways would share a port, each with half the calls.
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_concurrent_streams", 32),
            ("grpc.max_connection_idle_ms", 15 * 60 * 1000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),  # Devices ping every minute.
        ],
        maximum_concurrent_rpcs=threads * QUEUE,
    )
    server.add_generic_rpc_handlers([service(each.descriptor, each.methods) for each in services])
    return server


def _listen(server: grpc.Server, listen: str, port: int, certificate: ServerCertificate) -> str:
    credentials = certificate.credentials()
    where = address(listen, port)
    _check_free(listen, port)
    with contextlib.suppress(RuntimeError):
        if server.add_secure_port(where, credentials):
            return where
    raise _taken(where)


def _check_free(listen: str, port: int) -> None:
    # gRPC would say the same in six lines of its own on the standard error stream.
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((listen, port))
    except OSError as exc:
        where = address(listen, port)
        if exc.errno == errno.EADDRINUSE:
            raise _taken(where) from exc
        raise UnavailableError(f"The gateway cannot listen on {where}: {exc.strerror}.") from exc


def _taken(where: str) -> UnavailableError:
    return UnavailableError(
        f"The port of {where} is taken: stop what listens there, or choose another port in fleet.toml."
    )
