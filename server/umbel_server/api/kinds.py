"""The kind of an error, as the API names it and the command line turns it back: both ends read this one table."""

from __future__ import annotations

from http import HTTPStatus

from umbel_proto.errors import (
    ProtocolError,
    RefusedError,
    StorageError,
    UmbelError,
    UnavailableError,
    UsageError,
    VerificationError,
)

KINDS: dict[str, type[UmbelError]] = {
    "usage": UsageError,
    "refused": RefusedError,
    "verification": VerificationError,
    "unavailable": UnavailableError,
    "storage": StorageError,
    "protocol": ProtocolError,
    "failed": UmbelError,
}
"""The branches of the error tree by name; the tree itself comes last."""

_BY_STATUS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "refused",
    HTTPStatus.FORBIDDEN: "refused",
    HTTPStatus.CONFLICT: "refused",
    HTTPStatus.PRECONDITION_FAILED: "refused",
    HTTPStatus.PRECONDITION_REQUIRED: "refused",
    HTTPStatus.TOO_MANY_REQUESTS: "unavailable",
    HTTPStatus.BAD_GATEWAY: "unavailable",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable",
    HTTPStatus.GATEWAY_TIMEOUT: "unavailable",
}


def kind_of(exc: UmbelError) -> str:
    """Return the name of an error's branch."""
    return next(name for name, branch in KINDS.items() if isinstance(exc, branch))


def kind_of_status(status: int) -> str:
    """Return the kind of an answer that names none: by its HTTP status."""
    return _BY_STATUS.get(status, "usage" if status < 500 else "failed")
