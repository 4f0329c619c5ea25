"""The gateway's listeners: ports, the end of a process, and its certificate."""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509

from gateway_world import HOUR_S, Served, release
from service_fleet import DAY_S, ManualClock, PlainDevice, invoke, make_fleet, running
from umbel_proto.errors import UnavailableError
from umbel_proto.wire import delivery_pb2
from umbel_server.fleet.ca import private_pem
from umbel_server.fleet.create import renew_server_certificate
from umbel_server.fleet.layout import FleetDir
from umbel_server.gateway.delivery import CHUNK_BYTES
from umbel_server.gateway.server import Gateway


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
