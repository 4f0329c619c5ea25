"""Pauses after failures are random, bounded, and never shorter than the server asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel._fleet.channel import RETRY_AFTER, LaterError, to_error
from umbel._fleet.status import CallError, Status, StrangerError, UntrustedError
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


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Status.UNAVAILABLE, UnavailableError),
        (Status.DEADLINE_EXCEEDED, UnavailableError),
        (Status.CANCELLED, UnavailableError),
        (Status.UNAUTHENTICATED, CertificateError),
        (Status.PERMISSION_DENIED, RefusedError),
        (Status.NOT_FOUND, RefusedError),
        (Status.INVALID_ARGUMENT, UsageError),
        (Status.RESOURCE_EXHAUSTED, UnavailableError),
        (Status.UNIMPLEMENTED, RemoteProtocolError),
        (Status.INTERNAL, RemoteProtocolError),
    ],
)
def test_every_status_becomes_one_of_our_errors(code: Status, kind: type[UmbelError]) -> None:
    assert type(to_error(CallError(code, "why"), "host:1")) is kind


@pytest.mark.parametrize("code", [Status.RESOURCE_EXHAUSTED, Status.UNAVAILABLE, Status.INTERNAL])
def test_a_server_that_says_when_to_come_back_is_heard(code: Status) -> None:
    error = to_error(CallError(code, "why", {RETRY_AFTER: "42"}), "host:1")
    assert isinstance(error, LaterError)
    assert (error.retry_after_s, str(error)) == (42.0, "why")


@pytest.mark.parametrize("value", ["-1", "x", "nan"])
def test_nonsense_about_when_to_come_back_is_no_wait(value: str) -> None:
    error = to_error(CallError(Status.UNAVAILABLE, "why", {RETRY_AFTER: value}), "host:1")
    assert type(error) is UnavailableError


def test_a_server_cannot_send_a_device_to_sleep_for_ever() -> None:
    error = to_error(CallError(Status.UNAVAILABLE, "why", {RETRY_AFTER: "1e12"}), "host:1")
    assert isinstance(error, LaterError)
    assert error.retry_after_s == 3600.0


def test_who_is_unknown_when_enrolling_brought_the_wrong_token() -> None:
    error = to_error(CallError(Status.UNAUTHENTICATED, "used"), "host:1", unknown=TokenError)
    assert (type(error), str(error)) == (TokenError, "used")


@pytest.mark.parametrize(
    ("failure", "kind", "sentence"),
    [
        (UntrustedError, CertificateError, "authority did not sign"),
        (StrangerError, UnavailableError, "does not speak as a gateway does"),
        (CallError, UnavailableError, "does not answer"),
    ],
)
def test_a_foreign_server_is_told_from_one_that_is_down(
    failure: type[CallError], kind: type[UmbelError], sentence: str
) -> None:
    error = to_error(failure(Status.UNAVAILABLE), "host:1")
    assert type(error) is kind
    assert "host:1" in str(error)
    assert sentence in str(error)
