"""A fleet whose gateway runs, and its devices, for tests of the device against it."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_packages import RELEASE, opened, release
from service_fleet import ManualClock, make_fleet
from umbel import Device
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel_proto.package import write_package
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.opener import Opener
from umbel_server.store.store import Store

UMBEL = Path(sys.executable).with_name("umbel")
HOUR_S = 3600
UNASKED = "the user was not asked for consent to training (against this device's conditions)"
NO_DEVICES = (
    "typer",
    "rich",
    "pygments",
    "shellingham",
    "markdown_it",
    "flwr",
    "grpc",
    "onnx",
    "torch",
    "sklearn",
)
"""Libraries that `pip install umbel` does not bring: it shall stay small."""


@dataclass(frozen=True, slots=True)
class World:
    """A fleet whose gateway runs, and where its devices live."""

    fleet: FleetDir
    store: Store
    clock: ManualClock
    root: Path

    def token(self) -> str:
        return invite(self.fleet, self.store).to_text()

    def device(self, name: str = "d1") -> DeviceHome:
        home = DeviceHome(self.root / name)
        enroll(home, self.token(), name=name, now_s=self.clock.now_s)
        return home

    def stored(self) -> int:
        return sum(each.sealed + each.opened + each.rejected for each in self.store.batches.deliveries())

    def predictions(self) -> int:
        """How many predictions the opener finds in what devices sent."""
        return self.counted("predictions")

    def counted(self, name: str) -> int:
        """The sum of a counter over what the opener finds."""
        opener = Opener(self.store, self.fleet.telemetry_private())
        while opener.run_once():
            pass
        return sum(rollup.counters.get(name, 0) for rollup in self.store.rollups.all())


def make_world(root: Path, clock: ManualClock) -> FleetDir:
    fleet = make_fleet(root / "garden", clock=clock)
    fleet.release_key.write_bytes(RELEASE.to_pem())
    fleet.release_pub.write_bytes(RELEASE.public.raw)
    return fleet


def open_device(home: DeviceHome, **options: Any) -> Device:
    return Device.open(home.path, **{"online": False, **options})


def through(home: DeviceHome, address: str) -> None:
    """Let a device reach its gateway at another address."""
    home.write_identity(dataclasses.replace(home.identity, gateway=address))


def predict_once(device: Device) -> None:
    device._telemetry.window(model="digits", version=1, variant="fp32", engine="onnx").observe(80_000, 3, 0.9)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; a hang ends in a failure."""
    deadline, pause = time.monotonic() + 20, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.02)


def large_package() -> bytes:
    """Digits 2 with two megabytes of nothing that compresses beside it: many chunks."""
    package = opened(release(2))
    noise = np.random.default_rng(1).bytes(2 << 20)
    files = {name: package.file(name) for name in package.manifest.files}
    return write_package(package.manifest, {**files, "noise.bin": noise}, RELEASE)
