"""One HTTP/2 connection with TLS that carries one call at a time: a request's bytes there, the answer's messages back.

What HTTP/2 is, h2 knows; this reads and writes its socket, keeps deadlines, and bounds what a server may send. It has no
thread: a connection that rests answers nobody, and looks at what came meanwhile before it is used again.

Source:
    RFC 9113, "HTTP/2"; "gRPC over HTTP2" in the gRPC repository, doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError as HTTP2Error
from h2.settings import SettingCodes, Settings

from umbel._fleet.answer import (
    ENCODING,
    Answer,
    CallError,
    Status,
    StrangerError,
    UntouchedError,
    UntrustedError,
)

QUIET_S = 60.0
"""How long a server may be silent in a call before it is asked whether it is there."""
PONG_S = 20.0
"""How long it has to say so."""
MAX_CALLS = 1000
"""On one connection: h2 remembers each."""

ALPN = "h2"
WINDOW_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 16
MAX_HEADERS_BYTES = 1 << 16
READ_BYTES = 1 << 16
MAX_RESTING_READS = 16
"""Of what came while a connection rested: whoever sends more then is not a gateway."""
WAKE_S = 1.0

_FRAME_HEADER_BYTES = 9
_FRAME_TYPE = 3
_GOAWAY = 7
_GOAWAY_BYTES = 8


class Deadline:
    """Until when a call may take.

    Args:
        timeout_s: From now on.
    """

    def __init__(self, timeout_s: float) -> None:
        self._ends_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return how long there is, more than 0.

        Raises:
            CallError: No time is left.
        """
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise CallError(Status.DEADLINE_EXCEEDED)
        return left_s


class Connection:
    """A connection, not made yet; whoever has it uses it alone. Only ``cut`` is for other threads.

    Args:
        address: ``host:port``.
        context: Whom to trust and what to show.
    """

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        host, _, port = address.rpartition(":")
        self._authority, self._host, self._port = address, host.strip("[]"), int(port)
        self._context = context
        self._socket: ssl.SSLSocket | None = None
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._held = bytearray()
        self._calls = 0
        self._is_cut = False
        self._is_leaving = False

    def open(self, deadline: Deadline) -> None:
        """Connect.

        Raises:
            CallError: Nobody answers, or not as a gateway does.
        """
        secured = self._connected(deadline)
        try:
            secured.settimeout(deadline.left_s())
            secured.do_handshake()
        except ssl.SSLCertVerificationError as exc:
            raise UntrustedError(Status.UNAVAILABLE, exc.verify_message) from exc
        except TimeoutError as exc:
            raise CallError(Status.DEADLINE_EXCEEDED) from exc
        except OSError as exc:
            raise self._lost(StrangerError) from exc
        if secured.selected_alpn_protocol() != ALPN:
            raise StrangerError(Status.UNAVAILABLE, "it speaks no HTTP/2")
        self._http.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADERS_BYTES,
            },
        )
        self._http.max_inbound_frame_size = MAX_FRAME_BYTES
        self._http.initiate_connection()
        self._http.increment_flow_control_window(WINDOW_BYTES)

    def _connected(self, deadline: Deadline) -> ssl.SSLSocket:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise CallError(Status.UNAVAILABLE, "its name is not known") from exc
        for others, (family, kind, protocol, _, where) in zip(range(len(found))[::-1], found, strict=True):
            plain = socket.socket(family, kind, protocol)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = self._context.wrap_socket(
                plain, do_handshake_on_connect=False, server_hostname=self._host
            )
            if self._is_cut:
                raise self._lost()
            try:
                # One of several addresses that swallows everything leaves time for the rest.
                self._socket.settimeout(deadline.left_s() / (others + 1))
                self._socket.connect(where)
            except OSError as exc:
                self.close()
                failure = exc
            else:
                return self._socket
        raise self._lost() from failure

    def close(self) -> None:
        """End it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def cut(self) -> None:
        """End what its user waits for, who is to close it."""
        self._is_cut = True
        secured = self._socket
        if secured is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(
                    secured, socket.SHUT_RDWR
                )  # SSLSocket's own would pull TLS from under its user.

    @property
    def can_call(self) -> bool:
        """Whether another call can be made, by all that is known."""
        return not (self._socket is None or self._is_cut or self._is_leaving or self._calls >= MAX_CALLS)

    def wake(self) -> bool:
        """Take in what came while it rested; return whether another call can be made."""
        try:
            for _ in range(MAX_RESTING_READS):
                if not self._read(self._ready(0.0)):
                    break
        except ssl.SSLWantReadError:
            with contextlib.suppress(CallError, HTTP2Error):
                self._heard(Deadline(WAKE_S))
                return self.can_call
        except (CallError, OSError):
            pass
        return False

    def call(self, path: str, request: bytes, deadline: Deadline) -> Iterator[bytes]:
        """Call a method; yield the messages of the answer.

        Args:
            path: ``/SERVICE/METHOD``.
            request: The message.
            deadline: Until when it may take.

        Raises:
            CallError: It failed. Without trailers the connection is of no more use.
        """
        self._calls += 1
        try:
            stream = self._ask(path, deadline)
            body = memoryview(b"\0" + len(request).to_bytes(4) + request)
            answer = Answer()
            while not answer.has_ended:
                body = self._tell(stream, body, deadline)
                self._wait(deadline)
                for event in self._heard(deadline, stream):
                    _take(event, stream, answer)
                yield from answer.messages()
        except HTTP2Error as exc:
            raise CallError(Status.INTERNAL, f"it breaks the rules of HTTP/2: {exc}") from exc
        if body:
            self._is_leaving = (
                True  # It had heard enough: what it was sent of a call that is over may confuse the next.
            )
        answer.judge()

    def _ask(self, path: str, deadline: Deadline) -> int:
        stream = self._http.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("grpc-timeout", f"{int(deadline.left_s() * 1000) + 1}m"),
            ("content-type", "application/grpc"),
            ("grpc-accept-encoding", ENCODING),
            ("user-agent", "umbel"),
        ]
        self._http.send_headers(stream, headers)
        return stream

    def _tell(self, stream: int, body: memoryview, deadline: Deadline) -> memoryview:
        """Send as much of a body as the server takes now; return the rest."""
        while body:
            room = min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size)
            if room <= 0:
                break
            self._http.send_data(stream, bytes(body[:room]), end_stream=room >= len(body))
            body = body[room:]
        self._send(deadline)
        return body

    def _send(self, deadline: Deadline) -> None:
        rest = memoryview(self._http.data_to_send())
        while rest:
            try:
                rest = rest[self._ready(deadline.left_s()).send(rest) :]
            except TimeoutError as exc:
                raise CallError(Status.DEADLINE_EXCEEDED) from exc
            except OSError as exc:
                raise self._lost() from exc

    def _heard(self, deadline: Deadline, stream: int = 0) -> list[Event]:
        """Return what happened by what was read, and send what HTTP/2 says to that."""
        events: list[Event] = []
        for frame in self._frames():
            if frame[_FRAME_TYPE] == _GOAWAY and len(frame) >= _FRAME_HEADER_BYTES + _GOAWAY_BYTES:
                # h2 would refuse what follows; a server that stops in good order goes on with what it took before.
                self._is_leaving = True
                last = int.from_bytes(frame[_FRAME_HEADER_BYTES:][:4]) & 0x7FFFFFFF
                if stream > last:
                    raise UntouchedError(Status.UNAVAILABLE, "it takes no more calls on this connection")
                continue
            events += self._http.receive_data(frame)
        for event in events:
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._send(deadline)
        return events

    def _frames(self) -> Iterator[bytes]:
        """Yield, once, the frames that have come whole."""
        begin, held = 0, self._held
        while len(held) >= begin + _FRAME_HEADER_BYTES:
            size = int.from_bytes(held[begin : begin + _FRAME_TYPE])
            if size > MAX_FRAME_BYTES:
                raise CallError(Status.INTERNAL, "it sends larger frames than it may: it may speak no HTTP/2")
            end = begin + _FRAME_HEADER_BYTES + size
            if len(held) < end:
                break
            yield bytes(held[begin:end])
            begin = end
        del held[:begin]

    def _wait(self, deadline: Deadline) -> None:
        """Wait for bytes; ask a server that is silent for long whether it is there."""
        for patience_s in (QUIET_S, PONG_S):
            left_s = deadline.left_s()
            try:
                if not self._read(self._ready(min(left_s, patience_s))):
                    raise self._lost()
            except TimeoutError as exc:
                if left_s <= patience_s:
                    raise CallError(Status.DEADLINE_EXCEEDED) from exc
            except OSError as exc:
                raise self._lost() from exc
            else:
                return
            self._http.ping(bytes(8))
            self._send(deadline)
        raise self._lost()

    def _read(self, secured: ssl.SSLSocket) -> int:
        data = secured.recv(READ_BYTES)
        self._held += data
        return len(data)

    def _ready(self, timeout_s: float) -> ssl.SSLSocket:
        if self._socket is None or self._is_cut:
            raise self._lost()
        self._socket.settimeout(timeout_s)
        return self._socket

    def _lost(self, kind: type[CallError] = CallError) -> CallError:
        if self._is_cut:
            return CallError(Status.CANCELLED)
        return kind(Status.UNAVAILABLE, "the connection ended")


def _take(event: Event, stream: int, answer: Answer) -> None:
    """Add to an answer what happened to its stream."""
    match event:
        case ResponseReceived(stream_id=of, headers=headers) if of == stream:
            answer.tell(headers, first=True)
        case TrailersReceived(stream_id=of, headers=headers) if of == stream:
            answer.tell(headers, first=False)
        case DataReceived(stream_id=of, data=data) if of == stream:
            answer.add(data)
        case StreamEnded(stream_id=of) if of == stream:
            answer.has_ended = True
        case StreamReset(stream_id=of, error_code=code) if of == stream and not answer.has_ended:
            raise _reset(code)


def _reset(code: int) -> CallError:
    """Return what a stream's reset means, as "gRPC over HTTP2" maps it."""
    match code:
        case ErrorCodes.REFUSED_STREAM:
            return UntouchedError(Status.UNAVAILABLE, "it refuses the call")
        case ErrorCodes.CANCEL:
            return CallError(Status.CANCELLED, "it ended the call")
        case ErrorCodes.ENHANCE_YOUR_CALM:
            return CallError(Status.RESOURCE_EXHAUSTED, "it was asked too often")
        case _:
            return CallError(Status.INTERNAL, f"it resets the call with HTTP/2's error {int(code)}")
