"""A server with the fleet's own certificate that breaks the rules of HTTP/2 and gRPC as a test tells it to."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived
from h2.exceptions import ProtocolError

from device_world import World
from umbel._fleet.channel import Gateway, call
from umbel._home.directory import DeviceHome
from umbel_proto.wire import delivery_pb2 as pb

GRPC = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", "gzip")]
WELL = [("grpc-status", "0")]
REPLY = pb.CheckReply(releases=[pb.Release(model="digits")])


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
        self.tickets = 2
        self.identity: tuple[Path, Path] = world.fleet.server_pem, world.fleet.server_key
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                plain.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                )  # What it says is on its way before it leaves.
                behavior = self.behaviors[min(self.connections, len(self.behaviors) - 1)]
                self.connections += 1
                threading.Thread(target=self._serve, args=(plain, behavior), daemon=True).start()

    def _serve(self, plain: socket.socket, behavior: Behavior) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.identity)
        context.num_tickets = self.tickets
        context.set_alpn_protocols(self.alpn)
        context.maximum_version = self.newest
        with (
            contextlib.suppress(OSError, ProtocolError),
            context.wrap_socket(plain, server_side=True) as secured,
        ):
            behavior(Talk(secured))

    def close(self) -> None:
        self._listener.close()


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


def goaway(last: int) -> bytes:
    return frame(7, last.to_bytes(4) + bytes(4), stream=0)
