"""The device against the real gateway, and cables that are cut: releases are fetched, installed and followed."""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cable import Cable
from device_world import UMBEL, World, eventually, large_package, open_device, through
from model_packages import RELEASE, digits, opened, release, resigned
from service_fleet import DAY_S, ManualClock
from small_disk import on_small_disk
from umbel._fleet import delivery as delivery_module
from umbel._fleet.channel import Gateway
from umbel._fleet.delivery import Delivery
from umbel._home.directory import DeviceHome
from umbel._releases.shelf import Shelf
from umbel_proto.errors import CertificateError, PackageError, UnavailableError
from umbel_proto.ids import ModelName
from umbel_proto.wire import delivery_pb2
from umbel_server.fleet.publish import publish
from umbel_server.monitor import report


def test_releases_are_fetched_verified_and_installed_and_the_newest_is_active(world: World) -> None:
    home = world.device("d1")
    with open_device(home) as device:
        assert device.sync() == ()
        publish(world.fleet, world.store, release(2))
        [installed] = device.sync()
        assert (installed.model, installed.version) == ("digits", 2)
        assert device.sync() == ()
        publish(world.fleet, world.store, release(3))
        device.sync()
        assert [each.version for each in device.status().models] == [3]
        model = device.model("digits")
        labels = [model.predict(x).label for x in digits().held_out.x[:50]]  # type: ignore[union-attr]
        assert np.mean(np.array(labels) == digits().held_out.y[:50]) > 0.9
    assert list(home.incoming.iterdir()) == []


@contextlib.contextmanager
def cut_halfway(cable: Cable, home: DeviceHome) -> Iterator[None]:
    """Cut a fetch when half a megabyte of it is on the disk; no more than one reaches the device before."""
    cable.hold_after(1 << 20)

    def cut() -> None:
        eventually(lambda: any(part.stat().st_size >= 1 << 19 for part in home.incoming.glob("*.part")))
        cable.cut()

    watcher = threading.Thread(target=cut)
    watcher.start()
    yield
    watcher.join()


def test_a_fetch_goes_on_from_where_it_was_cut(world: World) -> None:
    home, package = world.device("d1"), large_package()
    publish(world.fleet, world.store, package)
    with Cable(world.fleet.settings.gateway) as cable:
        through(home, cable.address)
        with open_device(home) as device, cut_halfway(cable, home):
            [installed] = device.sync()
        # Begun anew, it would be the whole package more than what came before the cut.
        assert installed.version == 2
        assert cable.down < (1 << 20) + len(package) - (1 << 19) + (128 << 10)


def test_of_two_that_ask_at_once_one_fetches_and_both_have_it(world: World) -> None:
    """A background thread and ``sync``, or two processes: what comes goes to the end of one file."""
    home, package = world.device("d1"), large_package()
    publish(world.fleet, world.store, package)
    with Cable(world.fleet.settings.gateway) as cable:
        through(home, cable.address)
        with open_device(home) as slow, open_device(home) as quick, ThreadPoolExecutor(2) as pool:
            cable.hold_after(1 << 20)
            first = pool.submit(slow.sync)
            eventually(lambda: any(part.stat().st_size >= 1 << 19 for part in home.incoming.glob("*.part")))
            through(home, world.fleet.settings.gateway)
            second = pool.submit(quick.sync)
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
            cable.let_go()
            assert [each.version for each in first.result(timeout=60)] == [2]
            assert second.result(timeout=60) == ()
            assert [each.status().models[0].version for each in (slow, quick)] == [2, 2]
        assert cable.down < len(package) + (256 << 10)
    assert list(home.incoming.iterdir()) == []


def test_whoever_waits_for_another_that_fetches_is_told_after_as_long_as_a_fetch_may_take(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = world.device("d1")
    publish(world.fleet, world.store, release(2))
    monkeypatch.setattr(delivery_module, "FETCH_TIMEOUT_S", 0.2)
    with open_device(home) as device, home.delivery_lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"^Another thread or process .* for 0\.2 s: try again"):
            device.sync()
        fcntl.flock(other, fcntl.LOCK_UN)
        assert [each.version for each in device.sync()] == [2]


def test_a_fetch_that_was_given_up_goes_on_in_the_next_process(world: World) -> None:
    home, package = world.device("d1"), large_package()
    publish(world.fleet, world.store, package)
    shelf = Shelf(home.shelf, home.release_authority())
    with Cable(world.fleet.settings.gateway) as cable:
        through(home, cable.address)
        with Gateway(home, now_s=time.time()) as gateway, cut_halfway(cable, home):
            found = gateway.delivery.Check(delivery_pb2.CheckRequest()).releases[0]
            part = home.incoming / f"{found.sha256.hex()}.part"
            request = delivery_pb2.FetchRequest(sha256=found.sha256)
            with pytest.raises(UnavailableError):
                Delivery(home, shelf)._append(gateway, request, found.size, part)
        begun, before = part.stat().st_size, cable.down
        assert 1 << 19 <= begun < len(package)
        with open_device(home) as device:
            device.sync()
        assert cable.down - before < len(package) - begun + (128 << 10)
    assert shelf.active("digits") is not None
    assert not part.exists()


def test_a_package_altered_at_the_gateway_is_refused_and_the_active_one_stays(world: World) -> None:
    home = world.device("d1")
    publish(world.fleet, world.store, release(2))
    with open_device(home) as device:
        device.sync()
        altered = publish(world.fleet, world.store, release(3))
        path = world.fleet.package(altered.sha256)
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        for delta in world.fleet.packages.glob("*.delta"):
            delta.unlink()  # By which it would arrive as it should be.
        with pytest.raises(PackageError, match="arrived altered"):
            device.sync()
        assert device.sync() == ()  # Not fetched again and again.
        assert [each.version for each in device.status().models] == [2]
        publish(world.fleet, world.store, release(4))
        device.sync()
        assert [each.version for each in device.status().models] == [4]


def test_without_room_for_a_package_the_sentence_says_so(world: World) -> None:
    publish(world.fleet, world.store, large_package())
    home = world.device("d1")
    script = "mount -t tmpfs -o size=1500k none $1/incoming && exec $2 predict digits $3 --home $1"
    np.savez(world.root / "x.npz", x=digits().held_out.x[:1])
    done = on_small_disk(script, home.path, UMBEL, world.root / "x.npz")
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    assert "No space is left on the disk of" in done.stderr


def test_a_model_that_is_open_goes_over_to_the_next_release_by_itself(world: World) -> None:
    publish(world.fleet, world.store, release(2))
    home = world.device("d1")
    with open_device(home, online=True, poll_s=0.1) as device:
        eventually(lambda: bool(device.status().models))
        model = device.model("digits")
        assert model.version == 2
        publish(world.fleet, world.store, release(3))
        eventually(lambda: model.version == 3)


def test_a_release_that_another_process_installed_is_taken_without_the_gateway(world: World) -> None:
    publish(world.fleet, world.store, release(2))
    home = world.device("d1")
    with open_device(home) as device:
        device.sync()
    through(home, "127.0.0.1:1")
    with open_device(home, online=True, poll_s=0.1) as device:
        model = device.model("digits")
        Shelf(home.shelf, RELEASE.public).install(release(3))
        eventually(lambda: model.version == 3)


def test_a_release_that_fails_here_is_fetched_once_said_and_reported(world: World) -> None:
    publish(world.fleet, world.store, release(2))
    home = world.device("d1")
    strange = opened(large_package()).file("int8.safetensors")[:-1] + b"\x55"
    failing = resigned(release(2), lambda body: body.update(version=3), **{"int8.safetensors": strange})
    with open_device(home) as device:
        device.sync()
        model = device.model("digits")
        publish(world.fleet, world.store, failing)
        with pytest.raises(PackageError, match="golden"):
            device.sync()
        assert device.sync() == ()
        assert model.version == 2
        [failed] = device.status().failed
        assert (failed.model, failed.version) == ("digits", 3)
        # Another process of this device forgets it: this one tries again, once.
        Shelf(home.shelf, RELEASE.public).versions.retry("digits")
        with pytest.raises(PackageError, match="golden"):
            device.sync()
        assert device.sync() == ()
    with open_device(home) as device:
        assert device.sync() == ()
        publish(world.fleet, world.store, release(4))
        assert [each.version for each in device.sync()] == [4]
        assert device.status().failed == ()
    assert world.counted("model.fell_back") == 2
    [line] = report.telemetry(world.store, world.store.devices.all())
    assert [(each.version, each.fell_back) for each in line.models if each.fell_back] == [(3, 2)]
    [device_line] = report.devices(world.store, world.store.devices.all(), now_s=world.clock.now_s)
    assert device_line.models.get(ModelName("digits")) != 3


def test_a_device_on_which_the_newest_release_fails_gets_the_one_before(world: World) -> None:
    strange = opened(release(2)).file("int8.safetensors")[:-1] + b"\x55"
    failing = resigned(release(2), lambda body: body.update(version=3), **{"int8.safetensors": strange})
    for data in (release(2), failing):
        publish(world.fleet, world.store, data)
    with open_device(world.device("d1")) as device:
        with pytest.raises(PackageError, match="golden"):
            device.sync()
        assert [each.version for each in device.sync()] == [2]
        assert device.sync() == ()


def test_a_release_that_does_not_fit_into_the_quota_is_not_fetched(world: World) -> None:
    publish(world.fleet, world.store, release(2))
    home = world.device("d1")
    home.settings_file.write_text("quota_mib = 0.01")
    package = world.fleet.package(bytes.fromhex(opened(release(2)).sha256))
    package.rename(package.with_suffix(".away"))  # Whoever fetched it would get another error.
    with open_device(home) as device:
        with pytest.raises(PackageError, match="quota_mib"):
            device.sync()
        assert not list(home.incoming.iterdir())
        assert device.status().models == ()
    package.with_suffix(".away").rename(package)
    home.settings_file.write_text("quota_mib = 1")
    with open_device(home) as device:
        assert [each.version for each in device.sync()] == [2]


def test_a_device_whose_certificate_has_expired_goes_on_predicting(world: World) -> None:
    publish(world.fleet, world.store, release(2))
    home = world.device("d1")
    with open_device(home) as device:
        device.sync()
    late = ManualClock(time.time() + 3650 * DAY_S)
    with open_device(home, clock=late) as device:
        assert device.model("digits").predict_proba(digits().held_out.x[0]).shape == (10,)
        with pytest.raises(CertificateError):
            device.sync()
