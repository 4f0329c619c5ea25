"""The device against servers that are not its gateway, by their TLS."""

from __future__ import annotations

import ssl
import time

import pytest

from cable import Cable
from device_world import World, through
from hostile_server import Hostile, check, well
from umbel._home.directory import DeviceHome
from umbel_proto.errors import CertificateError, UnavailableError


@pytest.mark.parametrize("protocols", [["http/1.1"], []])
def test_a_server_without_http2_is_no_gateway(
    hostile: Hostile, guest: DeviceHome, protocols: list[str]
) -> None:
    hostile.alpn, hostile.behaviors = protocols, [well]
    with pytest.raises(UnavailableError, match="does not speak as a gateway does"):
        check(guest)


def test_a_server_of_before_tls_1_3_is_no_gateway(hostile: Hostile, guest: DeviceHome) -> None:
    hostile.newest, hostile.behaviors = ssl.TLSVersion.TLSv1_2, [well]
    with pytest.raises(UnavailableError, match="does not speak as a gateway does"):
        check(guest)


def test_a_certificate_of_the_fleet_for_another_address_is_refused(
    hostile: Hostile, guest: DeviceHome
) -> None:
    hostile.behaviors = [well]
    with Cable(hostile.address, host="127.0.0.2") as cable:
        through(guest, cable.address)
        with pytest.raises(CertificateError, match="check the address"):
            check(guest)


def test_another_device_of_the_fleet_is_not_taken_for_its_gateway(
    world: World, hostile: Hostile, guest: DeviceHome
) -> None:
    other = world.device("d2")
    hostile.identity, hostile.behaviors = (other.tls_certificate, other.tls_key), [well]
    with pytest.raises(CertificateError, match="check the address"):
        check(guest)


def test_a_server_that_hands_out_tickets_without_end_is_given_up_by_the_deadline(
    hostile: Hostile, guest: DeviceHome
) -> None:
    hostile.tickets, hostile.behaviors = 400_000, [well]  # Handshakes go on below the messages of HTTP/2.
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match="does not answer"):
        check(guest, timeout_s=0.5)
    assert time.monotonic() - begin < 5
