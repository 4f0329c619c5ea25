"""The device against a server that sends or holds back more than a gateway does.

Laws: a call ends by its deadline, and a device holds no more than one message of what the server sent.
"""

from __future__ import annotations

import socket
import threading
import time

import pytest

from device_world import through
from hostile_server import GRPC, REPLY, Hostile, Talk, check, every, frame, message
from umbel._fleet import connection as wire
from umbel._fleet.answer import MAX_MESSAGE_BYTES
from umbel._fleet.channel import Gateway, call
from umbel._fleet.frames import MAX_HEADERS_BYTES
from umbel._home.directory import DeviceHome
from umbel_proto.errors import RemoteProtocolError, UnavailableError
from umbel_proto.wire import telemetry_pb2

CHUNK = 1 << 14


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
def test_a_flood_ends_by_the_deadline(hostile: Hostile, guest: DeviceHome, flood: bytes) -> None:
    def pour(talk: Talk) -> None:
        for _ in talk.requests():
            while True:
                talk.socket.sendall(flood * 50)

    hostile.behaviors = [pour]
    begin = time.monotonic()
    with pytest.raises((UnavailableError, RemoteProtocolError)):
        check(guest, timeout_s=0.5)
    assert time.monotonic() - begin < 5


def test_empty_messages_without_end_end_by_the_deadline(hostile: Hostile, guest: DeviceHome) -> None:
    def pour(talk: Talk, stream: int) -> None:
        talk.http.send_headers(stream, GRPC)
        talk.send()
        while True:
            talk.socket.sendall(frame(0, stream=stream) * 50)

    hostile.behaviors = [every(pour)]
    with pytest.raises(UnavailableError):
        check(guest, timeout_s=0.5)


@pytest.mark.parametrize("where", ["before TLS", "before HTTP/2", "before headers", "within a message"])
def test_a_server_that_says_nothing_is_given_up_by_the_deadline(
    hostile: Hostile, guest: DeviceHome, where: str
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
            through(guest, f"127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        with pytest.raises(UnavailableError, match="does not answer"):
            check(guest, timeout_s=0.3)
        assert time.monotonic() - begin < 5
    never.set()


def test_a_server_that_is_silent_is_asked_and_then_given_up_before_the_deadline(
    hostile: Hostile, guest: DeviceHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "QUIET_S", 0.1)
    monkeypatch.setattr(wire, "PONG_S", 0.2)
    never = threading.Event()
    hostile.behaviors = [every(lambda talk, stream: never.wait(20) or None)]
    with pytest.raises(UnavailableError, match="does not answer"):
        check(guest, timeout_s=60)
    never.set()


def test_a_server_that_takes_long_and_says_that_it_is_there_is_waited_for(
    hostile: Hostile, guest: DeviceHome, monkeypatch: pytest.MonkeyPatch
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
    assert check(guest) == REPLY


def test_answers_without_end_to_one_question_are_not_kept(hostile: Hostile, guest: DeviceHome) -> None:
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
        check(guest)
    assert sent < 16 * MAX_MESSAGE_BYTES  # What the sockets between them hold.


def test_settings_that_a_server_makes_up_are_not_kept(hostile: Hostile, guest: DeviceHome) -> None:
    def pour(talk: Talk) -> None:
        for _ in talk.requests():
            for begin in range(1 << 8, 1 << 16, 64):
                made_up = b"".join(code.to_bytes(2) + bytes(4) for code in range(begin, begin + 64))
                talk.socket.sendall(frame(4, made_up, stream=0))

    hostile.behaviors = [pour]
    with pytest.raises(RemoteProtocolError, match="more settings"):
        check(guest)


def test_headers_are_given_up_before_they_have_ended(hostile: Hostile, guest: DeviceHome) -> None:
    def pour(talk: Talk) -> None:
        for _ in talk.requests():
            talk.socket.sendall(frame(1, bytes(CHUNK)) + frame(9, bytes(MAX_HEADERS_BYTES - CHUNK + 1)))

    hostile.behaviors = [pour]
    with pytest.raises(RemoteProtocolError, match="more headers"):
        check(guest)


def test_a_server_that_says_a_byte_at_a_time_is_given_up_by_the_deadline(
    hostile: Hostile, guest: DeviceHome
) -> None:
    never = threading.Event()

    def dribble(talk: Talk, stream: int) -> None:
        talk.http.send_headers(stream, GRPC)
        talk.send()
        for byte in frame(0, message(), stream=stream) * 10:
            never.wait(0.05)
            talk.socket.sendall(bytes([byte]))

    hostile.behaviors = [every(dribble)]
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match="does not answer"):
        check(guest, timeout_s=0.5)
    assert time.monotonic() - begin < 5


def test_a_server_that_does_not_take_a_request_is_given_up_by_the_deadline(
    hostile: Hostile, guest: DeviceHome
) -> None:
    def starve(talk: Talk) -> None:
        talk.send()
        while talk.socket.recv(1 << 16):
            pass  # It never widens its window.

    hostile.behaviors = [starve]
    batch = telemetry_pb2.SealedBatch(ciphertext=bytes(1 << 20))
    request = telemetry_pb2.UploadRequest(batches=[batch])
    with Gateway(guest, now_s=time.time()) as gateway:
        begin = time.monotonic()
        with pytest.raises(UnavailableError, match="does not answer"):
            call(gateway.telemetry.Upload, request, gateway.address, timeout_s=0.5)
        assert time.monotonic() - begin < 5
