"""How a gRPC call ended, and the ways in which one fails."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class Status(IntEnum):
    """What became of a call, by gRPC's numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallError(Exception):
    """A call that failed.

    Args:
        status: How.
        details: The server's sentence, or what we saw of it.
        trailers: What the server said beside it; empty unless it ended the call itself.
    """

    def __init__(self, status: Status, details: str = "", trailers: Mapping[str, str] | None = None) -> None:
        super().__init__(details)
        self.status = status
        self.details = details
        self.trailers = trailers or {}


class UntrustedError(CallError):
    """The server's certificate is not of the authority, not for this address, or does not hold now."""


class StrangerError(CallError):
    """Whoever takes the connection speaks no TLS, or no HTTP/2 in it."""


class UntouchedError(CallError):
    """The server says that it has done nothing with the call, and has answered nothing: it may be made again."""
