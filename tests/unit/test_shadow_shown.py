"""What a device says of a version that a rollout tries on it: which, since when, on how many examples, within which bounds."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace

import pytest
from click.testing import CliRunner

from device_world import make_world
from model_packages import digits, release
from service_fleet import ManualClock, running
from umbel import Device, ShadowRelease
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel._privacy import account
from umbel._releases.room import beside_bytes
from umbel._releases.shelf import Shelf, open_shelf
from umbel._releases.slots import Beside, Slots
from umbel.cli import app
from umbel_server.fleet.invite import invite

SINCE_S = 1.8e9
NAME = hashlib.sha256(release(3)).hexdigest()
WANTED = Beside(NAME, 3, one_in=1, since_s=SINCE_S)


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> DeviceHome:
    root, clock = tmp_path_factory.mktemp("shown"), ManualClock()
    fleet, home = make_world(root, clock), DeviceHome(root / "rose")
    with running(fleet, clock=clock) as (_, store):
        enroll(home, invite(fleet, store).to_text(), name="rose", now_s=clock())
    shelf(home).install(release(2))
    return home


@pytest.fixture
def home(enrolled: DeviceHome) -> DeviceHome:
    shelf(enrolled).leave_beside("digits")
    return enrolled


def shelf(home: DeviceHome) -> Shelf:
    return open_shelf(home, clock=lambda: SINCE_S)


def shown(home: DeviceHome) -> tuple[ShadowRelease, ...]:
    with Device.open(home.path, online=False) as device:
        return device.status().shadows


def typed(home: DeviceHome, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--home", str(home.path)], env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_a_device_on_which_nothing_is_tried_says_nothing_of_it(home: DeviceHome) -> None:
    assert shown(home) == account(home).shadows == ()
    assert "shadow" not in typed(home, "status")
    assert "is tried" not in typed(home, "privacy")


def test_what_is_tried_is_shown_with_its_bounds_and_counted_over_processes(home: DeviceHome) -> None:
    size = shelf(home).install_beside(release(3), WANTED).size
    turn, counts = threading.Event(), []
    for _ in range(2):
        with Device.open(home.path, online=False) as device:
            model = device.model("digits")
            before = sum(each.examples for each in device.status().shadows)
            while sum(each.examples for each in device.status().shadows) < before + 3:
                model.predict(digits().held_out.x[0])
                turn.wait(0.001)
                device._follower.follow()
        counts.append(shown(home)[0].examples)
    assert counts[1] >= counts[0] + 3
    expected = ShadowRelease("digits", 3, 2, SINCE_S, counts[1], 1, 0.05, beside_bytes(size), "")
    assert shown(home) == account(home).shadows == (expected,)
    bounds = f"every prediction, within 5 % of one core and {beside_bytes(size) / 2**20:.0f} MiB of memory"
    since = "since 2027-01-15 08:00:00 UTC"
    assert f"digits 3 beside 2 {since}: {counts[1]} examples, {bounds}" in typed(home, "status")
    told = f"Version 3 of model digits is tried {since} beside version 2, which answers: on {bounds}; {counts[1]} examples"
    assert told in typed(home, "privacy")
    for command in ("status", "privacy"):
        (found,) = json.loads(typed(home, command, "--json"))["shadows"]
        assert (found["version"], found["since_s"], found["examples"]) == (3, SINCE_S, counts[1])


def test_what_is_wanted_and_not_run_is_shown_with_its_reason_and_shares_nothing(home: DeviceHome) -> None:
    shelf(home).versions.accompany("digits", replace(WANTED, why="would take too much"))
    (found,) = shown(home)
    assert (found.why, found.memory_bytes, found.examples) == ("would take too much", None, 0)
    assert "not run: it would take too much" in typed(home, "status")
    assert "is tried" not in typed(home, "privacy")


def test_a_wish_that_is_repeated_keeps_its_date_and_its_count_and_another_has_its_own() -> None:
    slots = Slots("a" * 64).accompanied(WANTED).asked(NAME, 7).asked("b" * 64, 5)
    again = slots.accompanied(replace(WANTED, one_in=9, since_s=SINCE_S + 60)).beside
    assert again is not None
    assert (again.one_in, again.since_s, again.examples) == (9, SINCE_S, 7)
    read = Slots.from_json(slots.to_json()).beside
    assert read is not None
    assert (read.since_s, read.examples) == (SINCE_S, 7)
    other = slots.accompanied(Beside("b" * 64, 4, since_s=SINCE_S + 60)).beside
    assert other is not None
    assert (other.since_s, other.examples) == (SINCE_S + 60, 0)


def test_what_an_older_umbel_began_has_no_date() -> None:
    old = json.loads(Slots("a" * 64, beside=WANTED).to_json())
    del old["beside"]["since_s"], old["beside"]["examples"]
    read = Slots.from_json(json.dumps(old).encode()).beside
    assert read == WANTED
    assert read is not None
    assert (read.since_s, read.examples) == (0, 0)
