"""The gateway's process: two listeners, one for devices that bring a token and one for members."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from umbel_server.clock import Clock, system_clock
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.settings import address
from umbel_server.gateway.allowance import Allowance
from umbel_server.gateway.certificate import ServerCertificate
from umbel_server.gateway.delivery import Delivery
from umbel_server.gateway.enrollment import Enrollment
from umbel_server.gateway.health import Health
from umbel_server.gateway.membership import Membership
from umbel_server.gateway.papers import Issuer
from umbel_server.gateway.peer import Peers
from umbel_server.gateway.ports import check_free, taken
from umbel_server.gateway.readmission import Readmission
from umbel_server.gateway.rpc import Method, serve_on
from umbel_server.gateway.telemetry import Telemetry
from umbel_server.gateway.threads import Threads
from umbel_server.rollouts.offers import Offers
from umbel_server.services.metrics import meters
from umbel_server.store.store import Store

ENROLL_THREADS = 4
FETCHES = 8
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

    Enrollment listens apart, since its callers have no certificate yet, or none any more: it has its own threads,
    and whoever floods it disturbs no member.

    Args:
        fleet: The fleet it serves.
        store: The fleet's store.
        shared: Whether this is one of several processes on the same ports, which `HeldPorts` holds for them.
        clock: Dates what it issues and judges what has expired.

    Raises:
        StorageError: A key or certificate is missing or damaged.
        UnavailableError: A port is taken.
    """

    def __init__(
        self, fleet: FleetDir, store: Store, *, shared: bool = False, clock: Clock = system_clock
    ) -> None:
        issuer = Issuer.open(fleet, store, clock=clock)
        limits = fleet.settings.intake
        allowance = Allowance(limits.calls_per_minute / 60, limits.burst, time.monotonic)
        self._peers = Peers(fleet.name, store.devices, clock, allowance=allowance)
        store.batches.committed = meters().stored
        # Says of both listeners whether they take calls, to whoever gets through their TLS.
        self._health = Health()
        self._member_threads = Threads(limits.threads, "umbel-gateway")
        self._enrollment_threads = Threads(ENROLL_THREADS, "umbel-enrollment")
        self._members = _server(
            [
                Membership(issuer, self._peers),
                Delivery(
                    fleet,
                    store.releases,
                    Offers(store.releases, store.placements),
                    issuer.repository,
                    store.reviews,
                    self._peers,
                    streams=FETCHES,
                ),
                Telemetry(fleet.name, store.batches, self._peers),
            ],
            threads=self._member_threads,
            message_bytes=MEMBER_MESSAGE_BYTES,
            shared=shared,
        )
        self._enrollment = _server(
            [
                Enrollment(issuer),
                Readmission(issuer, store.devices, days=fleet.settings.return_days),
            ],
            threads=self._enrollment_threads,
            message_bytes=ENROLL_MESSAGE_BYTES,
            shared=shared,
        )
        for server in (self._members, self._enrollment):
            self._health.serve_on(server)
        settings = fleet.settings
        self.address = _listen(
            self._members,
            settings.listen,
            settings.ports.gateway,
            ServerCertificate(fleet, clock, mutual=True),
            shared=shared,
        )
        self.enroll_address = _listen(
            self._enrollment,
            settings.listen,
            settings.ports.enrollment,
            ServerCertificate(fleet, clock, mutual=False),
            shared=shared,
        )

    def __enter__(self) -> Gateway:
        self._member_threads.start()
        self._enrollment_threads.start()
        self._members.start()
        self._enrollment.start()
        self._health.serving = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Say that this process takes no more calls, take none, and finish those under way."""
        self._health.serving = False
        stopped = [server.stop(DRAIN_S) for server in (self._enrollment, self._members)]
        for event in stopped:
            event.wait()
        for threads in (self._enrollment_threads, self._member_threads):
            threads.shutdown()
        self._peers.flush()


def _server(
    services: Sequence[_Service], *, threads: Threads, message_bytes: int, shared: bool
) -> grpc.Server:
    server = grpc.server(
        cast("ThreadPoolExecutor", threads),  # Nothing but `submit` is asked of it.
        options=[
            # Unless they are of one fleet, two gateways must not share a port, each with half the calls.
            ("grpc.so_reuseport", int(shared)),
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_concurrent_streams", 32),
            ("grpc.max_connection_idle_ms", 15 * 60 * 1000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),  # Devices ping every minute.
        ],
        maximum_concurrent_rpcs=threads.count * QUEUE,
    )
    for each in services:
        serve_on(server, each.descriptor, each.methods)
    return server


def _listen(
    server: grpc.Server, listen: str, port: int, certificate: ServerCertificate, *, shared: bool
) -> str:
    credentials = certificate.credentials()
    where = address(listen, port)
    if not shared:
        check_free(listen, port)
    with contextlib.suppress(RuntimeError):
        if server.add_secure_port(where, credentials):
            return where
    raise taken(where)
