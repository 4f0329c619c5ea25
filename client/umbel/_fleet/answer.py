"""What a gRPC server answers to one call: how it went, and messages cut out of bytes. Nothing here does I/O.

Source:
    "gRPC over HTTP2" in the gRPC repository, doc/PROTOCOL-HTTP2.md; doc/http-grpc-status-mapping.md.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from umbel._fleet.status import CallError, Status

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of one message, either way and before it is compressed: no server makes a device hold more."""
MAX_SENTENCE = 1000
"""Characters of a server's sentence."""
ENCODING = "gzip"
"""The compression that we understand: gateways compress lists of many models."""

_PREFIX_BYTES = 5
_CONTENT_TYPE = re.compile(r"application/grpc([+;].*)?")
_GZIP_WINDOW = 31
_PASSING = frozenset(("429", "502", "503", "504"))
"""HTTP statuses by which whatever stands in front of a gateway says that it is not there now."""


class Answer:
    """What has come of an answer."""

    def __init__(self) -> None:
        self.has_begun = self.has_ended = False
        self._told: dict[str, str] = {}
        self._body = bytearray()

    def tell(self, headers: Iterable[tuple[bytes, bytes]], *, first: bool) -> None:
        """Take headers or trailers; an answer without a message may have both in one.

        Raises:
            CallError: A web server answers, and no gateway.
        """
        self.has_begun = True
        told = {_text(name): _text(value) for name, value in headers}
        status = told.get(":status", "")
        if first and (status != "200" or not _CONTENT_TYPE.fullmatch(told.get("content-type", ""))):
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
            sentence = _printable(unquote(self._told.get("grpc-message", ""), errors="replace"))
            raise CallError(status, sentence[:MAX_SENTENCE], self._told)
        if self._body:
            raise CallError(Status.INTERNAL, "it ends an answer within a message")


def _text(raw: bytes) -> str:
    return _printable(raw.decode("utf-8", "replace"))


def _printable(text: str) -> str:
    """Return a text that moves no cursor and begins no line: it goes to terminals and logs."""
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)
