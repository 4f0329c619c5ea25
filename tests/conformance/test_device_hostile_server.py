"""The device against a server with the fleet's own certificate that breaks the rules of HTTP/2 and gRPC.

Law: whatever it answers, a call ends in one of umbel's errors, whose sentence is short and orders no terminal.
"""

from __future__ import annotations

import gzip
import random
import time

import pytest
from h2.errors import ErrorCodes

from hostile_server import GRPC, REPLY, WELL, Hostile, Talk, check, every, frame, message, once, well
from umbel._fleet.answer import MAX_MESSAGE_BYTES, MAX_SENTENCE
from umbel._fleet.channel import Gateway, call
from umbel._home.directory import DeviceHome
from umbel_proto.errors import RefusedError, RemoteProtocolError, UmbelError, UnavailableError
from umbel_proto.wire import delivery_pb2 as pb


def test_a_server_that_keeps_the_rules_is_heard(hostile: Hostile, guest: DeviceHome) -> None:
    hostile.behaviors = [well]
    assert check(guest) == REPLY
    hostile.behaviors = [
        every(
            lambda talk, stream: talk.answer(
                stream, message(gzip.compress(REPLY.SerializeToString()), flag=1)
            )
        )
    ]
    assert check(guest) == REPLY


def test_a_compression_that_was_not_named_is_refused(hostile: Hostile, guest: DeviceHome) -> None:
    def unnamed(talk: Talk, stream: int) -> None:
        talk.http.send_headers(stream, GRPC[:2])
        talk.http.send_data(stream, message(flag=1))
        talk.send()

    hostile.behaviors = [every(unnamed)]
    with pytest.raises(RemoteProtocolError, match="nobody asked for"):
        check(guest)


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
    ids=lambda value: "" if isinstance(value, bytes) else None,  # gzip writes the time of day.
)
def test_an_answer_that_breaks_grpc_is_one_sentence(
    hostile: Hostile, guest: DeviceHome, data: bytes, trailers: list[tuple[str, str]], why: str
) -> None:
    hostile.behaviors = [every(lambda talk, stream: talk.answer(stream, data, trailers))]
    with pytest.raises(RemoteProtocolError, match=why):
        check(guest)


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
    hostile: Hostile, guest: DeviceHome, raw: bytes, kind: type[UmbelError]
) -> None:
    hostile.behaviors = [once(raw)]
    with pytest.raises(kind):
        check(guest)


def test_no_byte_changed_of_an_answer_ends_in_anything_but_an_answer_or_an_error_of_ours(
    hostile: Hostile, guest: DeviceHome
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
            check(guest, timeout_s=2.0)
        except UmbelError:
            ended += 1
    assert ended > 100


@pytest.mark.parametrize(("status", "kind"), [("404", RemoteProtocolError), ("503", UnavailableError)])
def test_a_web_server_is_no_gateway(
    hostile: Hostile, guest: DeviceHome, status: str, kind: type[UmbelError]
) -> None:
    def page(talk: Talk, stream: int) -> None:
        talk.http.send_headers(stream, [(":status", status), ("content-type", "text/html")])
        talk.http.send_data(stream, b"<html>", end_stream=True)
        talk.send()

    hostile.behaviors = [every(page)]
    with pytest.raises(kind):
        check(guest)


@pytest.mark.parametrize("kind", ["application/grpc-web", "application/grpcx", "text/plain", ""])
def test_what_is_called_something_else_than_grpc_is_no_answer(
    hostile: Hostile, guest: DeviceHome, kind: str
) -> None:
    def answer(talk: Talk, stream: int) -> None:
        talk.http.send_headers(stream, [GRPC[0], ("content-type", kind)])
        talk.http.send_data(stream, message())
        talk.http.send_headers(stream, WELL, end_stream=True)
        talk.send()

    hostile.behaviors = [every(answer)]
    with pytest.raises(RemoteProtocolError, match="as a web server does"):
        check(guest)


def test_a_refusal_without_a_message_may_be_one_block_of_headers_and_leaves_the_connection(
    hostile: Hostile, guest: DeviceHome
) -> None:
    def refuse(talk: Talk, stream: int) -> None:
        refusal = [*GRPC[:2], ("grpc-status", "7"), ("grpc-message", "not%20you")]
        talk.http.send_headers(stream, refusal, end_stream=True)
        talk.send()

    hostile.behaviors = [every(refuse)]
    with Gateway(guest, now_s=time.time()) as gateway:
        for _ in range(3):
            with pytest.raises(RefusedError, match=r"^not you$"):
                call(gateway.delivery.Check, pb.CheckRequest(), gateway.address)
    assert hostile.connections == 1


def test_a_sentence_of_the_server_is_short_and_orders_no_terminal(
    hostile: Hostile, guest: DeviceHome
) -> None:
    sentence = "no%1b[2J%0AError:%20all%20is%20well" + "." * 10_000
    refusal = [("grpc-status", "7"), ("grpc-message", sentence)]
    hostile.behaviors = [every(lambda talk, stream: talk.answer(stream, b"", refusal))]
    with pytest.raises(RefusedError) as caught:
        check(guest)
    assert str(caught.value).startswith("no?[2J?Error: all is well...")
    assert len(str(caught.value)) == MAX_SENTENCE


def test_an_error_does_not_repeat_what_the_server_sent(hostile: Hostile, guest: DeviceHome) -> None:
    hostile.behaviors = [once(frame(1, b"\x40\x7f" + b"\xff" * 9 + b"leak" * 1000, flags=4))]
    with pytest.raises(RemoteProtocolError) as caught:
        check(guest)
    assert "leak" not in str(caught.value)
