"""The service's side of signed delivery: what it signs, when, with whose keys, and what a crash leaves of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from crashing import crashed
from crashing_trust import NOW_S, newest
from crashing_trust import release as sign
from model_packages import RELEASE, release, resigned
from release_trust import MemoryTrust
from service_fleet import ManualClock, make_fleet
from umbel._home.directory import DeviceHome
from umbel_proto.errors import RefusedError, StorageError, UsageError
from umbel_proto.keys import SigningKey
from umbel_server.cli import fleet as fleet_app
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.trust.metadata import DAY_S, State, signer, to_bytes
from umbel_server.trust.repository import MAX_METADATA_BYTES, Repository


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_S)


@pytest.fixture
def fleet(tmp_path: Path, clock: ManualClock) -> FleetDir:
    made = make_fleet(tmp_path / "garden", clock=clock)
    made.release_key.write_bytes(RELEASE.to_pem())
    made.release_pub.write_bytes(RELEASE.public.raw)
    return made


def published(fleet: FleetDir, version: int, clock: ManualClock, **options: Any) -> None:
    with fleet.open_store(clock=clock) as store:
        publish(fleet, store, release(version), **options)


def versions(state: State) -> dict[str, int]:
    names = ("root", "targets", "snapshot", "timestamp", *state.lines)
    return {name: state.get(name).signed.version for name in names}


def key_file(path: Path) -> Path:
    path.write_bytes(SigningKey.generate().to_pem())
    return path


def run(*args: object, code: int = 0) -> Any:
    result = CliRunner().invoke(fleet_app, ["trust", *map(str, args)])
    if code == 0:
        assert result.exception is None, result.output
        return result.output
    return result.exception


# What is signed


def test_a_release_is_signed_once_under_its_model(fleet: FleetDir, clock: ManualClock) -> None:
    published(fleet, 2, clock)
    repository = Repository.of(fleet, clock=clock)
    once = versions(repository.read())
    assert once == {"root": 1, "targets": 2, "snapshot": 3, "timestamp": 3, "digits": 2}
    published(fleet, 2, clock)
    assert versions(repository.read()) == once
    [target] = repository.read().lines["digits"].signed.targets.values()
    assert target.path == "digits/2.umbel"
    assert target.length == len(release(2))
    assert target.custom["engines"]


def test_other_content_under_a_version_that_is_signed_is_refused(fleet: FleetDir, clock: ManualClock) -> None:
    published(fleet, 2, clock)
    other = resigned(release(2), lambda body: body["lineage"].update(other=1))
    with fleet.open_store(clock=clock) as store, pytest.raises(RefusedError, match="new version"):
        publish(fleet, store, other)


def test_a_new_model_needs_the_targets_key_and_the_next_release_does_not(
    fleet: FleetDir, clock: ManualClock, tmp_path: Path
) -> None:
    away = fleet.targets_key.rename(tmp_path / "vault.key")
    with pytest.raises(UsageError, match="umbel fleet trust rotate digits"):
        published(fleet, 2, clock)
    with fleet.open_store(clock=clock) as store:
        assert store.releases.all() == ()
    run("rotate", "digits", "--new", fleet.release_key, "--sign", away, "--fleet", fleet.path)
    published(fleet, 2, clock)
    published(fleet, 3, clock)
    assert set(Repository.of(fleet, clock=clock).read().lines["digits"].signed.targets) == {
        "digits/2.umbel",
        "digits/3.umbel",
    }


def test_a_key_that_may_not_sign_for_a_model_is_told_so(fleet: FleetDir, clock: ManualClock) -> None:
    published(fleet, 2, clock)
    with pytest.raises(UsageError, match="does not sign for digits"):
        published(fleet, 3, clock, key=SigningKey.generate())


@pytest.mark.parametrize("name", ["root", "targets", "snapshot", "timestamp"])
def test_no_model_is_called_as_a_role_is(fleet: FleetDir, clock: ManualClock, name: str) -> None:
    key = signer(RELEASE)
    with pytest.raises(UsageError, match="cannot be called"):
        Repository.of(fleet, clock=clock).rotate_line(name, [key.public_key], [key])


# When


def test_what_is_newest_is_signed_anew_at_half_its_life_when_a_device_asks(
    fleet: FleetDir, clock: ManualClock
) -> None:
    repository = Repository.of(fleet, clock=clock)
    first = repository.file("timestamp", 0)
    clock.advance(DAY_S / 2 - 1)
    assert repository.file("timestamp", 0) == first
    clock.advance(1)
    second = repository.file("timestamp", 0)
    assert second is not None
    assert json.loads(second)["signed"]["version"] == 2
    assert versions(repository.read())["snapshot"] == 1
    clock.advance(3 * DAY_S)
    repository.file("root", 2)
    assert versions(repository.read())["snapshot"] == 2


def test_a_gateway_that_runs_sees_what_another_process_releases(fleet: FleetDir, clock: ManualClock) -> None:
    gateway = Repository.of(fleet, clock=clock)
    gateway.file("timestamp", 0)
    published(fleet, 2, clock)
    found = gateway.file("timestamp", 0)
    assert found is not None
    assert json.loads(found)["signed"]["version"] == 3


def test_what_is_asked_for_by_a_path_is_refused_or_not_there(fleet: FleetDir, clock: ManualClock) -> None:
    repository = Repository.of(fleet, clock=clock)
    assert repository.file("digits", 1) is None
    assert repository.file("root", 0) is None
    for role in ("../online/x", "", ".", "a/b", "x" * 64):
        with pytest.raises(UsageError, match="name"):
            repository.file(role, 1)


def test_more_than_devices_take_is_not_signed(fleet: FleetDir, clock: ManualClock) -> None:
    repository = Repository.of(fleet, clock=clock)
    before = versions(repository.read())

    def grown(state: State) -> State:
        root = dataclasses.replace(state).root
        root.signed.unrecognized_fields["x"] = "y" * MAX_METADATA_BYTES
        return dataclasses.replace(state, root=type(root)(root.signed, root.signatures))

    with pytest.raises(UsageError, match="more than"):
        repository.update(grown)
    assert versions(repository.read()) == before


def test_damage_is_a_sentence(fleet: FleetDir, clock: ManualClock) -> None:
    fleet.trust.joinpath("metadata", "1.snapshot.json").write_bytes(b"{")
    with pytest.raises(StorageError, match="backup"):
        Repository.of(fleet, clock=clock).read()


# Keys


def test_a_root_that_needs_two_signatures_is_in_force_after_both(
    fleet: FleetDir, clock: ManualClock, tmp_path: Path
) -> None:
    one, two = key_file(tmp_path / "one"), tmp_path / "two.pub"
    other = SigningKey.generate()
    two.write_bytes(other.public.raw)
    said = run(
        "rotate",
        "root",
        "--new",
        one,
        "--new",
        two,
        "--threshold",
        2,
        "--sign",
        fleet.root_key,
        "--fleet",
        fleet.path,
    )
    assert "needs 1 more" in said
    repository = Repository.of(fleet, clock=clock)
    assert repository.read().root.signed.version == 1
    second = tmp_path / "two"
    second.write_bytes(other.to_pem())
    assert "in force" in run("sign", second, "--fleet", fleet.path)
    assert repository.read().root.signed.version == 2
    assert repository.staged() == {}
    # One of the two alone renews nothing.
    assert "needs 1 more" in run("sign", one, "--fleet", fleet.path)
    assert repository.read().root.signed.version == 2
    assert isinstance(run("sign", fleet.root_key, "--fleet", fleet.path, code=1), UsageError)


def test_what_holds_is_signed_anew_with_its_key_and_holds_longer(fleet: FleetDir, clock: ManualClock) -> None:
    published(fleet, 2, clock)
    repository = Repository.of(fleet, clock=clock)
    before = repository.read()
    clock.advance(60 * DAY_S)
    assert repository.sign([signer(RELEASE)]) == {"digits": 0}
    after = repository.read()
    assert after.lines["digits"].signed.expires > before.lines["digits"].signed.expires
    assert after.lines["digits"].signed.targets == before.lines["digits"].signed.targets
    assert versions(after)["targets"] == versions(before)["targets"]


def test_the_key_of_the_service_is_replaced_and_the_old_one_is_gone(
    fleet: FleetDir, clock: ManualClock
) -> None:
    [old] = fleet.trust.glob("online/*.key")
    run("rotate", "online", "--sign", fleet.root_key, "--fleet", fleet.path)
    [new] = fleet.trust.glob("online/*.key")
    assert new != old
    state = Repository.of(fleet, clock=clock).read()
    assert state.root.signed.roles["timestamp"].keyids == [new.stem]
    assert [*state.timestamp.signatures] == [*state.snapshot.signatures] == [new.stem]


def test_a_stolen_release_key_signs_nothing_more_once_the_line_has_another(
    fleet: FleetDir, clock: ManualClock, tmp_path: Path
) -> None:
    published(fleet, 2, clock)
    new = key_file(tmp_path / "new.key")
    run("rotate", "digits", "--new", new, "--sign", fleet.targets_key, "--fleet", fleet.path)
    with pytest.raises(UsageError, match="does not sign for digits"):
        published(fleet, 3, clock)
    published(fleet, 3, clock, key=SigningKey.from_pem(new.read_bytes()))


def test_a_line_and_the_list_that_names_its_key_wait_for_each_other(
    fleet: FleetDir, clock: ManualClock, tmp_path: Path
) -> None:
    published(fleet, 2, clock)
    new, public = key_file(tmp_path / "new.key"), tmp_path / "new.pub"
    public.write_bytes(SigningKey.from_pem(new.read_bytes()).public.raw)
    said = run("rotate", "digits", "--new", public, "--sign", fleet.targets_key, "--fleet", fleet.path)
    assert "digits is not in force yet: it needs 1 more" in said
    assert "targets is not in force yet: it waits for the others" in said
    repository = Repository.of(fleet, clock=clock)
    assert versions(repository.read())["targets"] == 2
    with pytest.raises(RefusedError, match="about to change"):
        published(fleet, 3, clock)
    run("sign", new, "--fleet", fleet.path)
    assert versions(repository.read())["targets"] == 3


def test_a_lost_targets_key_is_replaced_with_the_root(fleet: FleetDir, tmp_path: Path) -> None:
    fleet.targets_key.unlink()
    new = key_file(tmp_path / "new.key")
    assert "in force" in run(
        "rotate", "targets", "--new", new, "--sign", fleet.root_key, "--fleet", fleet.path
    )
    told = json.loads(run("show", "--json", "--fleet", fleet.path))
    [targets] = [role for role in told["roles"] if role["role"] == "targets"]
    assert targets["keys"] == [signer(SigningKey.from_pem(new.read_bytes())).public_key.keyid]
    assert told["waiting"] == {}


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("rotate", "root"), "--new FILE"),
        (("rotate", "online", "--new", "KEY"), "leave --new away"),
        (("rotate", "digits", "--new", "KEY", "--threshold", 2), "threshold is for root"),
        (("rotate", "root", "--new", "KEY", "--threshold", 2), "cannot give 2"),
        (("rotate", "No Name", "--new", "KEY"), "not a name"),
        (("sign", "KEY"), "sign for nothing"),
        (("sign", "nowhere"), "cannot be read"),
        (("rotate", "root", "--new", "nowhere"), "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    fleet: FleetDir, tmp_path: Path, args: tuple[object, ...], why: str
) -> None:
    key = key_file(tmp_path / "key")
    exc = run(*[key if each == "KEY" else each for each in args], "--fleet", fleet.path, code=1)
    assert isinstance(exc, UsageError | StorageError)
    assert why in str(exc)


def test_a_fleet_of_before_is_given_keys_and_what_it_released_is_signed(
    fleet: FleetDir, clock: ManualClock
) -> None:
    published(fleet, 2, clock)
    shutil.rmtree(fleet.trust)
    fleet.root_key.unlink()
    with pytest.raises(UsageError, match="umbel fleet trust init"):
        Repository.of(fleet, clock=clock).read()
    told = json.loads(run("init", "--json", "--fleet", fleet.path))
    assert told["releases"] == 1
    assert set(Repository.of(fleet).read().lines["digits"].signed.targets) == {"digits/2.umbel"}
    run("init", "--fleet", fleet.path)  # Where a crash left it half done, it goes on.
    assert fleet.root_key.stat().st_mode & 0o777 == 0o600


def test_an_old_copy_of_the_lists_is_refused_until_the_service_has_another_key(
    fleet: FleetDir, device: DeviceHome, clock: ManualClock, tmp_path: Path
) -> None:
    copy = tmp_path / "backup"
    shutil.copytree(fleet.trust, copy)
    sign(fleet, 2)
    assert newest(fleet, device) == 2
    shutil.rmtree(fleet.trust)
    shutil.copytree(copy, fleet.trust)
    assert newest(fleet, device) == 0
    Repository.of(fleet, clock=clock).rotate_online(
        [signer(SigningKey.from_pem(fleet.root_key.read_bytes()))]
    )
    assert newest(fleet, device) == 1
    sign(fleet, 2)
    assert newest(fleet, device) == 2


# Crashes


@pytest.fixture
def device(fleet: FleetDir, clock: ManualClock) -> DeviceHome:
    sign(fleet, 1)
    home = DeviceHome(fleet.path.parent / "d1")
    home.path.mkdir()
    home.root.write_bytes(to_bytes(Repository.of(fleet, clock=clock).read().root))
    fleet.path.joinpath("new-targets.key").write_bytes(SigningKey.generate().to_pem())
    assert newest(fleet, home) == 1
    return home


@pytest.mark.parametrize(("what", "few"), [("release", 10), ("rotate", 30), ("check", 8)])
def test_a_device_is_told_the_old_or_the_new_wherever_it_is_killed(
    fleet: FleetDir, device: DeviceHome, what: str, few: int
) -> None:
    lines = crashed("crashing_trust.py", what, fleet.path, device.path)
    found = [tuple(map(int, line.split())) for line in lines]
    assert len(found) >= few
    if what == "rotate":
        # Between a new root and what its keys sign a device is told nothing new; the service that goes on mends that.
        assert {served for _, served in found} == {1}
        assert sum(before == 0 for before, _ in found) <= 12
    elif what == "release":
        assert {before for before, _ in found} == {1, 2}
        assert found == sorted(found)
    else:
        assert set(found) == {(2, 2)}


def test_the_memory_of_tests_signs_as_the_service_does() -> None:
    trust = MemoryTrust()
    trust.line("digits")
    assert versions(trust.state) == {"root": 1, "targets": 2, "snapshot": 2, "timestamp": 2, "digits": 1}
