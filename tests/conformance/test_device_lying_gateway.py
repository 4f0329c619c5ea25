"""The device against a gateway that lies."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from device_world import World, open_device, predict_once, through
from model_packages import opened, release
from release_trust import MemoryTrust
from umbel._fleet.channel import Gateway
from umbel._fleet.uplink import upload
from umbel._telemetry.spool import Spool
from umbel_proto.errors import PackageError, RemoteProtocolError, UsageError
from umbel_proto.wire import delivery_pb2, telemetry_pb2
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.gateway.rpc import serve_on


class Liar:
    """A gateway with the fleet's own certificate that answers whatever it is told to."""

    def __init__(self, fleet: FleetDir) -> None:
        self.releases: list[delivery_pb2.Release] = []
        self.package = b""
        self.trust = MemoryTrust()
        self.reply: telemetry_pb2.UploadReply | None = None
        pool = ThreadPoolExecutor(4)
        self.server = grpc.server(pool)
        delivery = delivery_pb2.DESCRIPTOR.services_by_name["Delivery"]
        telemetry = telemetry_pb2.DESCRIPTOR.services_by_name["Telemetry"]
        methods = {"Check": self._check, "Fetch": self._fetch, "Metadata": self._metadata}
        serve_on(self.server, delivery, methods)
        serve_on(self.server, telemetry, {"Upload": self._upload})
        credentials = grpc.ssl_server_credentials(
            [(fleet.server_key.read_bytes(), fleet.server_pem.read_bytes())],
            fleet.ca_pem.read_bytes(),
            require_client_auth=True,
        )
        self.address = f"127.0.0.1:{self.server.add_secure_port('127.0.0.1:0', credentials)}"
        self.server.start()

    def _check(self, *_: object) -> delivery_pb2.CheckReply:
        for each in self.releases:
            with contextlib.suppress(UsageError):  # Not a name: nobody can sign that.
                self.trust.offer(each)
        return delivery_pb2.CheckReply(releases=self.releases)

    def _metadata(self, request: delivery_pb2.MetadataRequest, _: object) -> delivery_pb2.MetadataReply:
        return self.trust.Metadata(request, 1.0)

    def _upload(self, request: telemetry_pb2.UploadRequest, _: object) -> telemetry_pb2.UploadReply:
        headers = (telemetry_pb2.BatchHeader.FromString(batch.header) for batch in request.batches)
        everything = telemetry_pb2.UploadReply(acknowledged=[header.batch_id for header in headers])
        return everything if self.reply is None else self.reply

    def _fetch(self, request: delivery_pb2.FetchRequest, _: object) -> Iterator[delivery_pb2.Chunk]:
        yield delivery_pb2.Chunk(data=self.package[request.offset :])


@pytest.fixture
def liar(world: World) -> Iterator[Liar]:
    liar = Liar(world.fleet)
    yield liar
    liar.server.stop(0).wait()


def test_an_older_release_is_not_installed_over_a_newer_one(world: World, liar: Liar) -> None:
    home = world.device("d1")
    publish(world.fleet, world.store, release(3))
    with open_device(home) as device:
        device.sync()
    old = opened(release(2))
    liar.package = release(2)
    liar.releases = [
        delivery_pb2.Release(model="digits", version=2, sha256=bytes.fromhex(old.sha256), size=old.size)
    ]
    through(home, liar.address)
    liar.trust.admit(home)
    with open_device(home) as device:
        assert device.sync() == ()
        assert [each.version for each in device.status().models] == [3]
        # Nor under a newer number: the version that counts is the signed one.
        liar.releases[0].version = 4
        with pytest.raises(PackageError):
            device.sync()
        assert device.sync() == ()
        assert [each.version for each in device.status().models] == [3]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "../../etc"}, "not a name"),
        ({"sha256": b"short"}, "malformed"),
        ({"size": 0}, "malformed"),
        ({"size": 1 << 40}, "malformed"),
        ({"size": 10}, "longer than announced"),
        ({"size": 1000}, "shorter than announced"),
    ],
)
def test_a_release_that_is_not_what_was_announced_is_refused(
    world: World, liar: Liar, fields: dict[str, Any], why: str
) -> None:
    home = world.device("d1")
    liar.package = bytes(100)
    right = {"model": "digits", "version": 1, "sha256": bytes(32), "size": 100}
    liar.releases = [delivery_pb2.Release(**{**right, **fields})]
    through(home, liar.address)
    liar.trust.admit(home)
    with open_device(home) as device, pytest.raises(RemoteProtocolError, match=why):
        device.sync()


def test_a_gateway_that_acknowledges_nothing_is_not_asked_for_ever(world: World, liar: Liar) -> None:
    home = world.device("d1")
    through(home, liar.address)
    liar.reply = telemetry_pb2.UploadReply()
    with open_device(home) as device:
        predict_once(device)
        with pytest.raises(RemoteProtocolError, match="without acknowledging"):
            device.sync()
        assert device.status().spooled_batches == 1


def test_acknowledging_what_was_not_sent_forgets_nothing(world: World, liar: Liar) -> None:
    home = world.device("d1")
    through(home, liar.address)
    liar.reply = telemetry_pb2.UploadReply(acknowledged=[bytes(16)], retry_after_s=7)
    with open_device(home) as device:
        predict_once(device)
        with pytest.raises(RemoteProtocolError, match="batches that it did not have"):
            device.sync()
        assert device.status().spooled_batches == 1


def test_a_gateway_that_wants_nothing_now_forgets_nothing(world: World, liar: Liar) -> None:
    home = world.device("d1")
    through(home, liar.address)
    liar.reply = telemetry_pb2.UploadReply(retry_after_s=7)
    with open_device(home) as device, Spool(home.spool) as spool:
        predict_once(device)
        device._telemetry.flush()
        with Gateway(home, now_s=time.time()) as gateway:
            assert upload(gateway, spool, now_s=time.time) == 7.0
        assert spool.depth().batches == 1
