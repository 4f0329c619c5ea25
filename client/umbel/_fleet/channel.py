"""The way to the fleet: gRPC with TLS to the pinned authority, and its failures as umbel's errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from umbel._home.directory import DeviceHome
from umbel._home.files import read_file
from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    RemoteProtocolError,
    UmbelError,
    UnavailableError,
    UsageError,
)
from umbel_proto.wire.delivery_pb2 import Chunk, FetchRequest
from umbel_proto.wire.delivery_pb2_grpc import DeliveryStub
from umbel_proto.wire.enrollment_pb2_grpc import EnrollmentStub, MembershipStub, ReadmissionStub
from umbel_proto.wire.telemetry_pb2_grpc import TelemetryStub

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
CALL_TIMEOUT_S = 20.0
FETCH_TIMEOUT_S = 600.0
RETRY_AFTER = "umbel-retry-after-s"
"""Trailing metadata of a refusal that passes: in how many seconds to try again."""
MAX_RETRY_AFTER_S = 3600.0
PENDING = "umbel-pending"
"""Trailing metadata of a refusal because an operator is to approve first: what they call what waits."""

T = TypeVar("T")

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # We pace our own attempts; a channel that waits minutes after a failure would hide that the peer is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 60_000),
    # Channels to one address must not share a connection: it was made with an older certificate.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


class LaterError(UnavailableError):
    """The server cannot do it now, and says when to try again.

    Args:
        sentence: Why not.
        retry_after_s: In how many seconds.
    """

    def __init__(self, sentence: str, retry_after_s: float) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class PendingError(LaterError):
    """An operator is to let the device in first.

    Args:
        sentence: What the server says.
        retry_after_s: In how many seconds to ask again.
        application: What operators call what waits.
    """

    def __init__(self, sentence: str, retry_after_s: float, application: str) -> None:
        super().__init__(sentence, retry_after_s)
        self.application = application


class Gateway:
    """A mutual TLS connection to the gateway, made by the first call.

    Args:
        home: The enrolled device.
        now_s: The time, Unix seconds.

    Raises:
        CertificateError: The device's certificate has expired.
    """

    def __init__(self, home: DeviceHome, *, now_s: float) -> None:
        home.require_valid_certificate(now_s)
        self.address = home.identity.gateway
        credentials = grpc.ssl_channel_credentials(
            read_file(home.ca_certificate), read_file(home.tls_key), read_file(home.tls_certificate)
        )
        self._channel = grpc.secure_channel(self.address, credentials, _OPTIONS)
        # What grpcio-tools generates has no types.
        self.membership = MembershipStub(self._channel)  # type: ignore[no-untyped-call]
        self.delivery = DeliveryStub(self._channel)  # type: ignore[no-untyped-call]
        self.telemetry = TelemetryStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self, request: FetchRequest) -> Iterator[Chunk]:
        """Yield a package's chunks as they arrive.

        Raises:
            UmbelError: One of ``to_error``.
        """
        with _our_errors(self.address, CertificateError):
            yield from self.delivery.Fetch(request, timeout=FETCH_TIMEOUT_S)

    def close(self) -> None:
        """End the connection and every call on it."""
        self._channel.close()


@contextlib.contextmanager
def enrollment(address: str, ca_certificate: bytes) -> Iterator[EnrollmentStub]:
    """Connect to where devices enroll; the device has no certificate yet.

    Args:
        address: ``host:port``.
        ca_certificate: The only authority trusted, PEM.
    """
    channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca_certificate), _OPTIONS)
    with contextlib.closing(channel):
        yield EnrollmentStub(channel)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def readmission(address: str, ca_certificate: bytes) -> Iterator[ReadmissionStub]:
    """Connect to where devices come back whose certificate has expired.

    Args:
        address: ``host:port``.
        ca_certificate: The only authority trusted, PEM.
    """
    channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca_certificate), _OPTIONS)
    with contextlib.closing(channel):
        yield ReadmissionStub(channel)  # type: ignore[no-untyped-call]


def call(
    method: Callable[..., T],
    request: object,
    address: str,
    *,
    timeout_s: float = CALL_TIMEOUT_S,
    unknown: type[UmbelError] = CertificateError,
) -> T:
    """Call a gRPC method.

    Args:
        method: A stub's method.
        request: Its message.
        address: Whom it calls, for the sentence.
        timeout_s: How long to wait for the answer.
        unknown: What it means that the server does not know the caller.

    Raises:
        UmbelError: One of ``to_error``.
    """
    with _our_errors(address, unknown):
        return method(request, timeout=timeout_s)


@contextlib.contextmanager
def _our_errors(address: str, unknown: type[UmbelError]) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as exc:
        raise to_error(exc, address, unknown=unknown) from exc
    except ValueError as exc:  # What gRPC says of a channel that another thread has closed.
        raise UnavailableError(f"The connection to {address} was closed.") from exc


def to_error(exc: Exception, address: str, *, unknown: type[UmbelError] = CertificateError) -> UmbelError:
    """Return umbel's error for gRPC's. The server's own sentence is kept where it wrote one.

    Returns:
        ``UnavailableError`` for what may pass by itself, with the server's word on when to try
        again; ``unknown``, ``RefusedError`` and ``UsageError`` for what it refuses;
        ``RemoteProtocolError`` for the rest.
    """
    if not isinstance(exc, grpc.Call):
        return UnavailableError(f"The connection to {address} ended: try again.")
    code, details = exc.code(), exc.details() or ""
    match code:
        case grpc.StatusCode.UNAVAILABLE if "CERTIFICATE_VERIFY_FAILED" in details:
            return CertificateError(
                f"The server at {address} shows a certificate that this fleet's authority did not sign, "
                "or one that has expired: check the address, and the server."
            )
        case grpc.StatusCode.UNAVAILABLE if "andshake" in details:  # With a capital H, or not.
            return UnavailableError(
                f"{address} takes connections, but does not speak as a gateway does: check that the address is "
                "the gateway's, and that nothing on the way answers in its place."
            )
        case grpc.StatusCode.UNAUTHENTICATED:
            return unknown(details)
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.NOT_FOUND:
            return RefusedError(details)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return UsageError(details)
    wait = _retry_after_s(exc)
    if code == grpc.StatusCode.UNAVAILABLE and (application := _told(exc, PENDING)):
        return PendingError(details, wait, application)
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.RESOURCE_EXHAUSTED | grpc.StatusCode.INTERNAL if (
            wait
        ):
            return LaterError(details, wait)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnavailableError(
                f"{address} does not answer: check that the gateway runs and is reachable."
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return UnavailableError(f"{address} has more to do than it can: try again later.")
        case grpc.StatusCode.CANCELLED:
            return UnavailableError(f"The connection to {address} was closed.")
        case _:
            return RemoteProtocolError("server", f"{code.name.lower().replace('_', ' ')}: {details}")


def _retry_after_s(exc: grpc.Call) -> float:
    """Return the server's word on when to try again, seconds; 0 if it gave none."""
    try:
        wait_s = float(_told(exc, RETRY_AFTER) or 0.0)
    except ValueError:
        return 0.0
    return min(wait_s, MAX_RETRY_AFTER_S) if wait_s > 0 else 0.0  # NaN is not.


def _told(exc: grpc.Call, wanted: str) -> str:
    """Return what the server said beside its refusal; empty if nothing."""
    for key, value in exc.trailing_metadata() or ():
        if key == wanted:
            return str(value)
    return ""
