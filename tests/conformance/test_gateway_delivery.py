"""The gateway over real gRPC and TLS: releases and their packages."""

from __future__ import annotations

import contextlib
import secrets
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from gateway_world import Served, refusal, release
from service_fleet import PlainDevice, invoke
from umbel_proto.ids import ModelName
from umbel_proto.wire import delivery_pb2
from umbel_server.gateway.delivery import CHUNK_BYTES
from umbel_server.gateway.server import FETCHES


def test_check_offers_the_newest_version(served: Served, member: PlainDevice) -> None:
    fleet, _, _ = served
    assert list(member.check(fleet).releases) == []
    release(served, b"first", version=1)
    sha256 = release(served, b"second", version=2)
    (offered,) = member.check(fleet).releases
    expected = ("digits", 2, sha256, 6)
    assert (offered.model, offered.version, offered.sha256, offered.size) == expected


@pytest.mark.parametrize("offset", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7, 3 * CHUNK_BYTES])
def test_a_package_is_fetched_from_where_the_device_stopped(
    served: Served, member: PlainDevice, offset: int
) -> None:
    data = secrets.token_bytes(3 * CHUNK_BYTES)
    sha256 = release(served, data)
    assert member.fetch(served[0], sha256, offset=offset) == data[offset:]


def test_a_package_comes_in_chunks_of_at_most_256_kib(served: Served, member: PlainDevice) -> None:
    sha256 = release(served, bytes(2 * CHUNK_BYTES + 1))
    with member.channel(served[0]) as channel:
        message = delivery_pb2.FetchRequest(sha256=sha256)
        chunks = [len(chunk.data) for chunk in invoke(channel, delivery_pb2, "Delivery", "Fetch", message)]
    assert chunks == [CHUNK_BYTES, CHUNK_BYTES, 1]


def test_an_offset_beyond_the_end_is_refused(served: Served, member: PlainDevice) -> None:
    sha256 = release(served, b"package")
    code, sentence = refusal(lambda: member.fetch(served[0], sha256, offset=8))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "ends at 7 bytes" in sentence


@pytest.mark.parametrize("sha256", [b"", bytes(31), bytes(32), b"../../ca/ca.key"])
def test_only_released_packages_are_given_out(served: Served, member: PlainDevice, sha256: bytes) -> None:
    fleet, _, _ = served
    fleet.package(bytes(32)).write_bytes(b"lies there, but is not released")
    code, _ = refusal(lambda: member.fetch(fleet, sha256))
    assert code == grpc.StatusCode.NOT_FOUND


def test_a_released_package_that_is_gone_is_our_trouble_and_names_no_file_of_ours(
    served: Served, member: PlainDevice
) -> None:
    fleet, _, _ = served
    sha256 = release(served, b"package")
    fleet.package(sha256).unlink()
    code, sentence = refusal(lambda: member.fetch(fleet, sha256))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert str(fleet.path) not in sentence


def test_slow_readers_leave_room_for_everyone_else(served: Served, member: PlainDevice) -> None:
    fleet, store, _ = served
    small, large = release(served, b"package"), secrets.token_bytes(32)
    with fleet.package(large).open("wb") as file:
        file.truncate(1 << 30)  # More than any buffer on the way takes; no bytes on the disk.
    store.releases.publish(ModelName("digits"), 2, sha256=large, size=1 << 30)
    streams: list[Any] = []
    with ExitStack() as stack:
        for _ in range(FETCHES):
            channel = stack.enter_context(member.channel(fleet))
            message = delivery_pb2.FetchRequest(sha256=large)
            streams.append(invoke(channel, delivery_pb2, "Delivery", "Fetch", message))
            next(streams[-1])
        code, sentence = refusal(lambda: member.fetch(fleet, small))
        assert (code, "busy" in sentence) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        member.check(fleet)


def test_readers_that_go_away_make_room(served: Served, member: PlainDevice) -> None:
    fleet, _, _ = served
    data = bytes(64 * CHUNK_BYTES)
    sha256 = release(served, data)
    message = delivery_pb2.FetchRequest(sha256=sha256)
    with member.channel(fleet) as channel:
        streams = [invoke(channel, delivery_pb2, "Delivery", "Fetch", message) for _ in range(FETCHES)]
        for stream in streams:
            next(stream)
            stream.cancel()
        for _ in range(1000):  # The gateway hears of it a moment later.
            with contextlib.suppress(grpc.RpcError):
                assert member.fetch(fleet, sha256) == data
                return
    pytest.fail("The gateway still holds room for readers that went away.")
