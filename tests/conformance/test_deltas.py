"""Deltas between a real gateway and a real device: what is made at a release, offered, fetched, counted and dropped."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from cable import Cable
from model_packages import RELEASE, digits, opened, release, resigned, training
from service_fleet import PlainDevice, invoke, make_fleet, running
from umbel import Device
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel_models.pack import repack
from umbel_proto.wire import delivery_pb2 as pb
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import DELTA_BASES, publish
from umbel_server.monitor.opener import Opener
from umbel_server.store.releases import Delta
from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class World:
    """A fleet whose gateway runs, with digits 2 released and devices to enroll."""

    fleet: FleetDir
    store: Store
    root: Path

    def release(self, data: bytes) -> bytes:
        return publish(self.fleet, self.store, data).sha256

    def device(self, name: str = "d1") -> DeviceHome:
        home = DeviceHome(self.root / name)
        enroll(home, invite(self.fleet, self.store).to_text(), name=name, now_s=time.time())
        return home

    def files(self) -> set[Path]:
        return set(self.fleet.packages.glob("*.delta"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    fleet = make_fleet(tmp_path / "garden")
    fleet.release_key.write_bytes(RELEASE.to_pem())
    fleet.release_pub.write_bytes(RELEASE.public.raw)
    with running(fleet) as (_, store):
        world = World(fleet, store, tmp_path)
        world.release(release(2))
        yield world


def version(number: int) -> bytes:
    """Digits 2 under another number: all but the manifest is the same."""
    return resigned(release(2), lambda body: body.update(version=number))


def trained_on(number: int) -> bytes:
    """Digits with each weight a thousandth larger than in digits 2."""
    parameters = training().parameters * training().parameters.dtype.type(1.001)
    return repack(
        opened(release(2)), parameters, calibration=digits().calibration.x, version=number, key=RELEASE
    )


def test_a_device_that_has_the_version_before_fetches_what_changed_and_says_how_much_that_saved(
    world: World,
) -> None:
    home = world.device()
    with Device.open(home.path, online=False) as device:
        device.sync()
    world.release(trained_on(3))
    [delta] = world.store.releases.deltas()
    with Cable(world.fleet.settings.gateway) as cable:
        home.write_identity(dataclasses.replace(home.identity, gateway=cable.address))
        with Device.open(home.path, online=False) as device:
            [installed] = device.sync()
            device.sync()  # What it counted goes with the next report.
        assert cable.down < delta.size + (64 << 10)
    assert installed.version == 3
    opener = Opener(world.store, world.fleet.telemetry_private())
    while opener.run_once():
        pass
    counters = [rollup.counters for rollup in world.store.rollups.all() if not rollup.model]
    size = len(trained_on(3))
    assert sum(each.get("delivery.saved_bytes", 0) for each in counters) == size - delta.size
    assert sum(each.get("delivery.bytes", 0) for each in counters) == len(release(2)) + delta.size


# The gateway


@pytest.fixture
def member(world: World) -> PlainDevice:
    device = PlainDevice()
    device.admit(world.fleet, world.store)
    return device


def check(world: World, member: PlainDevice, *installed: bytes) -> pb.Release:
    request = pb.CheckRequest(installed=[pb.Release(model="digits", sha256=sha256) for sha256 in installed])
    with member.channel(world.fleet) as channel:
        [offer] = invoke(channel, pb, "Delivery", "Check", request).releases
    assert isinstance(offer, pb.Release)
    return offer


def test_a_delta_is_offered_to_those_who_have_its_base(world: World, member: PlainDevice) -> None:
    base = bytes.fromhex(opened(release(2)).sha256)
    newest = world.release(version(3))
    [delta] = world.store.releases.deltas()
    for installed, offered in [((), False), ((bytes(32),), False), ((base,), True), ((base, newest), False)]:
        offer = check(world, member, *installed)
        assert offer.sha256 == newest
        assert offer.HasField("delta") is offered
    offer = check(world, member, base)
    assert offer.delta == pb.Delta(base_sha256=base, sha256=delta.sha256, size=delta.size)
    assert len(member.fetch(world.fleet, delta.sha256)) == delta.size
    assert (
        member.fetch(world.fleet, delta.sha256, offset=100) == member.fetch(world.fleet, delta.sha256)[100:]
    )


def test_of_two_deltas_the_smaller_one_is_offered(world: World, member: PlainDevice) -> None:
    far, near = bytes.fromhex(opened(release(2)).sha256), world.release(trained_on(3))
    world.release(_like(trained_on(3), 4))
    assert len(world.store.releases.deltas()) == 2
    assert check(world, member, far, near).delta.base_sha256 == near
    assert check(world, member, far).delta.base_sha256 == far
    world.release(version(5))  # Digits 2 again: what is oldest is nearest.
    assert check(world, member, far, near).delta.base_sha256 == far


def _like(package: bytes, number: int) -> bytes:
    return resigned(package, lambda body: body.update(version=number))


def test_deltas_are_kept_from_a_few_versions_and_to_the_newest_only(world: World) -> None:
    hashes = [bytes.fromhex(opened(release(2)).sha256)]
    for number in range(3, 9):
        hashes.append(world.release(version(number)))
        kept = world.store.releases.deltas()
        assert {delta.base_sha256 for delta in kept} == set(hashes[:-1][-DELTA_BASES:])
        assert world.files() == {world.fleet.delta(delta.sha256) for delta in kept}


def test_what_a_crash_left_of_deltas_goes_with_the_next_release(world: World) -> None:
    world.fleet.delta(bytes(32)).write_bytes(b"nobody was told of it")
    world.release(version(3))
    assert world.fleet.delta(bytes(32)) not in world.files()
    assert len(world.files()) == 1


def test_the_same_release_again_makes_no_deltas_again(world: World) -> None:
    world.release(version(3))
    before = world.store.releases.deltas()
    world.release(version(3))
    assert world.store.releases.deltas() == before


def test_a_release_whose_forerunner_is_gone_is_released_without_a_delta(world: World) -> None:
    world.fleet.package(bytes.fromhex(opened(release(2)).sha256)).unlink()
    world.release(version(3))
    assert world.store.releases.deltas() == ()


def test_a_delta_that_is_gone_is_not_there_rather_than_trouble(world: World, member: PlainDevice) -> None:
    world.release(version(3))
    [delta] = world.store.releases.deltas()
    world.fleet.delta(delta.sha256).unlink()
    with pytest.raises(grpc.RpcError) as caught:
        member.fetch(world.fleet, delta.sha256)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_file_that_no_release_is_made_by_is_not_given_out(world: World, member: PlainDevice) -> None:
    world.fleet.delta(bytes(32)).write_bytes(b"lies there, but is no delta of a release")
    with pytest.raises(grpc.RpcError) as caught:
        member.fetch(world.fleet, bytes(32))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_version_that_fails_on_a_device_is_followed_by_a_delta_from_what_it_runs(
    world: World, member: PlainDevice
) -> None:
    base = bytes.fromhex(opened(release(2)).sha256)
    failed = world.release(version(3))
    world.release(version(4))
    request = pb.CheckRequest(installed=[pb.Release(model="digits", sha256=base)], failed=[failed])
    with member.channel(world.fleet) as channel:
        [offer] = invoke(channel, pb, "Delivery", "Check", request).releases
    assert (offer.version, offer.delta.base_sha256) == (4, base)


def test_the_store_says_which_deltas_there_are(world: World) -> None:
    assert world.store.releases.deltas() == ()
    newest = world.release(version(3))
    [delta] = world.store.releases.deltas()
    assert isinstance(delta, Delta)
    assert world.store.releases.delta(delta.sha256) == delta
    assert world.store.releases.smallest_delta(newest, bases={delta.base_sha256}) == delta
    assert world.store.releases.smallest_delta(delta.base_sha256, bases={newest}) is None
