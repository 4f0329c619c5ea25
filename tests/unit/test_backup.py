"""Law: a fleet restored from a copy is the fleet that was copied, whatever went on meanwhile; a bad copy restores nothing."""

from __future__ import annotations

import json
import shutil
import stat
import tarfile
import threading
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_packages import RELEASE, first
from service_fleet import PlainDevice, make_fleet
from umbel import cli
from umbel_proto.errors import StorageError, UmbelError, UsageError
from umbel_proto.keys import SigningKey
from umbel_server.fleet.backup import back_up, restore
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.store.store import Store
from umbel_server.trust.metadata import signer
from umbel_server.trust.repository import Repository


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    made = make_fleet(tmp_path / "garden")
    made.release_pub.write_bytes(RELEASE.public.raw)
    with made.open_store() as store:
        publish(made, store, first())
        enroll(store, "rose")
    return made


def enroll(store: Store, name: str) -> None:
    application = PlainDevice().application(store.tokens.issue(valid_s=60), name=name)
    store.devices.enroll(application, certificate_life_s=60)


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file but databases, locks and what passes: content and mode."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.name != "lock"
        and ".db" not in path.name
        and path.relative_to(root).parts[0] not in ("metrics", "log")
    }


def test_a_restored_fleet_has_every_file_and_row(fleet: FleetDir, tmp_path: Path) -> None:
    back_up(fleet, tmp_path / "copy.tar")
    restore(tmp_path / "copy.tar", tmp_path / "again")
    assert files(tmp_path / "again") == files(fleet.path)
    again = FleetDir.open(tmp_path / "again")
    with fleet.open_store() as store, again.open_store() as copied:
        assert copied.devices.all() == store.devices.all()
        assert copied.releases.all() == store.releases.all()
        assert list(copied.audit.all()) == list(store.audit.all())
        # It goes on from there, with numbers of its own.
        enroll(copied, "oak")


def test_a_restored_fleet_has_also_the_directories_in_which_nothing_lay(
    fleet: FleetDir, tmp_path: Path
) -> None:
    back_up(fleet, tmp_path / "copy.tar")
    restore(tmp_path / "copy.tar", tmp_path / "again")
    before, after = (
        {str(path.relative_to(root)) for path in root.iterdir() if path.is_dir()}
        for root in (fleet.path, tmp_path / "again")
    )
    assert after == before > {"runs", "log"}
    assert {stat.S_IMODE((tmp_path / "again" / name).stat().st_mode) for name in after} == {0o700}


def test_a_restored_fleet_gets_another_key_for_its_service(fleet: FleetDir, tmp_path: Path) -> None:
    """What operators do after a loss, where devices have seen newer lists than the copy has."""
    back_up(fleet, tmp_path / "copy.tar")
    restore(tmp_path / "copy.tar", tmp_path / "again")
    repository = Repository.of(FleetDir.open(tmp_path / "again"))
    before = repository.read().root.signed
    root = signer(SigningKey.from_pem(fleet.root_key.read_bytes()))
    assert repository.rotate_online([root]) == {}
    after = repository.read().root.signed
    assert after.version == before.version + 1
    assert after.roles["timestamp"].keyids != before.roles["timestamp"].keyids


def test_only_the_owner_may_read_a_copy(fleet: FleetDir, tmp_path: Path) -> None:
    back_up(fleet, tmp_path / "copy.tar")
    assert stat.S_IMODE((tmp_path / "copy.tar").stat().st_mode) == 0o600


def test_without_keys_there_is_no_secret_in_it(fleet: FleetDir, tmp_path: Path) -> None:
    back_up(fleet, tmp_path / "copy.tar", keys=False)
    content = (tmp_path / "copy.tar").read_bytes()
    secrets = [path for path in fleet.path.rglob("*") if path.suffix in (".key", ".secret", ".token")]
    assert len(secrets) >= 6
    for path in secrets:
        raw = path.read_bytes()
        body = raw.split(b"\n")[1] if raw.startswith(b"-----") else raw.strip()
        assert body not in content, path


def test_a_copy_taken_while_devices_come_in_is_of_one_moment(fleet: FleetDir, tmp_path: Path) -> None:
    """Each device of the copy has the token that let it in used: no transaction is copied by half."""
    stop = threading.Event()

    def come_in() -> None:
        number = 0
        with fleet.open_store() as store:
            while not stop.is_set():
                number += 1
                enroll(store, f"late-{number}")

    thread = threading.Thread(target=come_in)
    thread.start()
    try:
        back_up(fleet, tmp_path / "copy.tar")
    finally:
        stop.set()
        thread.join()
    restore(tmp_path / "copy.tar", tmp_path / "again")
    with FleetDir.open(tmp_path / "again").open_store() as store, store.database.read() as connection:
        devices = connection.exec_driver_sql("SELECT count(*) FROM devices").scalar_one()
        used = connection.exec_driver_sql("SELECT count(*) FROM tokens WHERE uses_left = 0").scalar_one()
    assert devices == used >= 1


def test_nothing_is_written_over(fleet: FleetDir, tmp_path: Path) -> None:
    back_up(fleet, tmp_path / "copy.tar")
    with pytest.raises(UsageError, match="exists: choose another file"):
        back_up(fleet, tmp_path / "copy.tar")
    with pytest.raises(UsageError, match="is not empty"):
        restore(tmp_path / "copy.tar", fleet.path)


def test_a_directory_that_is_not_there_is_said(fleet: FleetDir, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        back_up(fleet, tmp_path / "none" / "copy.tar")
    with pytest.raises(UsageError, match="There is no file"):
        restore(tmp_path / "none.tar", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_copy_with_a_byte_changed_or_cut_off_restores_nothing_or_the_same(
    fleet: FleetDir, tmp_path: Path, data: st.DataObject
) -> None:
    copy = tmp_path / "copy.tar"
    if not copy.exists():
        back_up(fleet, copy)
    whole = copy.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        bad = whole[:at]
    else:
        bad = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    (tmp_path / "bad.tar").write_bytes(bad)
    again = tmp_path / "again"
    try:
        restore(tmp_path / "bad.tar", again)
    except UmbelError:
        assert not again.exists()
    else:  # A byte that says nothing: padding, or a date of the archive's.
        assert files(again).keys() == files(fleet.path).keys()
        assert {name: content for name, (content, _) in files(again).items()} == {
            name: content for name, (content, _) in files(fleet.path).items()
        }
        shutil.rmtree(again)
    assert not list(tmp_path.glob(".again*"))


def forged(path: Path, *members: tuple[str, bytes], link: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, BytesIO(content))
        if link:
            about = tarfile.TarInfo("fleet.toml")
            about.type, about.linkname = tarfile.SYMTYPE, link
            archive.addfile(about)
    return path


ABOUT = ("backup.json", json.dumps({"format": 1, "fleet": "garden", "taken_s": 1.0, "keys": True}).encode())


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_copy_cannot_write_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="damaged"):
        restore(forged(tmp_path / "bad.tar", ABOUT, (name, b"x")), tmp_path / "deep" / "again")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "deep" / "outside").exists()
    assert not Path("/tmp/outside").exists()


def test_a_copy_with_a_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="damaged"):
        restore(forged(tmp_path / "bad.tar", ABOUT, link="/etc/passwd"), tmp_path / "again")


@pytest.mark.parametrize("content", [b"", b"no archive", b"\0" * 1024])
def test_what_is_no_copy_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises((StorageError, UsageError), match=r"damaged|no copy of a fleet"):
        restore(tmp_path / "bad.tar", tmp_path / "again")


def test_the_commands_say_what_they_did_and_it_is_on_record(
    fleet: FleetDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def umbel(*words: object) -> Any:
        monkeypatch.setattr("sys.argv", ["umbel", "fleet", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)

    made = umbel("backup", tmp_path / "copy.tar", "--fleet", fleet.path)
    again = umbel("restore", tmp_path / "copy.tar", "--fleet", tmp_path / "again")
    assert (made["fleet"], made["files"], made["taken_s"]) == (
        again["fleet"],
        again["files"],
        again["taken_s"],
    )
    assert PurePosixPath(again["path"]).name == "again"
    with fleet.open_store() as store:
        assert [entry.action for entry in store.audit.all()][-1] == "fleet.backup"
    with FleetDir.open(tmp_path / "again").open_store() as store:
        assert [entry.action for entry in store.audit.all()][-1] == "fleet.restore"
