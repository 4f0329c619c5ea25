"""A fleet changes its telemetry key: what was sealed before arrives as what is sealed after."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service_fleet import DAY_S, HOUR_S, ManualClock, make_fleet, running
from umbel import Device
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel_proto.errors import StorageError
from umbel_server.cli import fleet as fleet_app
from umbel_server.fleet import rotate_command
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.rotate_command import rotate_telemetry_key
from umbel_server.monitor.opener import Opener
from umbel_server.store.store import Store


def visits(store: Store) -> int:
    return sum(rollup.counters.get("app.visit", 0) for rollup in store.rollups.all())


def seal_one(home: DeviceHome) -> None:
    with Device.open(home.path, online=False) as device:
        device.telemetry.count("visit")


def key_of(home: DeviceHome) -> str:
    return home.telemetry_seal_key().key_id


def test_reports_of_before_and_after_open_while_gateway_and_opener_run(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_fleet(tmp_path / "garden", clock=clock)
    with running(fleet, clock=clock) as (_, store):
        opener = Opener(store, fleet.telemetry_private(), others=fleet.telemetry_privates)
        clock.advance(-17 * HOUR_S)
        home = DeviceHome(tmp_path / "rose")
        enroll(home, invite(fleet, store).to_text(), now_s=clock.now_s)
        clock.advance(17 * HOUR_S)
        seal_one(home)
        before = key_of(home)
        result = CliRunner().invoke(fleet_app, ["rotate", "--fleet", str(fleet.path), "--json"])
        said = json.loads(result.stdout)
        assert (said["retired"], said["deleted"]) == (before, [])
        with Device.open(home.path, online=False) as device:
            device.telemetry.count("visit")
            device.sync()  # Renews, and seals the rest to whichever key.
            assert key_of(home) == said["key_id"] != before
            device.telemetry.count("visit")
            device.sync()
        assert opener.run_once() == 3
        assert visits(store) == 3
        [delivery] = store.batches.deliveries()
        assert (delivery.opened, delivery.rejected) == (3, 0)
        # An opener that starts only now, too.
        seal_one(home)
        rotate_telemetry_key(fleet, keep_days=90, now_s=clock.now_s)
        with Device.open(home.path, online=False) as device:
            device.sync()
        assert Opener(store, fleet.telemetry_private(), others=fleet.telemetry_privates).run_once() == 1
        assert visits(store) == 4


def test_keys_are_deleted_when_they_were_retired_long_ago(tmp_path: Path) -> None:
    fleet, clock = make_fleet(tmp_path / "garden"), ManualClock()
    _, first, deleted = rotate_telemetry_key(fleet, keep_days=90, now_s=clock.now_s)
    assert deleted == []
    file = fleet.retired_telemetry_key(first)
    assert file.stat().st_mode & 0o077 == 0
    os.utime(file, (clock.now_s - 89 * DAY_S,) * 2)
    _, second, deleted = rotate_telemetry_key(fleet, keep_days=90, now_s=clock.now_s)
    assert deleted == []
    os.utime(file, (clock.now_s - 91 * DAY_S,) * 2)
    third, _, deleted = rotate_telemetry_key(fleet, keep_days=90, now_s=clock.now_s)
    assert deleted == [first]
    held = [each.public.key_id for each in fleet.telemetry_privates()]
    assert held[0] == third
    assert second in held
    assert first not in held


@pytest.mark.parametrize("survives", range(3))
def test_a_rotation_that_is_killed_leaves_no_batch_without_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    """Whatever key devices are given, the opener holds its private half."""
    fleet = make_fleet(tmp_path / "garden")
    from umbel_server import files

    write, written = files.write_atomically, []

    def killed(path: Path, data: bytes, **options: int) -> None:
        if len(written) == survives:
            raise KeyboardInterrupt
        written.append(path)
        write(path, data, **options)

    monkeypatch.setattr(files, "write_atomically", killed)
    before = fleet.telemetry_public().key_id
    with pytest.raises(KeyboardInterrupt):
        rotate_telemetry_key(fleet, keep_days=90, now_s=0.0)
    held = {each.public.key_id for each in fleet.telemetry_privates()}
    assert {before, fleet.telemetry_public().key_id} <= held


def test_where_the_private_key_is_not_nothing_is_rotated(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "garden")
    fleet.telemetry_key.unlink()
    public = fleet.telemetry_pub.read_bytes()
    with pytest.raises(StorageError, match="telemetry key"):
        rotate_telemetry_key(FleetDir.open(fleet.path), keep_days=rotate_command.KEEP_DAYS, now_s=0.0)
    assert fleet.telemetry_pub.read_bytes() == public
