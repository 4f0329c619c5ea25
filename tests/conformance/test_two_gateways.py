"""Two gateways on addresses of their own behind one TCP balancer: one is killed, and devices and reports go on at the other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cable import Cable
from device_world import World, eventually, make_world, open_device, predict_once, through
from service_fleet import ManualClock
from umbel._fleet.channel import Gateway
from umbel._fleet.uplink import upload
from umbel._telemetry.spool import Spool
from umbel_proto.errors import RefusedError, UnavailableError
from umbel_proto.wire import delivery_pb2
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.ports import free_ports

STOP_S = 30


def at_other_ports(fleet: FleetDir, directory: Path) -> FleetDir:
    """Return the same fleet, its store and keys, whose gateway is elsewhere."""
    directory.mkdir()
    for path in fleet.path.iterdir():
        if path.name != "fleet.toml":
            (directory / path.name).symlink_to(path)
    ports = fleet.settings.ports
    settings = (fleet.path / "fleet.toml").read_text()
    for name, port in zip(("gateway", "enrollment"), free_ports(2), strict=True):
        old = f"{name} = {getattr(ports, name)}"
        assert settings.count(old) == 1
        settings = settings.replace(old, f"{name} = {port}")
    (directory / "fleet.toml").write_text(settings)
    return FleetDir.open(directory)


@contextlib.contextmanager
def gateway(fleet: FleetDir) -> Iterator[subprocess.Popen[str]]:
    """Run a gateway in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "umbel", "serve", "gateway", "--fleet", str(fleet.path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=STOP_S)


def is_ready(process: subprocess.Popen[str], fleet: FleetDir) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"ready gateway {fleet.settings.gateway}\n"


def test_behind_a_balancer_a_killed_gateway_loses_and_doubles_nothing_and_devices_stay_admitted(
    tmp_path: Path,
) -> None:
    clock = ManualClock(time.time())
    fleet = make_world(tmp_path, clock)
    other = at_other_ports(fleet, tmp_path / "other")
    with (
        fleet.open_store() as store,
        gateway(fleet) as first,
        gateway(other) as second,
        Cable(fleet.settings.gateway, other.settings.gateway) as balancer,
    ):
        is_ready(first, fleet)
        is_ready(second, other)
        world = World(fleet, store, clock, tmp_path)
        homes = [world.device(f"d{number}") for number in range(3)]
        for home in homes:
            through(home, balancer.address)
            with open_device(home) as device:
                for _ in range(5):
                    predict_once(device)
                    device._telemetry.flush()

        # The first has stored what the first device sent, and is killed before the device hears of it.
        with Spool(homes[0].spool) as spool, Gateway(homes[0], now_s=time.time()) as channel:
            channel.delivery.Check(delivery_pb2.CheckRequest())
            balancer.mute()
            killer = threading.Thread(
                target=lambda: (eventually(lambda: world.stored() > 0), os.kill(first.pid, signal.SIGKILL))
            )
            killer.start()
            with pytest.raises(UnavailableError):
                upload(channel, spool, now_s=time.time)
            killer.join()
            assert spool.depth().batches == 5
        assert first.wait(STOP_S) == -signal.SIGKILL
        balancer.cut()

        for home in homes:
            with open_device(home) as device:
                predict_once(device)
                device.sync()
                assert device.status().spooled_batches == 0
        assert (world.stored(), world.predictions()) == (18, 18)

        store.devices.revoke(homes[2].identity.device)
        with open_device(homes[2]) as device, pytest.raises(RefusedError):
            device.sync()
        with open_device(homes[1]) as device:
            device.sync()
