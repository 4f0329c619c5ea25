"""When a device makes a call again by itself, and when it keeps a connection for the next.

Law: a call that a server may have taken is not made again; its maker decides that, by what the call means.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import pytest
from h2.errors import ErrorCodes

from hostile_server import GRPC, REPLY, Hostile, Talk, check, every, frame, goaway, once, well
from umbel._fleet.channel import Gateway, call
from umbel._home.directory import DeviceHome
from umbel_proto.errors import UnavailableError
from umbel_proto.wire import delivery_pb2 as pb


def test_a_call_that_a_server_which_stops_had_taken_is_finished(hostile: Hostile, guest: DeviceHome) -> None:
    def stop(talk: Talk) -> None:
        for stream in talk.requests():
            talk.send(goaway((1 << 31) - 1))
            talk.send(goaway(stream))
            talk.answer(stream)
            return

    hostile.behaviors = [stop]
    assert check(guest) == REPLY
    assert hostile.connections == 1


@pytest.mark.parametrize("raw", [goaway(0), frame(3, int(ErrorCodes.REFUSED_STREAM).to_bytes(4))])
def test_a_call_that_the_server_says_it_has_not_touched_is_made_again_once(
    hostile: Hostile, guest: DeviceHome, raw: bytes
) -> None:
    hostile.behaviors = [once(raw), well]
    assert check(guest) == REPLY
    assert hostile.connections == 2
    hostile.connections, hostile.behaviors = 0, [once(raw)]
    with pytest.raises(UnavailableError):
        check(guest)
    assert hostile.connections == 2


@pytest.mark.parametrize(
    "leave", [b"", goaway(1), goaway((1 << 31) - 1), frame(6, bytes(8), stream=0) * 20_000]
)
def test_a_connection_that_ended_while_it_rested_is_made_anew(
    hostile: Hostile, guest: DeviceHome, leave: bytes
) -> None:
    left, done = threading.Event(), threading.Event()

    def answer_and_leave(talk: Talk) -> None:
        talk.answer(next(talk.requests()))
        with contextlib.suppress(OSError):
            talk.socket.settimeout(0.2)
            talk.send(leave)
        if not leave:
            talk.socket.close()
        left.set()
        if leave:
            done.wait(30)  # The connection itself stays: only what was said on it ends it.

    hostile.behaviors = [answer_and_leave, well]
    with Gateway(guest, now_s=time.time()) as gateway:
        for _ in range(2):
            assert call(gateway.delivery.Check, pb.CheckRequest(), gateway.address, timeout_s=5.0) == REPLY
            assert left.wait(5)
    done.set()
    assert hostile.connections == 2


def test_calls_after_another_share_a_connection_and_calls_at_once_have_one_each(
    hostile: Hostile, guest: DeviceHome
) -> None:
    gate = threading.Barrier(4)

    def together(talk: Talk, stream: int) -> None:
        gate.wait(5)
        talk.answer(stream)

    hostile.behaviors = [well]
    with Gateway(guest, now_s=time.time()) as gateway:
        for _ in range(3):
            gateway.delivery.Check(pb.CheckRequest())
        assert hostile.connections == 1
    hostile.connections, hostile.behaviors = 0, [every(together)]
    answers = []
    with Gateway(guest, now_s=time.time()) as gateway:
        ask = lambda: answers.append(gateway.delivery.Check(pb.CheckRequest(), timeout=10))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [REPLY] * 4
    assert hostile.connections == 4


@pytest.mark.parametrize("raw", [goaway(0), frame(3, int(ErrorCodes.REFUSED_STREAM).to_bytes(4))])
def test_a_call_that_was_answered_in_part_is_not_made_again_whatever_the_server_says(
    hostile: Hostile, guest: DeviceHome, raw: bytes
) -> None:
    def answer_and_deny(talk: Talk, stream: int) -> None:
        talk.http.send_headers(stream, GRPC)
        talk.send(raw)

    hostile.behaviors = [every(answer_and_deny), well]
    with pytest.raises(UnavailableError):
        check(guest)
    assert hostile.connections == 1


def test_an_answer_is_heard_though_the_server_has_left_before_it_was_read(
    hostile: Hostile, guest: DeviceHome
) -> None:
    def answer_and_leave(talk: Talk) -> None:
        talk.answer(next(talk.requests()))
        talk.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        talk.socket.close()  # Whatever is sent to it from now on fails.

    hostile.behaviors = [answer_and_leave]
    for _ in range(20):
        assert check(guest) == REPLY


def test_a_call_whose_connection_ends_is_not_made_again(hostile: Hostile, guest: DeviceHome) -> None:
    hostile.behaviors = [once(b""), well]
    with pytest.raises(UnavailableError):
        check(guest)
    assert hostile.connections == 1


def test_a_call_that_takes_too_long_is_not_made_again(hostile: Hostile, guest: DeviceHome) -> None:
    never = threading.Event()
    hostile.behaviors = [every(lambda talk, stream: never.wait(20) or None), well]
    with pytest.raises(UnavailableError):
        check(guest, timeout_s=0.3)
    assert hostile.connections == 1
    never.set()


def test_a_connection_over_which_many_settings_came_is_made_anew(hostile: Hostile, guest: DeviceHome) -> None:
    settled = threading.Event()

    def settle(talk: Talk, stream: int) -> None:
        talk.answer(stream)
        talk.send(frame(4, b"\0\x04\0\x10\0\0" * 300, stream=0) * 2)
        settled.set()

    hostile.behaviors = [every(settle)]
    with Gateway(guest, now_s=time.time()) as gateway:
        for _ in range(3):
            assert call(gateway.delivery.Check, pb.CheckRequest(), gateway.address) == REPLY
            assert settled.wait(5)
            settled.clear()
    assert hostile.connections == 3
