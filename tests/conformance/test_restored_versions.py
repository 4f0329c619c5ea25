"""A copy that an older umbel made is brought up to date when it is restored, and serves; that of a newer one is refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import URL, inspect, text
from test_serve_all import LOCAL, STOP_S, edit, lines_until, served

from older_store import older_store
from service_fleet import PlainDevice, batch, make_fleet, window
from umbel_proto.errors import UsageError
from umbel_server.fleet.backup import CONTENTS, STORE, back_up, restore
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.database import Database
from umbel_server.store.schema import HEAD, schema_of
from umbel_server.store.settings import ENVIRONMENT

OLDER = "0011"
"""Before hours were summed by the day, alerts, queries, reviews and groups."""
CARRIED = ("tokens", "devices", "audit")


def store_of(schema: str, of: Path, path: Path) -> bytes:
    """Return the file of a store as an older umbel kept it, with the devices and the audit log of another."""
    database = older_store(path, schema)
    database.close()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("ATTACH ? AS now", (str(of),))
        for table in CARRIED:
            names = ", ".join(f'"{each["name"]}"' for each in inspect(connection).get_columns(table))
            connection.exec_driver_sql(f"INSERT INTO {table} ({names}) SELECT {names} FROM now.{table}")
        connection.commit()
        connection.exec_driver_sql("DETACH now")
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return path.read_bytes()


def with_store(copy: Path, content: bytes, path: Path) -> Path:
    """Return a copy of a fleet with another store in it, whole by its own list."""
    with tarfile.open(copy) as before, tarfile.open(path, "w") as after:
        for member in before:
            file = before.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name == STORE:
                data = content
            if member.name == CONTENTS:
                listed = json.loads(data)
                listed[STORE] = {"size": len(content), "sha256": sha256(content).hexdigest()}
                data = json.dumps(listed).encode()
            member.size = len(data)
            after.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def device() -> PlainDevice:
    return PlainDevice()


@pytest.fixture
def fleet(tmp_path: Path, device: PlainDevice) -> FleetDir:
    made = make_fleet(tmp_path / "garden")
    edit(made, 'without = ""', f'without = "{LOCAL} ca rollouts runs alerts api console health"')
    with made.open_store() as store:
        device.admit(made, store, name="rose")
    return made


@pytest.fixture
def copy(fleet: FleetDir, tmp_path: Path) -> Path:
    back_up(fleet, tmp_path / "copy.tar")
    return tmp_path / "copy.tar"


def test_a_copy_of_an_older_umbel_is_migrated_and_serves_the_devices_it_had(
    fleet: FleetDir,
    copy: Path,
    device: PlainDevice,
    tmp_path: Path,
    empty_place: Path | URL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = with_store(copy, store_of(OLDER, fleet.path / STORE, tmp_path / "old.db"), tmp_path / "old.tar")
    if isinstance(empty_place, URL):
        monkeypatch.setenv(ENVIRONMENT, empty_place.render_as_string(hide_password=False))
    restore(old, tmp_path / "again")
    again = FleetDir.open(tmp_path / "again")
    database = Database(again.store_place())
    assert schema_of(database) == HEAD  # At once, and not with the first that opens it.
    database.close()
    with served(again) as process:
        lines_until(process, "ready umbel")
        assert list(device.check(again).releases) == []
        device.upload(again, [device.sealed(again, plaintext=batch(window()))])
        process.terminate()
        _, err = process.communicate(timeout=STOP_S)
    assert (process.returncode, err) == (0, "")
    with again.open_store() as store:
        assert [each.id for each in store.devices.all()] == ["rose"]
        [delivered] = store.batches.deliveries()
        assert delivered.sealed + delivered.opened == 1


def test_a_copy_of_a_newer_umbel_is_refused_in_one_sentence(
    fleet: FleetDir, copy: Path, tmp_path: Path
) -> None:
    database = Database(fleet.path / STORE)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    new = with_store(copy, (fleet.path / STORE).read_bytes(), tmp_path / "new.tar")
    sentence = f"of a newer umbel, its store's schema is 9999 and this umbel knows {HEAD}: update umbel."
    with pytest.raises(UsageError, match=sentence):
        restore(new, tmp_path / "again")
    ran = subprocess.run(
        [sys.executable, "-m", "umbel", "fleet", "restore", new, "--fleet", tmp_path / "again"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "1000"},
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.strip().endswith(sentence)
    assert len(ran.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "again").exists()
    assert not list(tmp_path.glob(".again*"))
