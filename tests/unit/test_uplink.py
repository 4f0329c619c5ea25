"""Pauses after failures are random, bounded, and never shorter than the server asks for."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel._fleet.channel import LaterError, to_error
from umbel._fleet.uplink import Backoff
from umbel_proto.errors import (
    CertificateError,
    RefusedError,
    RemoteProtocolError,
    TokenError,
    UmbelError,
    UnavailableError,
    UsageError,
)


def test_the_bound_doubles_up_to_the_longest_and_begins_anew_after_a_success() -> None:
    backoff = Backoff(first_s=1.0, longest_s=10.0, uniform=lambda _, high: high)
    assert [backoff.failed() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    backoff.succeeded()
    assert backoff.failed() == 1.0


def test_the_whole_of_the_pause_is_random() -> None:
    backoff = Backoff(first_s=1.0, longest_s=10.0, uniform=lambda low, _: low)
    assert [backoff.failed() for _ in range(6)] == [0.0] * 6


@given(failures=st.integers(1, 5000), retry_after_s=st.floats(0, 3600))
def test_no_pause_is_shorter_than_the_server_asks(failures: int, retry_after_s: float) -> None:
    backoff = Backoff(first_s=1.0, longest_s=10.0)
    for _ in range(failures - 1):
        backoff.failed()
    assert retry_after_s <= backoff.failed(retry_after_s) <= retry_after_s + 10.0


class Failure(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """What gRPC raises."""

    def __init__(self, code: grpc.StatusCode, details: str = "why", **trailing: str) -> None:
        self._code, self._details = code, details
        self._trailing = tuple((name.replace("_", "-"), value) for name, value in trailing.items())

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> object:
        return self._trailing

    def initial_metadata(self) -> object:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> None:
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:
        return False


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnavailableError),
        (grpc.StatusCode.CANCELLED, UnavailableError),
        (grpc.StatusCode.UNAUTHENTICATED, CertificateError),
        (grpc.StatusCode.PERMISSION_DENIED, RefusedError),
        (grpc.StatusCode.NOT_FOUND, RefusedError),
        (grpc.StatusCode.INVALID_ARGUMENT, UsageError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, UnavailableError),
        (grpc.StatusCode.UNIMPLEMENTED, RemoteProtocolError),
        (grpc.StatusCode.INTERNAL, RemoteProtocolError),
    ],
)
def test_every_status_becomes_one_of_our_errors(code: grpc.StatusCode, kind: type[UmbelError]) -> None:
    assert type(to_error(Failure(code), "host:1")) is kind


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]
)
def test_a_server_that_says_when_to_come_back_is_heard(code: grpc.StatusCode) -> None:
    error = to_error(Failure(code, umbel_retry_after_s="42"), "host:1")
    assert isinstance(error, LaterError)
    assert (error.retry_after_s, str(error)) == (42.0, "why")


@pytest.mark.parametrize("value", ["-1", "x", "nan"])
def test_nonsense_about_when_to_come_back_is_no_wait(value: str) -> None:
    error = to_error(Failure(grpc.StatusCode.UNAVAILABLE, umbel_retry_after_s=value), "host:1")
    assert type(error) is UnavailableError


def test_a_server_cannot_send_a_device_to_sleep_for_ever() -> None:
    error = to_error(Failure(grpc.StatusCode.UNAVAILABLE, umbel_retry_after_s="1e12"), "host:1")
    assert isinstance(error, LaterError)
    assert error.retry_after_s == 3600.0


def test_who_is_unknown_when_enrolling_brought_the_wrong_token() -> None:
    error = to_error(Failure(grpc.StatusCode.UNAUTHENTICATED, "used"), "host:1", unknown=TokenError)
    assert (type(error), str(error)) == (TokenError, "used")


def test_a_foreign_certificate_is_told_from_a_server_that_is_down() -> None:
    details = "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate"
    error = to_error(Failure(grpc.StatusCode.UNAVAILABLE, details), "host:1")
    assert isinstance(error, CertificateError)
    assert "host:1" in str(error)
