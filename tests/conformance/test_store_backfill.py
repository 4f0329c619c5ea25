"""Law: a store of before, however many devices reported to it, is brought up to date in one transaction and little memory."""

from __future__ import annotations

import json
import signal
import tracemalloc
from pathlib import Path

import pytest
from sqlalchemy import URL, inspect, text
from test_store_laws import process

from older_store import migrate, older_store
from umbel_server.store.database import Database
from umbel_server.store.schema import HEAD, schema_of

BEFORE = "0011"
HOURS = 48
DAY_S = 86400
BEGIN_S = 20_000 * DAY_S + 18 * 3600
"""Late in a day: 48 hours lie in three."""
COUNTS = [1, 2, 3, 0, 4]


def store_of_before(place: Path | URL, devices: int) -> Database:
    """Make a store whose devices have reported, as the umbel did whose tables had no sums by the day."""
    database = older_store(place, BEFORE)
    with database.write() as connection:
        token = {"hash": b"t" * 32, "created_s": 0.0, "expires_s": 1.0, "uses_left": 0}
        connection.execute(text(_insert("tokens", token)), token)
        made = [_device(number) for number in range(devices)]
        connection.execute(text(_insert("devices", made[0])), made)
        hours = [_hour(number, hour) for number in range(devices) for hour in range(HOURS)]
        connection.execute(text(_insert("rollups", hours[0])), hours)
    return database


def _insert(table: str, row: dict[str, object]) -> str:
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"


def _device(number: int) -> dict[str, object]:
    key = number.to_bytes(32, "big")
    return {
        "id": f"device-{number:04d}",
        "status": "active",
        "identity_key": key,
        "node_key": b"node" + key,
        "token_hash": b"t" * 32,
        "enrolled_key": key,
        "enrolled_s": 0.0,
        "certificate_not_after_s": 4e9,
        "last_seen_s": 0.0,
    }


def _hour(number: int, hour: int) -> dict[str, object]:
    hour_s = BEGIN_S + 3600 * hour
    shape = {"edges": [1.0, 2.0, 3.0, 4.0], "counts": COUNTS, "sum": 25.0}
    return {
        "device_id": f"device-{number:04d}",
        "model": "digits",
        "version": 1,
        "variant": "int8",
        "engine": "onnx",
        "hour_s": hour_s,
        "windows": 60,
        "until_s": hour_s + 3599,
        "counters": json.dumps({"predictions": number + 1, f"label.{hour % 3}": 1}),
        "histograms": json.dumps({f"shape_{each}": shape for each in range(4)}),
    }


def test_what_thousands_of_hours_say_is_summed_by_the_day_and_every_row_is_kept(
    empty_place: Path | URL,
) -> None:
    devices = 100
    database = store_of_before(empty_place, devices)
    migrate(database, HEAD)
    with database.read() as connection:
        rows = connection.execute(text("SELECT * FROM device_days ORDER BY device_id, day_s")).all()
        (kept,) = connection.execute(text("SELECT count(*) FROM rollups")).one()
    assert kept == devices * HOURS
    assert len(rows) == devices * 3
    for place, row in enumerate(rows):
        number, hours = place // 3, (6, 24, 18)[place % 3]
        assert (row.device_id, row.windows, row.left_out) == (f"device-{number:04d}", 60 * hours, 0)
        assert json.loads(row.counters)["predictions"] == hours * (number + 1)
        shapes = json.loads(row.histograms)
        assert [each["name"] for each in shapes] == [f"shape_{each}" for each in range(4)]
        assert all(each["counts"] == [hours * count for count in COUNTS] for each in shapes)
    database.close()


@pytest.mark.parametrize("after", [1, 25])
def test_a_backfill_that_is_killed_leaves_the_store_as_it_was_and_the_next_one_does_it_whole(
    empty_place: Path | URL, after: int
) -> None:
    store_of_before(empty_place, 30).close()
    program = f"""
import importlib
from umbel_server.store.database import Database
from umbel_server.store.schema import prepare
from sqlalchemy import event
database, made = Database(place), []
@event.listens_for(database.engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    made.extend([1] if statement.startswith("INSERT INTO device_days") else [])
    if len(made) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(database)
"""
    killed = process(empty_place, program)
    assert killed.communicate() == ("", "")
    assert killed.returncode == -signal.SIGKILL
    database = Database(empty_place)
    assert schema_of(database) == BEFORE
    with database.read() as connection:
        assert not inspect(connection).has_table("device_days")
        assert connection.execute(text("SELECT count(*) FROM rollups")).scalar_one() == 30 * HOURS
    migrate(database, HEAD)
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM device_days")).scalar_one() == 90
    database.close()


def test_the_memory_that_a_backfill_takes_does_not_grow_with_the_fleet(tmp_path: Path) -> None:
    """What Python holds; the driver holds a device's rows, as the statement asks for no more."""
    peaks = []
    for devices in (10, 60):
        place = tmp_path / f"{devices}.db"
        database = store_of_before(place, devices)
        migrate(database, BEFORE)  # Alembic is loaded, and the migrations are.
        tracemalloc.start()
        migrate(database, "0012")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        database.close()
    assert peaks[1] < 1.5 * peaks[0], peaks
