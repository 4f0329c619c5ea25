"""What a gRPC server answers to one call: how it went, and messages cut out of bytes. Nothing here does I/O.

Source:
    "gRPC over HTTP2" in the gRPC repository, doc/PROTOCOL-HTTP2.md; doc/http-grpc-status-mapping.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from urllib.parse import unquote

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of one message, either way: no server makes a device hold more."""
ENCODING = "gzip"
"""The compression that we understand."""

_PREFIX_BYTES = 5
_CONTENT_TYPE = "application/grpc"
_GZIP_WINDOW = 31
_PASSING = frozenset(("429", "502", "503", "504"))
"""HTTP statuses by which whatever stands in front of a gateway says that it is not there now."""


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
    """The server says that it has done nothing with the call: it may be made again."""


class Answer:
    """What has come of an answer."""

    def __init__(self) -> None:
        self.has_ended = False
        self._told: dict[str, str] = {}
        self._body = bytearray()

    def tell(self, headers: Iterable[tuple[bytes, bytes]], *, first: bool) -> None:
        """Take headers or trailers; an answer without a message may have both in one.

        Raises:
            CallError: A web server answers, and no gateway.
        """
        told = {name.decode("ascii", "replace"): value.decode("utf-8", "replace") for name, value in headers}
        status = told.get(":status", "200")
        if first and (status != "200" or not told.get("content-type", "").startswith(_CONTENT_TYPE)):
            raise CallError(
                Status.UNAVAILABLE if status in _PASSING else Status.UNKNOWN,
                f"it answers as a web server does, with status {status[:3]}",
            )
        self._told.update(told)

    def add(self, data: bytes) -> None:
        """Take bytes of messages."""
        self._body += data

    def messages(self) -> Iterator[bytes]:
        """Yield, once, the messages that have come whole.

        Raises:
            CallError: One is too large, or cannot be decompressed.
        """
        while len(self._body) >= _PREFIX_BYTES:
            size = int.from_bytes(self._body[1:_PREFIX_BYTES])
            if size > MAX_MESSAGE_BYTES:
                raise CallError(Status.INTERNAL, f"it sends a message of more than {MAX_MESSAGE_BYTES} bytes")
            if len(self._body) < _PREFIX_BYTES + size:
                return
            flag, message = self._body[0], bytes(self._body[_PREFIX_BYTES : _PREFIX_BYTES + size])
            del self._body[: _PREFIX_BYTES + size]
            yield self._expanded(message) if flag else message

    def _expanded(self, message: bytes) -> bytes:
        if self._told.get("grpc-encoding") != ENCODING:
            raise CallError(Status.INTERNAL, "it compresses a message in a way that nobody asked for")
        try:
            gzip = zlib.decompressobj(_GZIP_WINDOW)
            expanded = gzip.decompress(message, MAX_MESSAGE_BYTES)
        except zlib.error as exc:
            raise CallError(Status.INTERNAL, "it sends a message that cannot be decompressed") from exc
        if not gzip.eof:
            raise CallError(
                Status.INTERNAL,
                f"it sends a message that is cut off, or of more than {MAX_MESSAGE_BYTES} bytes",
            )
        return expanded

    def judge(self) -> None:
        """Check that an answer that has ended was whole, and no refusal.

        Raises:
            CallError: It was not.
        """
        said = self._told.get("grpc-status", "")
        if not (said.isascii() and said.isdecimal() and len(said) <= len("16")):
            raise CallError(Status.INTERNAL, "it ends an answer without saying how")
        status = Status(int(said)) if int(said) <= max(Status) else Status.UNKNOWN
        if status:
            sentence = unquote(self._told.get("grpc-message", ""), errors="replace")
            raise CallError(status, sentence, self._told)
        if self._body:
            raise CallError(Status.INTERNAL, "it ends an answer within a message")
