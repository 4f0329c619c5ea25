"""``umbel doctor`` on a device with a real gateway: healthy says so, and each fault has its line and its cure."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from model_packages import RELEASE, first
from service_fleet import ManualClock, make_fleet, running
from umbel._data.consent import Consent
from umbel._data.dataset import DataSet
from umbel._doctor import Finding, _clock, _shown_by_the_gateway, examine
from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel._releases.shelf import Shelf
from umbel._review.store import ReviewStore
from umbel._rounds.conditions import Conditions
from umbel._telemetry.spool import Sealed, Spool
from umbel.cli import app
from umbel_server.fleet.invite import invite

YEAR_S = 365 * 86400.0


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceHome]:
    """A device with a model and examples, and its gateway."""
    root, clock = tmp_path_factory.mktemp("doctor"), ManualClock()
    fleet = make_fleet(root / "garden", clock=clock)
    fleet.release_key.write_bytes(RELEASE.to_pem())
    fleet.release_pub.write_bytes(RELEASE.public.raw)
    with running(fleet, clock=clock) as (_, store):
        home = DeviceHome(root / "rose")
        enroll(home, invite(fleet, store).to_text(), name="rose", now_s=clock.now_s)
        shelf = Shelf(home.shelf, home.release_authority())
        shelf.install(first())
        active = shelf.active("digits")
        assert active is not None
        manifest = shelf.package(active).manifest
        with DataSet(home, manifest) as data:
            data.add(np.zeros((3, *manifest.contract.fields[0].shape), np.float32), [1, 2, 3], source="user")
        yield home


@pytest.fixture
def home(healthy: DeviceHome, tmp_path: Path) -> DeviceHome:
    shutil.copytree(healthy.path, tmp_path / "rose")
    return DeviceHome(tmp_path / "rose")


def look(home: DeviceHome, *, ahead_s: float = 0.0, online: bool = False) -> dict[str, Finding]:
    return {each.check: each for each in examine(home, now_s=time.time() + ahead_s, online=online)}


def wrong(found: dict[str, Finding]) -> list[str]:
    return [each.check for each in found.values() if each.state == "wrong"]


def test_a_healthy_device_is_called_so_and_nothing_is_changed(home: DeviceHome) -> None:
    files = [
        path for path in home.path.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    ]
    before = [path.read_bytes() for path in files]
    found = look(home, online=True)
    states = {check: each.state for check, each in found.items()}
    assert (states.pop("agent"), states.pop("superlink")) == ("warning", "warning")  # Neither runs here,
    assert states.pop("releases") == "warning"  # so nobody has asked what is signed.
    states.pop("disk")  # As full as it is.
    assert set(states.values()) == {"ok"}, found
    assert {
        "clock",
        "certificate",
        "gateway",
        "model digits",
        "engines",
        "data",
        "reviews",
        "ledger",
        "spool",
    } <= set(states)
    assert "3 of model digits" in found["data"].found
    assert [path.read_bytes() for path in files] == before


def test_a_machine_that_is_no_device_is_told_to_enroll(tmp_path: Path) -> None:
    found = look(DeviceHome(tmp_path))
    assert list(found) == ["enrolled"]
    assert "umbel enroll TOKEN" in found["enrolled"].found


def test_a_clock_that_is_a_year_ahead_is_told_from_a_certificate_that_has_ended(home: DeviceHome) -> None:
    ahead = look(home, ahead_s=YEAR_S, online=True)
    assert wrong(ahead) == ["clock"]
    assert "the clock is ahead; set it" in ahead["clock"].found
    alone = look(home, ahead_s=YEAR_S)
    assert wrong(alone) == ["certificate"]
    assert "umbel enroll TOKEN --again" in alone["certificate"].found


def test_a_clock_that_is_a_year_behind_is_seen_without_the_network(home: DeviceHome) -> None:
    found = look(home, ahead_s=-YEAR_S)
    assert wrong(found) == ["clock"]
    assert "before this device's certificate was made" in found["clock"].found


def test_what_the_gateway_shows_tells_the_time_where_it_does_not_answer(home: DeviceHome) -> None:
    shown = _shown_by_the_gateway(home)
    assert shown is not None
    assert shown.begins_s <= time.time() < shown.ends_s
    found = _clock(home, time.time() + YEAR_S, accepted=False, shown=shown)
    assert (found.state, "the gateway's certificate holds" in found.found) == ("wrong", True)


def test_a_server_of_another_fleet_tells_no_time(home: DeviceHome, tmp_path: Path) -> None:
    other = make_fleet(tmp_path / "other")
    shutil.copy(other.ca_pem, home.ca_certificate)
    assert _shown_by_the_gateway(home) is None


def test_a_clock_that_went_back_since_the_gateway_answered_is_a_warning(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        spool.contacted(time.time() + 7200)
    found = look(home)["clock"]
    assert (found.state, "Set the clock" in found.found) == ("warning", True)


def test_one_report_waits_and_two_wait(home: DeviceHome) -> None:
    with Spool(home.spool) as spool:
        for number, said in ((1, "1 report waits ("), (2, "2 reports wait (")):
            spool.append(Sealed(bytes([number] * 16), b"header", b"ciphertext"))
            assert look(home)["spool"].found.startswith(said)


def test_a_certificate_that_was_not_renewed_is_a_warning_before_it_ends(home: DeviceHome) -> None:
    life = home.certificate_validity()
    late = life.begins_s + 0.9 * (life.ends_s - life.begins_s)
    found = look(home, ahead_s=late - time.time())["certificate"]
    assert (found.state, "was not renewed" in found.found) == ("warning", True)


def test_a_gateway_that_does_not_answer_is_one_line_and_the_rest_is_looked_at(home: DeviceHome) -> None:
    fields = json.loads(home.identity_file.read_text())
    home.identity_file.write_text(json.dumps(fields | {"gateway": "127.0.0.1:1", "superlink": "127.0.0.1:1"}))
    found = look(home, online=True)
    assert wrong(found) == ["gateway"]
    assert "check that the gateway runs and is reachable" in found["gateway"].found
    assert (found["superlink"].state, "no rounds until it does" in found["superlink"].found) == (
        "warning",
        True,
    )
    assert found["model digits"].state == "ok"


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(os.urandom(len(content)))


def alter(home: DeviceHome, table: str) -> None:
    """Change one row of the reviews: the file is a good database."""
    with contextlib.closing(ReviewStore(home.reviews, home.reviews_key)) as store:
        store.add("digits", [("a", 1.0, b"one"), ("b", 2.0, b"two")])
        store.decide("digits", "c", b"decided", at_s=3.0)
        if table == "records":
            store.clear("digits")
    with contextlib.closing(sqlite3.connect(home.reviews)) as db, db:
        changed = f"UPDATE {table} SET sealed = zeroblob(length(sealed)) WHERE number = 1"
        assert db.execute(changed).rowcount == 1


FAULTS: dict[str, tuple[Callable[[DeviceHome], object], str, str]] = {
    "an open key": (lambda home: home.tls_key.chmod(0o640), "permissions", "chmod 600"),
    "an open home": (lambda home: home.path.chmod(0o755), "permissions", "chmod 700"),
    "an open data key": (lambda home: home.examples_key.chmod(0o604), "permissions", "chmod 600"),
    "a missing policy": (lambda home: home.policy.unlink(), "permissions", "umbel enroll TOKEN --again"),
    "a damaged certificate": (lambda home: damage(home.tls_certificate), "certificate", "umbel enroll TOKEN"),
    "a damaged ledger": (lambda home: damage(home.ledger), "ledger", "Restore the newest copy"),
    "a damaged spool": (lambda home: damage(home.spool), "spool", "delete it"),
    "damaged examples": (lambda home: damage(home.examples), "data", "umbel data delete --all"),
    "damaged reviews": (
        lambda home: home.reviews.write_bytes(b"no database" * 500),
        "reviews",
        "reviews.db is damaged",
    ),
    "an altered review": (lambda home: alter(home, "cases"), "reviews", "reviews.db is damaged"),
    "an altered decision": (lambda home: alter(home, "records"), "reviews", "reviews.db is damaged"),
    "a lost data key": (lambda home: home.examples_key.unlink(), "data", "is missing, the key"),
    "damaged consent": (
        lambda home: home.consent.write_text("?"),
        "training",
        "nobody knows what the user allows",
    ),
    "a damaged model": (
        lambda home: [damage(path) for path in home.shelf.rglob("*.umbel")],
        "model digits",
        "install it again",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_a_line_that_names_the_cure(home: DeviceHome, name: str) -> None:
    spoil, check, cure = FAULTS[name]
    spoil(home)
    found = look(home)
    assert check in wrong(found), found
    assert cure in found[check].found


def test_a_device_whose_user_nobody_asked_does_not_say_that_it_trains(home: DeviceHome) -> None:
    said = look(home)["training"].found
    assert f"umbel data consent --grant --home {home.path}" in said
    assert "whenever a round asks" not in said
    with home.lock():  # An agent that runs and has not asked has a file.
        assert "whenever a round asks" in look(home)["training"].found
    Consent(home).grant()
    assert "whenever a round asks" in look(home)["training"].found


def test_training_that_waits_for_the_users_word_says_how_to_pass_it_on(home: DeviceHome) -> None:
    Conditions(home).require(consent=True)
    found = look(home)["training"]
    assert (found.state, "umbel data consent --grant" in found.found) == ("warning", True)
    assert f"--home {home.path}" in found.found
    Consent(home).grant()
    assert look(home)["training"].state == "ok"
    Consent(home).revoke()  # That is an answer: nobody is to ask again.
    assert look(home)["training"].state == "ok"


def test_the_command_prints_a_table_and_ends_with_one_when_something_is_wrong(home: DeviceHome) -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["doctor", "--home", str(home.path), *words], env={"COLUMNS": "300"})
        return result.exit_code, result.stdout

    code, text = run("--offline", "--json")
    body = json.loads(text)
    assert (code, body["healthy"]) == (0, True)
    assert {each["check"] for each in body["findings"]} == set(look(home))
    home.spool.write_bytes(b"no database" * 1000)
    code, text = run("--offline")
    assert (code, "WRONG" in text, "delete it" in text) == (1, True, True)
    code, text = run("--offline", "--json")
    assert (code, json.loads(text)["healthy"]) == (1, False)
