"""``umbel model list``, ``use`` and ``retry``: what an owner sees and changes of a device's versions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from model_packages import RELEASE, first, opened, release, resigned
from umbel._home.directory import DeviceHome, Identity
from umbel._releases.shelf import Shelf, open_shelf
from umbel.cli import app
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.ids import DeviceId, FleetId


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    home = DeviceHome(tmp_path / "d1")
    home.make()
    home.write(home.release_key, RELEASE.public.raw, secret=False)
    home.write_identity(Identity(FleetId("garden"), DeviceId("d1"), "127.0.0.1:1", ""))
    return home


def held(home: DeviceHome) -> Shelf:
    return open_shelf(home, clock=lambda: 1_700_000_000.0)


def install(home: DeviceHome, data: bytes) -> None:
    held(home).install(data, clock=itertools.count().__next__)


def run(home: DeviceHome, *words: str) -> str:
    done = CliRunner().invoke(app, ["model", *words, "--home", str(home.path)])
    if done.exception is not None:
        raise done.exception
    return done.output


def active(home: DeviceHome) -> int:
    installed = held(home).active("digits")
    assert installed is not None
    return installed.version


def test_the_list_tells_the_slots_and_what_failed(home: DeviceHome) -> None:
    install(home, first())
    install(home, release(2))
    strange = {"int8.safetensors": opened(first()).file("int8.safetensors")}
    wrong = resigned(release(2), lambda body: body.update(version=3), **strange)
    with pytest.raises(PackageError):
        install(home, wrong)
    [model] = json.loads(run(home, "list", "--json"))["models"]
    assert model["model"] == "digits"
    assert (model["active"]["version"], model["previous"]["version"]) == (2, 1)
    [failure] = model["failed"]
    assert (failure["version"], failure["at_s"]) == (3, 1_700_000_000.0)
    table = run(home, "list")
    assert "previous" in table
    assert "golden" in table


def test_a_device_without_models_has_an_empty_list(home: DeviceHome) -> None:
    assert json.loads(run(home, "list", "--json")) == {"models": [], "bytes": 0, "quota_bytes": None}


def test_an_owner_goes_back_and_newer_releases_are_still_taken(home: DeviceHome) -> None:
    install(home, first())
    install(home, release(2))
    assert "digits answers by version 1; 2 is not used again" in run(home, "use", "digits", "previous")
    assert active(home) == 1
    assert not held(home).wants("digits", 2, opened(release(2)).sha256)
    install(home, release(3))
    assert active(home) == 3


def test_a_retry_takes_back_going_back(home: DeviceHome) -> None:
    install(home, first())
    install(home, release(2))
    run(home, "use", "digits", "previous")
    assert "digits: 2 may be tried again" in run(home, "retry", "digits")
    assert held(home).wants("digits", 2, opened(release(2)).sha256)
    assert "no version had failed" in run(home, "retry", "digits")


def test_going_back_by_hand_is_no_failure_for_telemetry(home: DeviceHome) -> None:
    install(home, first())
    install(home, release(2))
    run(home, "use", "digits", "previous")
    assert held(home).versions.untold() == []


def test_what_cannot_be_done_is_a_sentence(home: DeviceHome) -> None:
    with pytest.raises(UsageError, match="No model 'digits' is installed"):
        run(home, "use", "digits", "previous")
    with pytest.raises(UsageError, match="No model 'digits' is known"):
        run(home, "retry", "digits")
    install(home, first())
    with pytest.raises(UsageError, match="no version of digits before the active 1"):
        run(home, "use", "digits", "previous")
    with pytest.raises(UsageError, match="not an enrolled device"):
        run(DeviceHome(home.path / "nothing"), "list")


def test_the_commands_of_the_workbench_stand_beside_those_of_the_device() -> None:
    listed = CliRunner().invoke(app, ["model", "--help"]).output
    assert {"list", "use", "retry", "build", "pack", "show"} <= set(listed.split())
    assert "FILE" in CliRunner().invoke(app, ["model", "show", "--help"]).output
