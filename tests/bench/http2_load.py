"""Many devices with a connection and one call each, from one thread that takes little of the machine.

grpcio's client costs more processor time for a call than the server that is measured: on a machine of two cores it would
be the load that is measured. Here what a call sends is bytes that are ready, and of an answer only its status is read.
"""

from __future__ import annotations

import dataclasses
import heapq
import random
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence

import hpack

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16_384
WINDOW_BYTES = 65_535
MOST_BYTES = 2**31 - 1
CONNECT_S, CALL_S = 30.0, 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Calls:
    """What came of a load: how long each acknowledged call took from when it was due, and how many were not."""

    latencies_s: list[float]
    refused: int


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Connection:
    """One device's connection over mutual TLS.

    Args:
        port: Of the loopback address.
        context: With the device's certificate, and the authority that signed the server's.
        method: Path of the gRPC method.
        message: Makes what the next call sends.
    """

    def __init__(self, port: int, context: ssl.SSLContext, method: str, message: Callable[[], bytes]) -> None:
        self.due_s = 0.0
        self._message, self._stream, self._window, self._read = message, -1, WINDOW_BYTES, b""
        encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", method),
            (":authority", f"127.0.0.1:{port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", f"{CALL_S:.0f}S"),
        ]
        # The first tells the server all fields, and the others name them by number.
        self._first, self._next = encoder.encode(fields), encoder.encode(fields)
        self._accepted: dict[bytes, bool] = {}
        plain = socket.create_connection(("127.0.0.1", port), CONNECT_S)
        plain.settimeout(CALL_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        self.socket.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, MOST_BYTES))
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MOST_BYTES - WINDOW_BYTES))
        )

    def send(self) -> None:
        """Begin a call."""
        fields = self._first if self._stream < 0 else self._next
        self._stream += 2
        message = self._message()
        body = b"\0" + struct.pack(">I", len(message)) + message
        while self._window < len(body):
            self.answers()
        self._window -= len(body)
        frames = [frame(HEADERS, END_HEADERS, self._stream, fields)]
        for begin in range(0, len(body), FRAME_BYTES):
            last = END_STREAM if begin + FRAME_BYTES >= len(body) else 0
            frames.append(frame(DATA, last, self._stream, body[begin : begin + FRAME_BYTES]))
        self.socket.sendall(b"".join(frames))

    def answers(self) -> list[bool]:
        """Read what there is, at least something; return for each call that ended whether it was acknowledged."""
        self._read += self.socket.recv(WINDOW_BYTES)
        while self.socket.pending():
            self._read += self.socket.recv(WINDOW_BYTES)
        ended, at = [], 0
        while len(self._read) >= at + 9:
            length = int.from_bytes(self._read[at : at + 3], "big")
            if len(self._read) < at + 9 + length:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._read, at + 3)
            payload = self._read[at + 9 : at + 9 + length]
            at += 9 + length
            if kind == HEADERS:
                accepted = self._status(payload)
                if flags & END_STREAM:
                    ended.append(accepted)
            elif kind == RST_STREAM:
                ended.append(False)
            elif kind == WINDOW_UPDATE and stream == 0:
                self._window += int.from_bytes(payload, "big")
            elif kind in (SETTINGS, PING) and not flags & ACK:
                self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == GOAWAY:
                raise ConnectionError("the server ends its connections")
        self._read = self._read[at:]
        return ended

    def _status(self, block: bytes) -> bool:
        """Return whether a block of fields says that a call went well; fields that are all known are read once."""
        known = self._accepted.get(block)
        if known is None:
            known = ("grpc-status", "0") in self._decoder.decode(block)
            if min(block) >= 0x80:
                self._accepted[block] = known
            else:  # It adds fields to those which the next ones name by number.
                self._accepted.clear()
        return known


class Crowd:
    """Connections that call, each again when it is answered.

    Args:
        connections: Each has at most one call under way.
        rate: Calls a second of all together; 0 for as fast as it goes. With one, a call that waits for the one before
            counts from when it was due.
    """

    def __init__(self, connections: Sequence[Connection], rate: float) -> None:
        self._connections, self._rate = connections, rate
        self._every_s = len(connections) / rate if rate else 0.0
        self._selector = selectors.DefaultSelector()
        now_s = time.perf_counter()
        self._waiting: list[tuple[float, int]] = []
        for number, each in enumerate(connections):
            self._selector.register(each.socket, selectors.EVENT_READ, number)
            heapq.heappush(self._waiting, (now_s + random.uniform(0, self._every_s), number))

    def call(self, seconds: float) -> Calls:
        """Go on for so long; calls that are under way then are told of the next time."""
        end_s = time.perf_counter() + seconds
        latencies: list[float] = []
        refused = 0
        while (now_s := time.perf_counter()) < end_s:
            while self._waiting and self._waiting[0][0] <= now_s:
                due_s, number = heapq.heappop(self._waiting)
                self._connections[number].due_s = due_s if self._rate else time.perf_counter()
                self._connections[number].send()
            next_s = min(self._waiting[0][0], end_s) if self._waiting else end_s
            for key, _ in self._selector.select(max(next_s - time.perf_counter(), 0)):
                connection = self._connections[key.data]
                for accepted in connection.answers():
                    now_s = time.perf_counter()
                    refused += not accepted
                    if accepted:
                        latencies.append(now_s - connection.due_s)
                    again_s = connection.due_s + self._every_s if self._rate else now_s
                    heapq.heappush(self._waiting, (again_s, key.data))
        return Calls(latencies, refused)

    def close(self) -> None:
        self._selector.close()
        for each in self._connections:
            each.socket.close()
