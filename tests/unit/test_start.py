"""What a process does before its first prediction, and what it leaves for later. Laws: nothing is imported that a
prediction does not need, and what talks to the gateway does not begin beside an application that begins."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from model_packages import RELEASE, release
from umbel import Device
from umbel._fleet.uplink import Uplink
from umbel._home.directory import DeviceHome, Identity
from umbel._releases.shelf import open_shelf
from umbel._telemetry.rhythm import REST_S
from umbel._telemetry.spool import Spool
from umbel._telemetry.telemetry import Telemetry
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.seal import SealPrivateKey

LATER = ("bz2", "cryptography.hazmat.primitives.ciphers", "decimal", "email", "google", "grpc", "h2",
         "importlib.metadata", "shutil", "ssl", "statistics", "tomllib", "umbel._review.review",
         "umbel._review.store", "umbel._telemetry.comparison")  # fmt: skip
"""Of reports, failures, settings, installing. Together they took as long as all of umbel."""
FIRST = """
import sys, umbel
with umbel.Device.open(sys.argv[1], online=False) as device:
    said = device.model("digits").predict([[[0.0] * 8] * 8])
    print(*sys.modules)
assert said.decision == "review"  # It waits for a person: that it does costs no import either.
"""


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    """A device without a model, whose gateway does not answer."""
    home = DeviceHome(tmp_path / "device")
    home.make()
    home.write_identity(Identity(FleetId("garden"), DeviceId("d1"), "127.0.0.1:1", ""))
    home.write_telemetry_key(SealPrivateKey(bytes(range(32))).public)
    home.release_key.write_bytes(RELEASE.public.raw)
    return home


def install(home: DeviceHome) -> None:
    open_shelf(home, clock=time.time).install(release(2))


def rest_s(device: Device) -> float:
    assert isinstance(device._uplink, Uplink)
    return device._uplink._rest_s


def test_before_its_first_prediction_a_process_imports_nothing_that_only_something_else_needs(
    home: DeviceHome,
) -> None:
    install(home)
    command = [sys.executable, "-c", FIRST, str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not set(LATER).intersection(done.stdout.split())


def test_an_uplink_does_nothing_while_it_rests_and_ends_at_once_when_told(home: DeviceHome) -> None:
    turns: list[None] = []
    with Spool(home.spool) as spool:
        telemetry = Telemetry(home, spool, clock=time.time)
        uplink = Uplink(
            home,
            spool=spool,
            telemetry=telemetry,
            delivery=None,
            follow=lambda: turns.append(None),
            rest_s=3600.0,
            clock=time.time,
        )
        uplink.start()
        telemetry.window(model="digits", version=1, variant="fp32", engine="onnx").observe(80_000, 1, 0.9)
        uplink.close()
        assert not turns
        assert spool.depth().batches == 1


def test_a_device_rests_only_where_there_is_a_model_to_predict_with(home: DeviceHome) -> None:
    with Device.open(home.path) as device:
        assert rest_s(device) == 0.0
    install(home)
    with Device.open(home.path) as device:
        assert rest_s(device) == REST_S
    with Device.open(home.path, poll_s=0.1) as device:
        assert rest_s(device) == 0.1
