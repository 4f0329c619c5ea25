"""The device against the real gateway, and cables that are cut: each report arrives once."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cable import Cable
from device_world import World, eventually, make_world, open_device, predict_once, through
from model_packages import digits, first, release, shelf
from service_fleet import ManualClock, running
from umbel._fleet.channel import Gateway
from umbel._fleet.uplink import upload
from umbel._home.directory import DeviceHome
from umbel._telemetry.flusher import Flusher
from umbel._telemetry.spool import Sealed, Spool
from umbel.cli import app
from umbel_proto.errors import RefusedError, StorageError, UnavailableError
from umbel_proto.ids import DeviceId
from umbel_proto.wire import delivery_pb2, telemetry_pb2
from umbel_server.fleet.publish import publish


def test_reports_arrive_once_and_add_up(world: World) -> None:
    home = world.device("d1")
    with open_device(home) as device:
        for _ in range(5):
            predict_once(device)
        device.sync()
        predict_once(device)
        device.sync()
        device.sync()
        assert device.status().spooled_batches == 0
    assert (world.stored(), world.predictions()) == (2, 6)


def test_a_report_whose_acknowledgment_was_lost_is_sent_again_and_stored_once(world: World) -> None:
    home = world.device("d1")
    with Cable(world.fleet.settings.gateway) as cable, Spool(home.spool) as spool:
        through(home, cable.address)
        with open_device(home) as device:
            predict_once(device)
        with Gateway(home, now_s=time.time()) as gateway:
            gateway.delivery.Check(delivery_pb2.CheckRequest())
            cable.mute()
            stored = threading.Thread(target=lambda: (eventually(lambda: world.stored() == 1), cable.cut()))
            stored.start()
            with pytest.raises(UnavailableError):
                upload(gateway, spool, now_s=time.time)
            stored.join()
        assert spool.depth().batches == 1
        with Gateway(home, now_s=time.time()) as gateway:
            upload(gateway, spool, now_s=time.time)
        assert spool.depth().batches == 0
    assert (world.stored(), world.predictions()) == (1, 1)


def test_two_processes_that_send_the_same_report_store_it_once(world: World) -> None:
    home = world.device("d1")
    with open_device(home) as device:
        predict_once(device)
    with Spool(home.spool) as one, Gateway(home, now_s=time.time()) as gateway:
        [waiting] = one.oldest(max_batches=9, max_bytes=10**6)
        batch = telemetry_pb2.SealedBatch(header=waiting.header, ciphertext=waiting.ciphertext)
        gateway.telemetry.Upload(telemetry_pb2.UploadRequest(batches=[batch]))
        upload(gateway, one, now_s=time.time)
        assert one.depth().batches == 0
    assert world.stored() == 1


def test_a_gateway_that_was_down_loses_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_world(tmp_path, clock)
    with running(fleet, clock=clock) as (_, store):
        home = World(fleet, store, clock, tmp_path).device("d1")
    with open_device(home) as device:
        for _ in range(3):
            predict_once(device)
            with pytest.raises(UnavailableError, match="does not answer"):
                device.sync()
        assert device.status().spooled_batches == 3
        with running(fleet, clock=clock) as (_, store):
            device.sync()
            assert device.status().spooled_batches == 0
            assert World(fleet, store, clock, tmp_path).predictions() == 3


def test_the_background_thread_comes_back_to_a_gateway_that_was_down(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_world(tmp_path, clock)
    with running(fleet, clock=clock) as (_, store):
        home = World(fleet, store, clock, tmp_path).device("d1")
        publish(fleet, store, release(2))
    with open_device(home) as offline:
        predict_once(offline)
    with open_device(home, online=True, poll_s=0.1) as device:
        eventually(lambda: bool(device._uplink and device._uplink._trouble))
        with running(fleet, clock=clock) as (_, store):
            eventually(lambda: device.status().models != ())
            eventually(lambda: device.status().spooled_batches == 0)
            assert World(fleet, store, clock, tmp_path).predictions() == 1


def test_closing_a_device_sends_its_last_window(world: World) -> None:
    home = world.device("d1")
    with open_device(home, online=True) as device:
        predict_once(device)
    assert world.predictions() == 1


def test_closing_a_device_does_not_wait_for_a_gateway_that_never_answers(world: World) -> None:
    home = world.device("d1")
    with Cable(world.fleet.settings.gateway) as cable:
        cable.go_silent()
        through(home, cable.address)
        device = open_device(home, online=True, poll_s=0.1)
        predict_once(device)
        begin = time.monotonic()
        device.close(timeout_s=0.3)
        assert time.monotonic() - begin < 5
        assert not any(thread.name == "umbel-uplink" for thread in threading.enumerate())
    with open_device(home) as device:
        assert device.status().spooled_batches == 1


def test_a_report_the_gateway_calls_malformed_blocks_no_other(world: World) -> None:
    home = world.device("d1")
    with Spool(home.spool) as spool, open_device(home) as device:
        predict_once(device)
        device._telemetry.flush()
        spool.append(Sealed(bytes(16), b"this is no header \xff", b"ciphertext"))
        predict_once(device)
        device.sync()
        assert (spool.depth().batches, spool.depth().dropped) == (0, 1)
    assert world.predictions() == 2


def test_a_spool_fuller_than_one_upload_is_emptied_in_several(world: World) -> None:
    home = world.device("d1")
    with open_device(home) as device:
        for _ in range(150):
            predict_once(device)
            device._telemetry.flush()
        device.sync()
        assert device.status().spooled_batches == 0
    assert (world.stored(), world.predictions()) == (150, 150)


def test_a_slow_network_is_not_taken_for_a_dead_one(world: World) -> None:
    home = world.device("d1")
    with Cable(world.fleet.settings.gateway, delay_s=0.15) as cable:
        through(home, cable.address)
        with open_device(home) as device:
            predict_once(device)
            device.sync()
            assert device.status().spooled_batches == 0


def test_a_contact_is_remembered(world: World) -> None:
    home = world.device("d1")
    with open_device(home) as device:
        assert device.status().last_contact_s is None
        device.sync()
        assert device.status().last_contact_s == pytest.approx(time.time(), abs=30)


def refused(home: DeviceHome) -> bool:
    with open_device(home) as device:
        return device.status().refused_s is not None


@pytest.mark.parametrize("online", [False, True], ids=["asked by the application", "in the background"])
def test_a_device_that_was_revoked_says_so_and_keeps_what_it_would_report(world: World, online: bool) -> None:
    home = world.device("d1")
    assert not refused(home)
    world.store.devices.revoke(DeviceId("d1"))
    with open_device(home, online=online) as device:
        predict_once(device)
        if online:
            eventually(lambda: device.status().refused_s is not None)
        else:
            with pytest.raises(RefusedError, match="d1 is revoked: it goes on alone"):
                device.sync()
    assert refused(home)
    with open_device(home) as device:
        assert device.status().spooled_batches == 1
    shown = CliRunner().invoke(app, ["status", "--home", str(home.path)])
    assert "REFUSES this device since" in shown.output


APART = """
import sys, threading
import numpy as np
from umbel import Device
device = Device.open(sys.argv[1], online=False, poll_s=1.0)
model = device.model("digits")
for row in np.load(sys.argv[2])["x"]:
    model.predict(row)
print(model.predict(row).decision, flush=True)
threading.Event().wait()
"""


def test_a_process_that_is_never_online_puts_away_in_time_what_it_predicted(world: World) -> None:
    """Killed after that, it has lost nothing: its reports wait in the spool, and what a person should see on the disk."""
    home = world.device("d1")
    shelf(home.path).install(first())  # One that was never trained is sure of nothing.
    np.savez(world.root / "x.npz", x=digits().held_out.x[:20])
    command = [sys.executable, "-c", APART, home.path, world.root / "x.npz"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "review\n"
            with Spool(home.spool) as spool:
                eventually(lambda: spool.depth().batches > 0)
        finally:
            process.kill()
    with open_device(home) as device:
        assert len(device.model("digits").review.pending()) == 21
        device.sync()
    assert world.predictions() == 21


def test_a_device_that_is_dropped_without_being_closed_ends_its_thread(world: World) -> None:
    home = world.device("d1")
    device = open_device(home, poll_s=1.0)
    predict_once(device)
    flusher = device._uplink
    assert isinstance(flusher, Flusher)
    assert flusher.turn()
    del device
    gc.collect()
    assert not flusher.turn()


def test_the_longer_nothing_is_fetched_the_longer_windows_stay_open(world: World) -> None:
    """So that a month of one that is never online fits into the spool, as it does of one that reaches nobody."""
    home, now_s = world.device("d1"), 0.0
    with open_device(home) as device:
        flusher = Flusher(
            device._telemetry, device._spool, device._attend, period_s=60.0, elapsed=lambda: now_s
        )
        made = []
        for _ in range(6 * 60):
            now_s += 60.0
            predict_once(device)
            flusher.turn()
            made.append(device.status().spooled_batches)
    assert made[:3] == [1, 2, 3]
    assert made[59] == 60
    assert made[60 + 9] == 61  # From then on a window of ten minutes.
    assert 80 < made[-1] < 100


def test_a_refusal_is_told_on_a_full_disk_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    home = world.device("d1")
    world.store.devices.revoke(DeviceId("d1"))

    def full(*_: object) -> None:
        raise StorageError("No space is left.")

    with open_device(home) as device:
        monkeypatch.setattr(Spool, "refused", full)
        with pytest.raises(RefusedError, match="d1 is revoked"):
            device.sync()
