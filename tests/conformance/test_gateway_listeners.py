"""The gateway's listeners: ports, the end of a process, and its certificate."""

from __future__ import annotations

import dataclasses
import secrets
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from gateway_world import HOUR_S, Served, release, stored
from service_fleet import CALL_TIMEOUT_S, DAY_S, ManualClock, PlainDevice, invoke, make_fleet, running
from umbel_proto.errors import UnavailableError
from umbel_proto.wire import delivery_pb2, telemetry_pb2
from umbel_server.fleet.ca import private_pem
from umbel_server.fleet.create import renew_server_certificate
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway.delivery import CHUNK_BYTES
from umbel_server.gateway.server import QUEUE, Gateway
from umbel_server.gateway.settings import GatewaySettings


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    address = ("127.0.0.1", fleet.settings.ports.enrollment)
    with (
        socket.create_server(address),
        fleet.open_store() as store,
        pytest.raises(UnavailableError, match=f"port of 127.0.0.1:{address[1]} is taken"),
    ):
        Gateway(fleet, store)


def test_two_gateways_do_not_share_a_port(served: Served) -> None:
    fleet, store, _ = served
    with pytest.raises(UnavailableError, match="is taken"):
        Gateway(fleet, store)


def test_calls_under_way_are_answered_when_the_gateway_stops(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    device = PlainDevice()
    data = secrets.token_bytes(16 * CHUNK_BYTES)
    with ExitStack() as client:
        with running(fleet) as (_, store):
            device.admit(fleet, store)
            sha256 = release((fleet, store, ManualClock()), data)
            channel = client.enter_context(device.channel(fleet))
            message = delivery_pb2.FetchRequest(sha256=sha256)
            stream = invoke(channel, delivery_pb2, "Delivery", "Fetch", message)
            received = [next(stream).data]
            rest = threading.Thread(target=lambda: received.extend(chunk.data for chunk in stream))
            rest.start()
        rest.join()
    assert b"".join(received) == data


@contextmanager
def kept_waiting(fleet: FleetDir) -> Iterator[None]:
    """Keep whoever commits waiting."""
    other = sqlite3.connect(str(fleet.store_place()), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def begin_upload(channel: grpc.Channel, batch: telemetry_pb2.SealedBatch) -> Any:
    message = telemetry_pb2.UploadRequest(batches=[batch]).SerializeToString()
    call: Any = channel.unary_unary("/umbel.wire.v1.Telemetry/Upload")
    return call.future(message, timeout=CALL_TIMEOUT_S)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    for _ in range(20_000):
        if condition():
            return
        threading.Event().wait(0.001)
    pytest.fail("It never came.")


def test_what_waits_for_its_commit_is_acknowledged_after_it_also_when_the_gateway_stops(
    tmp_path: Path,
) -> None:
    fleet = make_fleet(tmp_path / "garden")
    device = PlainDevice()
    with (
        ExitStack() as client,
        fleet.open_store() as store,
        ThreadPoolExecutor(1) as pool,
        ExitStack() as served,
    ):
        gateway = served.enter_context(Gateway(fleet, store))
        device.admit(fleet, store)
        channel = client.enter_context(device.channel(fleet))
        with kept_waiting(fleet):
            uploads = [begin_upload(channel, device.sealed(fleet)) for _ in range(5)]
            until(lambda: len(store.batches._together._waiting) == 4)
            stopped = pool.submit(served.close)
            until(lambda: not gateway._health.serving)
            acknowledged_early = [each.done() for each in uploads]
        stopped.result(30)
        assert acknowledged_early == [False] * 5
        assert [each.code() for each in uploads] == [grpc.StatusCode.OK] * 5
        assert stored(store) == 5


def test_calls_that_find_no_room_are_refused_at_once_and_the_next_find_room_again(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    settings = dataclasses.replace(fleet.settings, intake=GatewaySettings(threads=4))
    (fleet.path / "fleet.toml").write_text(settings.to_toml())
    fleet, devices, room = FleetDir.open(fleet.path), (PlainDevice(), PlainDevice()), 4 * QUEUE
    with ExitStack() as client, running(fleet) as (_, store):
        for device in devices:
            device.admit(fleet, store)
        channels = [client.enter_context(device.channel(fleet)) for device in devices]
        with kept_waiting(fleet):
            uploads = [
                begin_upload(channel, device.sealed(fleet))
                for device, channel in zip(devices, channels, strict=True)
                for _ in range(room // 2 + 4)
            ]
            until(lambda: sum(each.done() for each in uploads) == 8)
            refused = [each for each in uploads if each.done()]
        codes = [each.code() for each in uploads]
        assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert (codes.count(grpc.StatusCode.OK), len(codes)) == (room, room + 8)
        # An answer may be there a moment before the room that it took is free.
        until(lambda: begin_upload(channels[0], devices[0].sealed(fleet)).code() is grpc.StatusCode.OK)
        assert stored(store) == room + 1


def shown_certificate(fleet: FleetDir, device: PlainDevice, tmp_path: Path) -> x509.Certificate:
    """The certificate that the gateway shows to a new connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    pair = tmp_path / "pair.pem"
    pair.write_bytes(private_pem(device.tls) + device.certificate)
    context.load_cert_chain(pair)
    address = ("127.0.0.1", fleet.settings.ports.gateway)
    with socket.create_connection(address) as raw, context.wrap_socket(raw) as secure:
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


def test_a_gateway_that_runs_for_months_renews_its_certificate(
    served: Served, member: PlainDevice, tmp_path: Path
) -> None:
    fleet, _, clock = served
    first = shown_certificate(fleet, member, tmp_path)
    clock.advance(59 * DAY_S)
    assert shown_certificate(fleet, member, tmp_path) == first
    clock.advance(2 * DAY_S)
    second = shown_certificate(fleet, member, tmp_path)
    assert second.not_valid_after_utc.timestamp() == int(clock.now_s) + 90 * DAY_S
    assert second.public_key() == first.public_key()


def test_a_lost_server_certificate_is_made_again(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    fleet.server_pem.unlink()
    fleet.server_key.unlink()
    with running(fleet) as (_, store):
        PlainDevice().enroll(fleet, store.tokens.issue(valid_s=HOUR_S))


def test_a_server_certificate_in_its_last_third_is_replaced_at_the_start(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    before = fleet.server_pem.read_bytes()
    due_s = renew_server_certificate(fleet, now_s=clock.now_s)
    assert fleet.server_pem.read_bytes() == before
    assert renew_server_certificate(fleet, now_s=due_s) > due_s
    assert fleet.server_pem.read_bytes() != before
