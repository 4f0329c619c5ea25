"""The device against the real gateway: what the fleet signed, how long it holds, and whom it trusts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from device_world import World, open_device, predict_once
from model_packages import opened, release
from release_trust import MemoryTrust
from service_fleet import ManualClock
from umbel._doctor import examine
from umbel._fleet.channel import Gateway
from umbel._fleet.enroll import enroll, renew
from umbel._fleet.uplink import Uplink
from umbel._telemetry.spool import Spool
from umbel_proto.errors import PackageError
from umbel_proto.ids import ModelName
from umbel_proto.keys import SigningKey
from umbel_proto.manifest import FORMAT
from umbel_server.fleet.publish import publish
from umbel_server.trust.metadata import Lives, Released, signer, with_release
from umbel_server.trust.repository import Repository


def test_a_sync_that_finds_nothing_new_moves_less_than_a_kilobyte_of_metadata(world: World) -> None:
    """Over the whole conversation, TLS and HTTP/2 left aside: what is asked and what is answered."""
    publish(world.fleet, world.store, release(2))
    home = world.device("d1")
    with open_device(home) as device:
        device.sync()
        moved = 0
        original = Gateway(home, now_s=world.clock.now_s)
        with original as gateway:

            class Counting:
                """Counts what goes through a stub's methods."""

                address, fetch = gateway.address, gateway.fetch

                def __getattr__(self, name: str) -> Any:
                    def call(request: Any, timeout: float) -> Any:
                        nonlocal moved
                        reply = getattr(gateway.delivery, name)(request, timeout=timeout)
                        moved += request.ByteSize() + reply.ByteSize()
                        return reply

                    return call

                @property
                def delivery(self) -> Any:
                    return self

            assert device._delivery.check(Counting()) == []  # type: ignore[arg-type]
    assert 0 < moved < 1024


def test_what_the_fleet_signed_expires_and_nothing_but_new_releases_stops(
    world: World, tmp_path: Path
) -> None:
    publish(world.fleet, world.store, release(2))
    home = world.device("d1")
    clock = ManualClock(
        world.clock.now_s
    )  # The device's: TLS goes by the machine's, and certificates hold for a day.
    with open_device(home, clock=clock) as device:
        device.sync()
        key = signer(SigningKey.from_pem(world.fleet.targets_key.read_bytes()))
        Repository(world.fleet.trust, lives=Lives(targets_s=3600), clock=world.clock).sign([key])
        device.sync()
        assert device.status().releases_until_s == pytest.approx(clock.now_s + 3600, abs=1)
        clock.advance(3660)
        publish(world.fleet, world.store, release(3))
        with pytest.raises(PackageError, match="nothing new is installed"):
            device.sync()
        predict_once(device)
        assert [each.version for each in device.status().models] == [2]
        until_s = device.status().releases_until_s
        assert until_s is not None
        assert until_s < clock.now_s
        [found] = [
            each for each in examine(home, now_s=clock.now_s, online=False) if each.check == "releases"
        ]
        assert found.state == "warning"
        Repository.of(world.fleet, clock=world.clock).sign([key])
        assert [each.version for each in device.sync()] == [3]


def test_that_it_has_expired_is_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    home = world.device("d1")
    key = signer(SigningKey.from_pem(world.fleet.targets_key.read_bytes()))
    Repository(world.fleet.trust, lives=Lives(targets_s=60), clock=world.clock).sign([key])
    world.clock.advance(61)
    with open_device(home, clock=world.clock) as device, Spool(home.spool) as spool:
        moments = iter(range(0, 10**6, 1000))
        uplink = Uplink(
            home,
            spool=spool,
            telemetry=device.telemetry,
            delivery=device._deliver,
            clock=world.clock,
            elapsed=lambda: float(next(moments)),
        )
        for _ in range(4):
            uplink.turn()
        uplink.close()
    said = [record for record in caplog.records if "holds no more" in record.getMessage()]
    assert len(said) == 1


def test_a_release_that_only_the_gateway_knows_is_not_installed(world: World) -> None:
    """Whoever holds the gateway and the store, and even the key of packages, adds nothing to what is signed."""
    home = world.device("d1")
    publish(world.fleet, world.store, release(2))
    data = release(3)
    found = opened(data)
    sha256 = bytes.fromhex(found.sha256)
    world.fleet.package(sha256).write_bytes(data)
    world.store.releases.publish(ModelName("digits"), 3, sha256=sha256, size=len(data))
    with open_device(home) as device:
        with pytest.raises(PackageError, match="has not signed"):
            device.sync()
        # Once it is signed it comes, to the same process too.
        publish(world.fleet, world.store, data)
        assert [each.version for each in device.sync()] == [3]


@pytest.mark.parametrize(
    ("custom", "why"),
    [
        ({"format": FORMAT + 1, "engines": ["onnx"]}, "update umbel"),
        (
            {"format": FORMAT, "engines": ["npu", "dsp"]},
            "devices with the engine npu or dsp, and this one has onnx",
        ),
    ],
)
def test_a_release_for_other_devices_is_refused_before_it_is_fetched(
    world: World, custom: dict[str, Any], why: str
) -> None:
    home = world.device("d1")
    publish(world.fleet, world.store, release(2))
    data = release(3)
    sha256 = bytes.fromhex(opened(data).sha256)
    signed = Released("digits", 3, sha256, len(data), custom)
    key = signer(world.fleet.release_signer())
    repository = Repository.of(world.fleet, clock=world.clock)
    repository.update(
        lambda state: with_release(state, signed, key, lives=repository.lives, now_s=world.clock())
    )
    world.store.releases.publish(ModelName("digits"), 3, sha256=sha256, size=len(data))
    # The gateway has no file of it: whoever asks for that hears of something else.
    with open_device(home) as device:
        with pytest.raises(PackageError, match=why):
            device.sync()
        predict_once(device)
        publish(world.fleet, world.store, release(4))
        assert [each.version for each in device.sync()] == [4]


def test_a_device_of_before_learns_whom_to_trust_when_it_renews(world: World) -> None:
    home = world.device("d1")
    publish(world.fleet, world.store, release(2))
    root = home.root.read_bytes()
    home.root.unlink()
    clock = ManualClock(world.clock.now_s)
    with open_device(home, clock=clock) as device:
        with pytest.raises(PackageError, match="does not know yet whom to trust"):
            device.sync()
        clock.advance(17 * 3600)
        assert [each.version for each in device.sync()] == [2]
    assert home.root.read_bytes() == root


def test_a_root_that_is_known_is_not_replaced_by_what_a_renewal_brings(world: World) -> None:
    home = world.device("d1")
    other = MemoryTrust()
    other.admit(home)
    before = home.root.read_bytes()
    with Gateway(home, now_s=world.clock.now_s) as gateway:
        renew(home, gateway, now_s=world.clock.now_s)
    assert home.root.read_bytes() == before


def test_a_device_that_enrolls_again_forgets_what_it_trusted(world: World) -> None:
    home = world.device("d1")
    publish(world.fleet, world.store, release(2))
    other = MemoryTrust()
    other.admit(home)
    home.trust.mkdir()
    home.trust.joinpath("timestamp.json").write_bytes(other.files["timestamp.json"])
    enroll(home, world.token(), again=True, now_s=world.clock.now_s)
    assert not home.trust.exists()
    with open_device(home) as device:
        assert [each.version for each in device.sync()] == [2]
