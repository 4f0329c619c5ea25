"""The way to the fleet: gRPC with TLS to the pinned authority, and its failures as umbel's errors."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from umbel._fleet.connection import ALPN
from umbel._fleet.rpc import CALL_TIMEOUT_S, Channel, stub
from umbel._fleet.status import CallError, Status, StrangerError, UntrustedError
from umbel._home.directory import DeviceHome
from umbel._home.files import read_file
from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    RemoteProtocolError,
    StorageError,
    UmbelError,
    UnavailableError,
    UsageError,
)
from umbel_proto.wire import delivery_pb2, enrollment_pb2, telemetry_pb2
from umbel_proto.wire.delivery_pb2 import Chunk, FetchRequest

FETCH_TIMEOUT_S = 600.0
RETRY_AFTER = "umbel-retry-after-s"
"""Trailing metadata of a refusal that passes: in how many seconds to try again."""
MAX_RETRY_AFTER_S = 3600.0
PENDING = "umbel-pending"
"""Trailing metadata of a refusal because an operator is to approve first: what they call what waits."""

T = TypeVar("T")


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
        context = _trusting(read_file(home.ca_certificate))
        read_file(home.tls_key)  # Its error names the file.
        try:
            # With a password, though none is needed: OpenSSL would ask the terminal for that of a damaged key.
            context.load_cert_chain(home.tls_certificate, home.tls_key, password="")
        except (OSError, ValueError) as exc:
            raise StorageError(
                f"{home.tls_certificate} and {home.tls_key} are no certificate and its key: enroll again with --again."
            ) from exc
        self._channel = Channel(self.address, context)
        self.membership = stub(self._channel, _service(enrollment_pb2, "Membership"))
        self.delivery = stub(self._channel, _service(delivery_pb2, "Delivery"))
        self.telemetry = stub(self._channel, _service(telemetry_pb2, "Telemetry"))

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


def _trusting(ca_certificate: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    try:
        context.load_verify_locations(cadata=ca_certificate.decode("ascii"))
    except (OSError, ValueError) as exc:
        raise StorageError(
            "The certificate of the fleet's authority is damaged: enroll again with --again."
        ) from exc
    return context


def _service(module: Any, name: str) -> Any:
    return module.DESCRIPTOR.services_by_name[name]


@contextlib.contextmanager
def enrollment(address: str, ca_certificate: bytes) -> Iterator[Any]:
    """Connect to where devices enroll; the device has no certificate yet.

    Args:
        address: ``host:port``.
        ca_certificate: The only authority trusted, PEM.
    """
    with contextlib.closing(Channel(address, _trusting(ca_certificate))) as channel:
        yield stub(channel, _service(enrollment_pb2, "Enrollment"))


@contextlib.contextmanager
def readmission(address: str, ca_certificate: bytes) -> Iterator[Any]:
    """Connect to where devices come back whose certificate has expired.

    Args:
        address: ``host:port``.
        ca_certificate: The only authority trusted, PEM.
    """
    with contextlib.closing(Channel(address, _trusting(ca_certificate))) as channel:
        yield stub(channel, _service(enrollment_pb2, "Readmission"))


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
    except CallError as exc:
        raise to_error(exc, address, unknown=unknown) from exc


def to_error(exc: CallError, address: str, *, unknown: type[UmbelError] = CertificateError) -> UmbelError:
    """Return umbel's error for gRPC's. The server's own sentence is kept where it wrote one.

    Returns:
        ``UnavailableError`` for what may pass by itself, with the server's word on when to try
        again; ``unknown``, ``RefusedError`` and ``UsageError`` for what it refuses;
        ``RemoteProtocolError`` for the rest.
    """
    code, details = exc.status, exc.details
    if isinstance(exc, UntrustedError):
        return CertificateError(
            f"The server at {address} shows a certificate that this fleet's authority did not sign, "
            "or one that has expired: check the address, and the server."
        )
    if isinstance(exc, StrangerError):
        return UnavailableError(
            f"{address} takes connections, but does not speak as a gateway does: check that the address is "
            "the gateway's, and that nothing on the way answers in its place."
        )
    match code:
        case Status.UNAUTHENTICATED:
            return unknown(details)
        case Status.PERMISSION_DENIED | Status.NOT_FOUND:
            return RefusedError(details)
        case Status.INVALID_ARGUMENT:
            return UsageError(details)
    wait = _retry_after_s(exc)
    if code == Status.UNAVAILABLE and (application := _told(exc, PENDING)):
        return PendingError(details, wait, application)
    match code:
        case Status.UNAVAILABLE | Status.RESOURCE_EXHAUSTED | Status.INTERNAL if wait:
            return LaterError(details, wait)
        case Status.UNAVAILABLE | Status.DEADLINE_EXCEEDED:
            return UnavailableError(
                f"{address} does not answer: check that the gateway runs and is reachable."
            )
        case Status.RESOURCE_EXHAUSTED:
            return UnavailableError(f"{address} has more to do than it can: try again later.")
        case Status.CANCELLED:
            return UnavailableError(f"The connection to {address} was closed.")
        case _:
            return RemoteProtocolError("server", f"{code.name.lower().replace('_', ' ')}: {details}")


def _retry_after_s(exc: CallError) -> float:
    """Return the server's word on when to try again, seconds; 0 if it gave none."""
    try:
        wait_s = float(_told(exc, RETRY_AFTER) or 0.0)
    except ValueError:
        return 0.0
    return min(wait_s, MAX_RETRY_AFTER_S) if wait_s > 0 else 0.0  # NaN is not.


def _told(exc: CallError, wanted: str) -> str:
    """Return what the server said beside its refusal; empty if nothing."""
    return exc.trailers.get(wanted, "")
