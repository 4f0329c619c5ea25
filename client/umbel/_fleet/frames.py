"""HTTP/2 frames cut out of what a server sends, within what a device takes of one. Nothing here does I/O.

h2 bounds frames, too, but lets a header block be 64 of them, and keeps every setting that a server makes up.

Source:
    RFC 9113, "HTTP/2", sections 4.1, 4.3, 6.5 and 6.8.
"""

from __future__ import annotations

from collections.abc import Iterator

from umbel._fleet.status import CallError, Status

MAX_FRAME_BYTES = 1 << 16
MAX_HEADERS_BYTES = 1 << 14
"""Of one header block, as it is sent and as it is read; gRPC's own limit is 16 KB, too."""
MAX_SETTINGS = 1000
"""That a server tells over one connection; a gateway tells six, and few when it sees how fast the network is."""

HEADERS, SETTINGS, PUSH_PROMISE, GOAWAY, CONTINUATION = 1, 4, 5, 7, 9
"""Types of frames."""
ALL_STREAMS = (1 << 31) - 1
"""The last stream there can be."""

_HEADER_BYTES = 9
_TYPE, _FLAGS = 3, 4
_END_HEADERS = 4
_SETTING_BYTES = 6
_GOAWAY_BYTES = 8


class Frames:
    """What has come of frames, and was not taken yet."""

    def __init__(self) -> None:
        self.last_stream = ALL_STREAMS
        """The last stream that the server has taken or will take, by its word."""
        self.is_ending = False
        """Whether the server has said that it will take no more, maybe without a last one yet."""
        self._held = bytearray()
        self._block = 0
        self._settings = 0

    @property
    def is_worn(self) -> bool:
        """Whether a well-meaning server has told so much that the connection is to be made anew."""
        return self._settings > MAX_SETTINGS // 2

    def add(self, data: bytes) -> None:
        """Take bytes."""
        self._held += data

    def whole(self) -> Iterator[bytes]:
        """Yield, once, the frames that have come whole, but those that say good-bye.

        h2 would refuse everything after one of those; a server that stops in good order goes on with what it took before.

        Raises:
            CallError: The server sends more than it may.
        """
        begin = 0
        while len(self._held) >= begin + _HEADER_BYTES:
            size = int.from_bytes(self._held[begin : begin + _TYPE])
            if size > MAX_FRAME_BYTES:
                raise CallError(Status.INTERNAL, "it sends larger frames than it may: it may speak no HTTP/2")
            end = begin + _HEADER_BYTES + size
            if len(self._held) < end:
                break
            frame = bytes(self._held[begin:end])
            begin = end
            if frame[_TYPE] == GOAWAY and size >= _GOAWAY_BYTES:
                last = int.from_bytes(frame[_HEADER_BYTES : _HEADER_BYTES + 4]) & ALL_STREAMS
                self.last_stream, self.is_ending = min(self.last_stream, last), True
                continue
            self._count(frame[_TYPE], frame[_FLAGS], size)
            yield frame
        del self._held[:begin]

    def _count(self, kind: int, flags: int, size: int) -> None:
        if kind in (HEADERS, PUSH_PROMISE, CONTINUATION):
            self._block += size
            if self._block > MAX_HEADERS_BYTES:
                raise CallError(Status.INTERNAL, "it sends more headers than it may")
            if flags & _END_HEADERS:
                self._block = 0
        elif kind == SETTINGS:
            self._settings += 1 + size // _SETTING_BYTES
            if self._settings > MAX_SETTINGS:
                raise CallError(Status.INTERNAL, "it tells more settings than there are")
