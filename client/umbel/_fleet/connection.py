"""One HTTP/2 connection with TLS that carries one call at a time: a request's bytes there, the answer's messages back.

What HTTP/2 is, h2 knows; this moves its bytes, keeps deadlines, and bounds what a server may send. It has no thread: a
connection that rests answers nobody, and looks at what came meanwhile before it is used again.

Source:
    RFC 9113, "HTTP/2"; "gRPC over HTTP2" in the gRPC repository, doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError as HTTP2Error
from h2.settings import SettingCodes, Settings

from umbel._fleet.answer import ENCODING, Answer
from umbel._fleet.frames import MAX_FRAME_BYTES, MAX_HEADERS_BYTES, Frames
from umbel._fleet.secured import Deadline, Secured
from umbel._fleet.status import CallError, Status, StrangerError, UntouchedError, UntrustedError

QUIET_S = 60.0
"""How long a server may be silent in a call before it is asked whether it is there."""
PONG_S = 20.0
"""How long it has to say so."""
WAKE_S = 1.0
"""How long it may take to answer what came while a connection rested."""
MAX_CALLS = 1000
"""On one connection: h2 remembers each."""
WINDOW_BYTES = 1 << 20
ALPN = "h2"


class Connection:
    """A connection, not made yet; whoever has it uses it alone. Only ``cut`` is for other threads.

    Args:
        address: ``host:port``.
        context: Whom to trust and what to show.
    """

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        host, _, port = address.rpartition(":")
        self._authority = address
        self._secured = Secured(host.strip("[]"), int(port), context)
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._frames = Frames()
        self._calls = 0
        self._is_confused = False

    def open(self, deadline: Deadline) -> None:
        """Connect.

        Raises:
            CallError: Nobody answers, or not as a gateway does.
        """
        with self._failures():
            self._secured.reach(deadline)
        with self._failures(StrangerError):
            if self._secured.agree(deadline) != ALPN:
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
        self._http.decoder.max_header_list_size = MAX_HEADERS_BYTES
        self._http.initiate_connection()
        self._http.increment_flow_control_window(WINDOW_BYTES)

    def close(self) -> None:
        """End it."""
        self._secured.close()

    def cut(self) -> None:
        """End what its user waits for, who is to close it."""
        self._secured.cut()

    @property
    def can_call(self) -> bool:
        """Whether another call can be made, by all that is known."""
        is_leaving = self._is_confused or self._frames.is_worn or self._frames.is_ending
        return self._secured.is_open and self._calls < MAX_CALLS and not is_leaving

    def wake(self) -> bool:
        """Take in what came while it rested; return whether another call can be made."""
        with contextlib.suppress(CallError), self._failures():
            self._frames.add(self._secured.drain())
            self._heard(Deadline(WAKE_S))
            return self.can_call
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
        with self._failures():
            stream = self._ask(path, deadline)
            body = memoryview(b"\0" + len(request).to_bytes(4) + request)
            answer = Answer()
            while not answer.has_ended:
                body = self._tell(stream, body, deadline)
                self._wait(deadline)
                for event in self._heard(deadline):
                    _take(event, stream, answer)
                if stream > self._frames.last_stream and not answer.has_ended:
                    raise _untouched(answer, "it takes no more calls on this connection")
                yield from answer.messages()
        # It had heard enough: what it was sent of a call that is over may confuse the next.
        self._is_confused = bool(body)
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
        self._secured.send(self._http.data_to_send(), deadline)

    def _heard(self, deadline: Deadline) -> list[Event]:
        """Return what happened by what was read, and send what HTTP/2 says to that."""
        events: list[Event] = []
        for frame in self._frames.whole():
            events += self._http.receive_data(frame)
        for event in events:
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._send(deadline)
        return events

    def _wait(self, deadline: Deadline) -> None:
        """Wait for bytes; ask a server that is silent for long whether it is there."""
        for patience_s in (QUIET_S, PONG_S):
            try:
                self._frames.add(self._secured.read(deadline.within(patience_s)))
            except TimeoutError:
                deadline.left_s()  # It may be the call's own end.
            else:
                return
            self._http.ping(bytes(8))
            self._send(deadline)
        raise self._lost()

    @contextlib.contextmanager
    def _failures(self, kind: type[CallError] = CallError) -> Iterator[None]:
        try:
            yield
        except HTTP2Error as exc:
            # What h2 says of it may hold what the server sent.
            name = type(exc).__name__
            raise CallError(Status.INTERNAL, f"it breaks the rules of HTTP/2 ({name})") from exc
        except ssl.SSLCertVerificationError as exc:
            raise UntrustedError(Status.UNAVAILABLE, exc.verify_message) from exc
        except TimeoutError as exc:
            raise CallError(Status.DEADLINE_EXCEEDED) from exc
        except OSError as exc:
            raise self._lost(kind) from exc

    def _lost(self, kind: type[CallError] = CallError) -> CallError:
        if self._secured.is_cut:
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
            raise _reset(code, answer)


def _reset(code: int, answer: Answer) -> CallError:
    """Return what a stream's reset means, as "gRPC over HTTP2" maps it."""
    match code:
        case ErrorCodes.REFUSED_STREAM:
            return _untouched(answer, "it refuses the call")
        case ErrorCodes.CANCEL:
            return CallError(Status.CANCELLED, "it ended the call")
        case ErrorCodes.ENHANCE_YOUR_CALM:
            return CallError(Status.RESOURCE_EXHAUSTED, "it was asked too often")
        case _:
            return CallError(Status.INTERNAL, f"it resets the call with HTTP/2's error {int(code)}")


def _untouched(answer: Answer, details: str) -> CallError:
    """Return what the server says of a call; not that it has done nothing with it, once it has answered."""
    return (CallError if answer.has_begun else UntouchedError)(Status.UNAVAILABLE, details)
