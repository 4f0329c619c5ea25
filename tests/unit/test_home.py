"""The files of a device: private, whole, and clear about what is wrong with them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from umbel._home.directory import DeviceHome, Identity, Pending, Validity
from umbel._home.files import locked, read_file, storage_error, write_atomically
from umbel._home.sqlite import storage_errors
from umbel.cli import app
from umbel_proto.errors import StorageError, UsageError
from umbel_proto.ids import DeviceId, FleetId
from umbel_proto.keys import SigningKey
from umbel_proto.seal import generate_keypair

IDENTITY = Identity(FleetId("garden"), DeviceId("d1"), "127.0.0.1:1", "")


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    home = DeviceHome(tmp_path / "home")
    home.make()
    return home


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_directories_and_secrets_are_their_owners_only_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        home = DeviceHome(tmp_path / "deep" / "home")
        home.make()
        home.write(home.tls_key, b"secret", secret=True)
        home.write(home.ca_certificate, b"public", secret=False)
    finally:
        os.umask(old)
    for directory in (home.path, home.shelf, home.data, home.incoming):
        assert mode(directory) == 0o700
    assert (mode(home.tls_key), mode(home.ca_certificate)) == (0o600, 0o644)


def test_a_public_file_is_readable_under_a_strict_umask(home: DeviceHome) -> None:
    old = os.umask(0o077)
    try:
        home.write(home.ca_certificate, b"public", secret=False)
    finally:
        os.umask(old)
    assert mode(home.ca_certificate) == 0o644


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"a long first content")
    write_atomically(file, b"second")
    assert file.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [file]


def test_what_killed_writers_left_goes_with_the_next_write_and_what_is_being_written_stays(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file[1]"
    abandoned, another = tmp_path / f".{file.name}.0123abcd", tmp_path / ".file.0123abcd"
    held = tmp_path / f".{file.name}.89ef4567"
    for draft in (abandoned, another, held):
        draft.write_bytes(b"half a ke")
    with held.open("rb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        write_atomically(file, b"key")
        assert sorted(tmp_path.iterdir()) == sorted([file, another, held])
    write_atomically(file, b"key")
    assert sorted(tmp_path.iterdir()) == sorted([file, another])


def test_a_write_that_fails_keeps_the_old_file_and_cleans_up(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.mkdir()
    (file / "inside").touch()
    with pytest.raises(StorageError):
        write_atomically(file, b"cannot replace a directory")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_to_be_full(code: int) -> None:
    error = storage_error(OSError(code, "no"), Path("/somewhere/file"))
    assert str(error) == "No space is left on the disk of /somewhere/file: free some and try again."


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.EEXIST, "name a directory"),
        (errno.ENOTDIR, "name a directory"),
        (errno.ENOENT, "name a directory"),
        (errno.EROFS, "mount its disk for writing"),
        (errno.EACCES, "check who owns it"),
    ],
)
def test_what_cannot_be_written_says_what_to_do(code: int, cure: str) -> None:
    assert cure in str(storage_error(OSError(code, "no"), Path("/somewhere/file")))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nothing\.here"):
        read_file(tmp_path / "nothing.here")


def test_a_home_without_identity_says_how_to_enroll(home: DeviceHome) -> None:
    assert not home.enrolled
    with pytest.raises(UsageError, match="umbel enroll TOKEN"):
        _ = home.identity


def test_an_identity_survives_its_file(home: DeviceHome) -> None:
    home.write_identity(IDENTITY)
    assert home.enrolled
    assert DeviceHome(home.path).identity == IDENTITY


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"', '{"fleet": 1}', json.dumps({"fleet": "../x"})])
def test_a_damaged_identity_is_said_to_be_damaged(home: DeviceHome, text: str) -> None:
    home.identity_file.write_text(text)
    with pytest.raises(StorageError, match=r"identity\.json is damaged"):
        _ = home.identity


def test_keys_survive_their_files(home: DeviceHome) -> None:
    key, (_, seal_key) = SigningKey.generate(), generate_keypair()
    home.write(home.identity_key, key.to_pem(), secret=True)
    home.write(home.authority_key, key.public.raw, secret=False)
    home.write(home.release_key, key.public.raw, secret=False)
    home.write_telemetry_key(seal_key)
    assert home.signing_key().public == home.authority() == home.release_authority() == key.public
    assert home.telemetry_seal_key() == seal_key


def test_damaged_keys_and_certificates_are_named(home: DeviceHome) -> None:
    files = (
        home.identity_key,
        home.authority_key,
        home.release_key,
        home.telemetry_key,
        home.tls_certificate,
    )
    for file in files:
        file.write_bytes(b"damaged")
    for read, name in (
        (home.signing_key, "identity.key"),
        (home.authority, "authority.pub"),
        (home.release_authority, "release.pub"),
        (home.telemetry_seal_key, "telemetry.pub"),
        (home.certificate_validity, "tls.pem"),
    ):
        with pytest.raises(StorageError, match=f"{name} is damaged"):
            read()


def test_a_certificate_is_renewed_at_two_thirds_of_its_life() -> None:
    assert Validity(100.0, 400.0).renew_at_s() == pytest.approx(300.0)


def test_a_second_agent_on_a_home_is_refused_with_a_sentence(home: DeviceHome) -> None:
    with home.lock(), pytest.raises(UsageError, match="already runs"), DeviceHome(home.path).lock():
        pass


def test_the_lock_is_free_when_the_block_ends(home: DeviceHome) -> None:
    with home.lock():
        assert home.agent_runs()
    assert not home.agent_runs()
    with home.lock():
        pass


def test_a_killed_agent_leaves_no_lock(home: DeviceHome) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from umbel._home.directory import DeviceHome\n"
        "with DeviceHome(Path(sys.argv[1])).lock():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, home.path], check=False).returncode == -9
    assert home.lock_file.exists()
    with home.lock():
        pass


def test_what_was_locked_is_free_when_the_block_ends_though_a_process_was_forked_in_it(
    tmp_path: Path,
) -> None:
    path, (ends, goes_on) = tmp_path / "lock", os.pipe()
    with locked(path):
        child = os.fork()
        if not child:
            os.close(goes_on)
            os.read(ends, 1)
            os._exit(0)
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(goes_on)
        os.waitpid(child, 0)
        os.close(ends)


def test_the_default_home_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path))
    assert DeviceHome.default().path == tmp_path
    monkeypatch.setenv("UMBEL_HOME", "")
    assert DeviceHome.default().path == Path.home() / ".umbel"


def test_a_tilde_is_the_users_own_directory_wherever_a_home_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UMBEL_HOME", "~/here")
    assert DeviceHome.default().path == DeviceHome(Path("~/here")).path == tmp_path / "here"
    for words in ([], ["--home", "~/here"]):
        told = CliRunner().invoke(app, ["status", *words])
        assert f"{tmp_path / 'here'} is not an enrolled device" in told.output + str(told.exception)
    with pytest.raises(
        UsageError, match=r"~nobody-of-this-name/here names a user .* not .*: give the whole path"
    ):
        DeviceHome(Path("~nobody-of-this-name/here"))


@pytest.mark.parametrize(
    ("free", "sentence"), [(0, "No space is left on the disk"), (9, "check its disk and who owns it")]
)
def test_a_disk_that_has_no_room_for_what_sqlite_keeps_beside_a_file_is_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, sentence: str
) -> None:
    exc = sqlite3.OperationalError("disk I/O error")
    exc.sqlite_errorcode = 4874  # SQLITE_IOERR_SHMSIZE
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((0, 0, 0, 0, free, 0, 0, 0, 0, 0)))
    with pytest.raises(StorageError, match=sentence), storage_errors(tmp_path / "ledger.db", "restore it"):
        raise exc


def test_a_device_that_waits_for_approval_says_so_whatever_it_is_asked(tmp_path: Path) -> None:
    home = DeviceHome(tmp_path)
    home.make()
    home.write_pending(Pending("d74dbfa2", "ab:cd", "127.0.0.1:1"))
    with pytest.raises(
        UsageError, match=r"waits for approval as d74dbfa2, fingerprint ab:cd: have an operator"
    ):
        _ = home.identity
