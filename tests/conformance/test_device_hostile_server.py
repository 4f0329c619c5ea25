"""The device against a server with the fleet's own certificate that breaks the rules of HTTP/2 and gRPC.

Laws: whatever it does, a call ends in one of umbel's errors, by its deadline, and a device holds no more than one
message of it. A server that only stops in good order is not taken for one of these.
"""

from __future__ import annotations

import contextlib
import gzip
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived
from h2.exceptions import ProtocolError

from cable import Cable
from device_world import World, through
from umbel._fleet import connection as wire
from umbel._fleet.answer import MAX_MESSAGE_BYTES
from umbel._fleet.channel import Gateway, call
from umbel._home.directory import DeviceHome
from umbel_proto.errors import CertificateError, RemoteProtocolError, UmbelError, UnavailableError
from umbel_proto.wire import delivery_pb2 as pb

GRPC = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", "gzip")]
WELL = [("grpc-status", "0")]
REPLY = pb.CheckReply(releases=[pb.Release(model="digits")])
CHUNK = 1 << 14


def message(data: bytes = REPLY.SerializeToString(), *, flag: int = 0, size: int | None = None) -> bytes:
    return bytes([flag]) + (len(data) if size is None else size).to_bytes(4) + data


class Talk:
    """A connection of a device to the server, and how to be rude on it."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self.socket = secured
        self.http = H2Connection(
            H2Configuration(
                client_side=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.http.initiate_connection()

    def requests(self) -> Iterator[int]:
        """Yield the stream of every call that has come whole."""
        self.send()
        while data := self.socket.recv(1 << 16):
            for event in self.http.receive_data(data):
                if isinstance(event, DataReceived):
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    if event.stream_ended:
                        self.send()
                        yield event.stream_id
                elif isinstance(event, RequestReceived) and event.stream_ended:
                    yield event.stream_id
            self.send()

    def send(self, raw: bytes = b"") -> None:
        self.socket.sendall(self.http.data_to_send() + raw)

    def answer(self, stream: int, data: bytes | None = None, trailers: list[tuple[str, str]] = WELL) -> None:
        self.http.send_headers(stream, GRPC)
        self.http.send_data(stream, message() if data is None else data)
        self.http.send_headers(stream, trailers, end_stream=True)
        self.send()


Behavior = Callable[[Talk], None]


class Hostile:
    """A TLS server of the fleet's name; each connection goes the way of ``behaviors``, the last one again and again."""

    def __init__(self, world: World) -> None:
        self.behaviors: list[Behavior] = []
        self.connections = 0
        self.alpn = ["h2"]
        self.newest = ssl.TLSVersion.TLSv1_3
        self._fleet = world.fleet
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                behavior = self.behaviors[min(self.connections, len(self.behaviors) - 1)]
                self.connections += 1
                threading.Thread(target=self._serve, args=(plain, behavior), daemon=True).start()

    def _serve(self, plain: socket.socket, behavior: Behavior) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._fleet.server_pem, self._fleet.server_key)
        context.set_alpn_protocols(self.alpn)
        context.maximum_version = self.newest
        with (
            contextlib.suppress(OSError, ProtocolError),
            context.wrap_socket(plain, server_side=True) as secured,
        ):
            behavior(Talk(secured))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def hostile(world: World) -> Iterator[Hostile]:
    server = Hostile(world)
    yield server
    server.close()


@pytest.fixture
def home(world: World, hostile: Hostile) -> DeviceHome:
    home = world.device("d1")
    through(home, hostile.address)
    return home


def check(home: DeviceHome, *, timeout_s: float = 5.0) -> pb.CheckReply:
    with Gateway(home, now_s=time.time()) as gateway:
        reply: pb.CheckReply = call(
            gateway.delivery.Check, pb.CheckRequest(), gateway.address, timeout_s=timeout_s
        )
        return reply


def every(reply: Callable[[Talk, int], None]) -> Behavior:
    """Do the same with every call."""

    def behave(talk: Talk) -> None:
        for stream in talk.requests():
            reply(talk, stream)

    return behave


def once(raw: bytes) -> Behavior:
    """Send bytes instead of an answer, and close."""

    def behave(talk: Talk) -> None:
        for _ in talk.requests():
            talk.send(raw)
            while raw and talk.socket.recv(1 << 16):
                pass  # It leaves first: what is closed with bytes unread takes back what it sent.
            return

    return behave


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


well = every(Talk.answer)


def test_a_server_that_keeps_the_rules_is_heard(hostile: Hostile, home: DeviceHome) -> None:
    hostile.behaviors = [well]
    assert check(home) == REPLY
    hostile.behaviors = [
        every(
            lambda talk, stream: talk.answer(
                stream, message(gzip.compress(REPLY.SerializeToString()), flag=1)
            )
        )
    ]
    assert check(home) == REPLY


def test_a_compression_that_was_not_named_is_refused(hostile: Hostile, home: DeviceHome) -> None:
    def unnamed(talk: Talk, stream: int) -> None:
        talk.http.send_headers(stream, GRPC[:2])
        talk.http.send_data(stream, message(flag=1))
        talk.send()

    hostile.behaviors = [every(unnamed)]
    with pytest.raises(RemoteProtocolError, match="nobody asked for"):
        check(home)


@pytest.mark.parametrize(
    ("data", "trailers", "why"),
    [
        (message(flag=1), WELL, "decompressed"),
        (message(gzip.compress(bytes(MAX_MESSAGE_BYTES + 1)), flag=1), WELL, "more than"),
        (message(gzip.compress(REPLY.SerializeToString())[:-1], flag=1), WELL, "cut off"),
        (message(size=MAX_MESSAGE_BYTES + 1), WELL, "more than"),
        (message(size=len(message()) + 1), WELL, "within a message"),
        (b"\0\0", WELL, "within a message"),
        (b"", WELL, "one answer"),
        (2 * message(), WELL, "one answer"),
        (message(b"\xff\xff"), WELL, "no message"),
        (message(), [("x", "y")], "without saying how"),
        (message(), [("grpc-status", "²")], "without saying how"),
        (message(), [("grpc-status", "99")], "unknown"),
    ],
)
def test_an_answer_that_breaks_grpc_is_one_sentence(
    hostile: Hostile, home: DeviceHome, data: bytes, trailers: list[tuple[str, str]], why: str
) -> None:
    hostile.behaviors = [every(lambda talk, stream: talk.answer(stream, data, trailers))]
    with pytest.raises(RemoteProtocolError, match=why):
        check(home)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", RemoteProtocolError),
        (bytes(64), RemoteProtocolError),
        (frame(0, bytes(1 << 16)) + b"\xff\xff\xff", RemoteProtocolError),  # Data before headers.
        (frame(1, b"\xff" * 20, flags=4), RemoteProtocolError),  # No header block.
        (frame(5, bytes(4) + b"\x82", flags=4), RemoteProtocolError),  # A push.
        (frame(1, b"\x88") + frame(9, b"\x00") * 200, RemoteProtocolError),  # Headers without end.
        (frame(1, b"\x88" + b"\x40\x01a\x7f\xff\xff\x7f" + b"b" * 60_000, flags=4), RemoteProtocolError),
        (frame(8, (1 << 31).to_bytes(4), stream=0), RemoteProtocolError),  # A window of nothing.
        (frame(4, b"\x00\x05\x00\x00\x00\x01", stream=0), RemoteProtocolError),  # Frames of one byte.
        (frame(3, int(ErrorCodes.INTERNAL_ERROR).to_bytes(4)), RemoteProtocolError),
        (frame(3, int(ErrorCodes.CANCEL).to_bytes(4)), UnavailableError),
        (frame(7, b"short", stream=0), RemoteProtocolError),
        (b"", UnavailableError),
    ],
)
def test_bytes_that_break_http2_end_the_call_in_one_sentence(
    hostile: Hostile, home: DeviceHome, raw: bytes, kind: type[UmbelError]
) -> None:
    hostile.behaviors = [once(raw)]
    with pytest.raises(kind):
        check(home)


def test_no_byte_changed_of_an_answer_ends_in_anything_but_an_answer_or_an_error_of_ours(
    hostile: Hostile, home: DeviceHome
) -> None:
    chance = random.Random(5)

    def spoil(talk: Talk) -> None:
        for stream in talk.requests():
            talk.http.send_headers(stream, GRPC)
            talk.http.send_data(stream, message())
            talk.http.send_headers(stream, WELL, end_stream=True)
            raw = bytearray(talk.http.data_to_send())
            for _ in range(chance.choice((1, 1, 2, 8))):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            talk.socket.sendall(raw[: chance.choice((len(raw), len(raw), chance.randrange(len(raw))))])
            return

    hostile.behaviors = [spoil]
    ended = 0
    for _ in range(300):
        try:
            check(home, timeout_s=2.0)
        except UmbelError:
            ended += 1
    assert ended > 100


@pytest.mark.parametrize(
    "flood",
    [
        frame(6, bytes(8), stream=0),  # Pings.
        frame(4, b"\x00\x04\x00\x01\x00\x00", stream=0),  # Settings.
        frame(1, b"\x08\x03100", flags=4),  # Informational headers.
        frame(8, (1).to_bytes(4)),  # Windows.
        frame(0xEE, b"what"),
    ],
)
def test_a_flood_ends_by_the_deadline(hostile: Hostile, home: DeviceHome, flood: bytes) -> None:
    def pour(talk: Talk) -> None:
        for _ in talk.requests():
            while True:
                talk.socket.sendall(flood * 50)

    hostile.behaviors = [pour]
    begin = time.monotonic()
    with pytest.raises((UnavailableError, RemoteProtocolError)):
        check(home, timeout_s=0.5)
    assert time.monotonic() - begin < 5


def test_empty_messages_without_end_end_by_the_deadline(hostile: Hostile, home: DeviceHome) -> None:
    def pour(talk: Talk, stream: int) -> None:
        talk.http.send_headers(stream, GRPC)
        talk.send()
        while True:
            talk.socket.sendall(frame(0, stream=stream) * 50)

    hostile.behaviors = [every(pour)]
    with pytest.raises(UnavailableError):
        check(home, timeout_s=0.5)


@pytest.mark.parametrize("where", ["before TLS", "before HTTP/2", "before headers", "within a message"])
def test_a_server_that_says_nothing_is_given_up_by_the_deadline(
    hostile: Hostile, home: DeviceHome, where: str
) -> None:
    never = threading.Event()

    def stall(talk: Talk) -> None:
        if where == "before HTTP/2":
            never.wait(20)
        for stream in talk.requests():
            if where == "within a message":
                talk.http.send_headers(stream, GRPC)
                talk.http.send_data(stream, message()[:-2])
                talk.send()
            never.wait(20)

    hostile.behaviors = [stall]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if where == "before TLS":
            through(home, f"127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        with pytest.raises(UnavailableError, match="does not answer"):
            check(home, timeout_s=0.3)
        assert time.monotonic() - begin < 5
    never.set()


def test_a_server_that_is_silent_is_asked_and_then_given_up_before_the_deadline(
    hostile: Hostile, home: DeviceHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "QUIET_S", 0.1)
    monkeypatch.setattr(wire, "PONG_S", 0.2)
    never = threading.Event()
    hostile.behaviors = [every(lambda talk, stream: never.wait(20) or None)]
    with pytest.raises(UnavailableError, match="does not answer"):
        check(home, timeout_s=60)
    never.set()


def test_a_server_that_takes_long_and_says_that_it_is_there_is_waited_for(
    hostile: Hostile, home: DeviceHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "QUIET_S", 0.1)
    monkeypatch.setattr(wire, "PONG_S", 5.0)

    def think(talk: Talk) -> None:
        [stream] = [next(talk.requests())]
        for _ in range(3):  # Answers of h2's to what the device asks.
            talk.http.receive_data(talk.socket.recv(1 << 16))
            talk.send()
        talk.answer(stream)

    hostile.behaviors = [think]
    assert check(home) == REPLY


def test_answers_without_end_to_one_question_are_not_kept(hostile: Hostile, home: DeviceHome) -> None:
    sent = 0

    def pour(talk: Talk, stream: int) -> None:
        nonlocal sent
        talk.http.send_headers(stream, GRPC)
        talk.send()
        while True:
            talk.socket.sendall(frame(0, message(bytes(CHUNK)), stream=stream))
            sent += CHUNK

    hostile.behaviors = [every(pour)]
    with pytest.raises(RemoteProtocolError):
        check(home)
    assert sent < 16 * MAX_MESSAGE_BYTES  # What the sockets between them hold.


def test_a_server_without_http2_is_no_gateway(hostile: Hostile, home: DeviceHome) -> None:
    hostile.alpn, hostile.behaviors = ["http/1.1"], [well]
    with pytest.raises(UnavailableError, match="does not speak as a gateway does"):
        check(home)


def test_a_server_of_before_tls_1_3_is_no_gateway(hostile: Hostile, home: DeviceHome) -> None:
    hostile.newest, hostile.behaviors = ssl.TLSVersion.TLSv1_2, [well]
    with pytest.raises(UnavailableError, match="does not speak as a gateway does"):
        check(home)


def test_a_certificate_of_the_fleet_for_another_address_is_refused(
    hostile: Hostile, home: DeviceHome
) -> None:
    hostile.behaviors = [well]
    with Cable(hostile.address, host="127.0.0.2") as cable:
        through(home, cable.address)
        with pytest.raises(CertificateError, match="check the address"):
            check(home)


@pytest.mark.parametrize(("status", "kind"), [("404", RemoteProtocolError), ("503", UnavailableError)])
def test_a_web_server_is_no_gateway(
    hostile: Hostile, home: DeviceHome, status: str, kind: type[UmbelError]
) -> None:
    def page(talk: Talk, stream: int) -> None:
        talk.http.send_headers(stream, [(":status", status), ("content-type", "text/html")])
        talk.http.send_data(stream, b"<html>", end_stream=True)
        talk.send()

    hostile.behaviors = [every(page)]
    with pytest.raises(kind):
        check(home)


def goaway(last: int) -> bytes:
    return frame(7, last.to_bytes(4) + bytes(4), stream=0)


def test_a_call_that_a_server_which_stops_had_taken_is_finished(hostile: Hostile, home: DeviceHome) -> None:
    def stop(talk: Talk) -> None:
        for stream in talk.requests():
            talk.send(goaway((1 << 31) - 1))
            talk.send(goaway(stream))
            talk.answer(stream)
            return

    hostile.behaviors = [stop]
    assert check(home) == REPLY
    assert hostile.connections == 1


@pytest.mark.parametrize("raw", [goaway(0), frame(3, int(ErrorCodes.REFUSED_STREAM).to_bytes(4))])
def test_a_call_that_the_server_says_it_has_not_touched_is_made_again_once(
    hostile: Hostile, home: DeviceHome, raw: bytes
) -> None:
    hostile.behaviors = [once(raw), well]
    assert check(home) == REPLY
    assert hostile.connections == 2
    hostile.connections, hostile.behaviors = 0, [once(raw)]
    with pytest.raises(UnavailableError):
        check(home)
    assert hostile.connections == 2


@pytest.mark.parametrize("leave", [b"", goaway(1), frame(6, bytes(8), stream=0) * 20_000])
def test_a_connection_that_ended_while_it_rested_is_made_anew(
    hostile: Hostile, home: DeviceHome, leave: bytes
) -> None:
    left = threading.Event()

    def answer_and_leave(talk: Talk) -> None:
        talk.answer(next(talk.requests()))
        with contextlib.suppress(OSError):
            talk.socket.settimeout(0.2)
            talk.send(leave)
        if not leave:
            talk.socket.close()
        left.set()
        time.sleep(2 if leave else 0)

    hostile.behaviors = [answer_and_leave, well]
    with Gateway(home, now_s=time.time()) as gateway:
        for _ in range(2):
            assert call(gateway.delivery.Check, pb.CheckRequest(), gateway.address, timeout_s=5.0) == REPLY
            assert left.wait(5)
    assert hostile.connections == 2


def test_calls_after_another_share_a_connection_and_calls_at_once_have_one_each(
    hostile: Hostile, home: DeviceHome
) -> None:
    gate = threading.Barrier(4)

    def together(talk: Talk, stream: int) -> None:
        gate.wait(5)
        talk.answer(stream)

    hostile.behaviors = [well]
    with Gateway(home, now_s=time.time()) as gateway:
        for _ in range(3):
            gateway.delivery.Check(pb.CheckRequest())
        assert hostile.connections == 1
    hostile.connections, hostile.behaviors = 0, [every(together)]
    answers = []
    with Gateway(home, now_s=time.time()) as gateway:
        ask = lambda: answers.append(gateway.delivery.Check(pb.CheckRequest(), timeout=10))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [REPLY] * 4
    assert hostile.connections == 4
