"""What every store must do, in a SQLite file or in PostgreSQL: whole transactions, one order of writers, once."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, inspect, text

from service_fleet import PlainDevice
from umbel_proto.errors import StorageError
from umbel_proto.ids import DeviceId
from umbel_server.store.batches import Arrival
from umbel_server.store.database import Database
from umbel_server.store.schema import HEAD, schema_of
from umbel_server.store.settings import ENVIRONMENT
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import metadata

ROSE, LILY = DeviceId("rose"), DeviceId("lily")
OPEN = """
import os, signal, sys
from pathlib import Path
from umbel_server.store.settings import StoreSettings, store_place
from umbel_server.store.store import open_store
place = store_place(Path(sys.argv[1]), StoreSettings(), os.environ)
"""


@pytest.fixture
def store(place: Path | URL) -> Iterator[Store]:
    with open_store(place) as opened:
        yield opened


def enroll(store: Store, name: str) -> DeviceId:
    application = PlainDevice().application(store.tokens.issue(valid_s=60), name=name)
    return store.devices.enroll(application, certificate_life_s=60).id


def process(place: Path | URL, program: str) -> subprocess.Popen[str]:
    """Run a program that finds the store at ``place``."""
    url = place.render_as_string(hide_password=False) if isinstance(place, URL) else ""
    return subprocess.Popen(
        [sys.executable, "-c", OPEN + program, "." if isinstance(place, URL) else str(place.parent)],
        env={**os.environ, ENVIRONMENT: url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(store: Store) -> None:
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        changes = compare_metadata(context, metadata)
    # Only PostgreSQL has partitions, and there the month is in every key.
    assert [change for change in changes if "batches" not in str(change)] == []
    if not store.database.is_postgresql:
        assert changes == []


def test_any_number_of_openers_at_once_migrate_it_once(empty_place: Path | URL) -> None:
    racers = [process(empty_place, "open_store(place).close()") for _ in range(3)]
    assert [(racer.communicate()[1], racer.returncode) for racer in racers] == [("", 0)] * 3


def test_opening_a_store_that_is_up_to_date_loads_no_alembic(place: Path | URL) -> None:
    open_store(place).close()
    racer = process(place, "open_store(place).close(); print('alembic' in sys.modules)")
    assert racer.communicate() == ("False\n", "")


@pytest.mark.parametrize("statements", [20, 60])
def test_a_migration_that_is_killed_leaves_nothing_and_the_next_one_makes_it_whole(
    empty_place: Path | URL, statements: int
) -> None:
    program = f"""
from sqlalchemy import event
from umbel_server.store.database import Database
from umbel_server.store.schema import prepare
database, made = Database(place), []
@event.listens_for(database.engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    made.extend([1] if statement.lstrip().startswith(("CREATE", "ALTER", "DROP", "INSERT")) else [])
    if len(made) == {statements}:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(database)
"""
    killed = process(empty_place, program)
    assert killed.communicate() == ("", "")
    assert killed.returncode == -signal.SIGKILL
    database = Database(empty_place)
    assert schema_of(database) is None
    with database.read() as connection:
        assert inspect(connection).get_table_names() == []
    database.close()
    with open_store(empty_place) as store:
        assert schema_of(store.database) == HEAD
        enroll(store, ROSE)


def test_a_store_of_a_newer_umbel_is_left_alone(place: Path | URL) -> None:
    with open_store(place) as store, store.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(
        StorageError, match=f"schema 9999, and this umbel knows {HEAD}: update .* never taken back"
    ):
        open_store(place)


def test_a_database_without_its_tables_is_not_mistaken_for_a_store(empty_place: Path | URL) -> None:
    database = Database(empty_place)
    with pytest.raises(StorageError, match=r"no such table|does not exist"), database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM devices")
    database.close()


def test_a_block_that_raises_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.database.write() as connection:  # noqa: PT012
        made = connection.execute(
            text("INSERT INTO runs VALUES ('r', 'm', '{}', 'running', '', 0, NULL, NULL)")
        )
        raise ZeroDivisionError(made.rowcount)
    assert store.runs.all() == ()


def test_a_reader_sees_one_moment_while_others_write(store: Store) -> None:
    count = text("SELECT count(*) FROM tokens")
    with store.database.read() as connection:
        before = connection.execute(count).scalar_one()
        store.tokens.issue(valid_s=60)
        assert connection.execute(count).scalar_one() == before
    with store.database.read() as connection:
        assert connection.execute(count).scalar_one() == before + 1


def test_writers_of_many_threads_wait_for_each_other(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda _: store.tokens.issue(valid_s=60), range(64)))
    assert len(set(tokens)) == 64
    for token in tokens:
        store.tokens.known(token)


def test_what_a_writer_read_stays_true_until_it_wrote(place: Path | URL, store: Store) -> None:
    """Two services that add to what they read: none is lost. Each opens the store for itself."""
    with store.database.write() as connection:
        connection.execute(text("INSERT INTO runs VALUES ('r', 'm', '0', 'running', '', 0, NULL, NULL)"))

    def add(_: int) -> None:
        with open_store(place) as own:
            for _each in range(10):
                with own.database.write() as connection:
                    sofar = connection.execute(text("SELECT plan FROM runs")).scalar_one()
                    connection.execute(text("UPDATE runs SET plan = :next"), {"next": str(int(sofar) + 1)})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    (run,) = store.runs.all()
    assert run.plan == "40"


def test_a_batch_that_gateways_store_at_once_is_stored_once(place: Path | URL, store: Store) -> None:
    devices = [enroll(store, ROSE), enroll(store, LILY)]
    arrivals = [Arrival(secrets.token_bytes(16), "key", b"header", b"sealed") for _ in range(30)]
    line = threading.Barrier(4)

    def upload(number: int) -> None:
        with open_store(place) as own:
            line.wait(20)
            # Every other one the other way round: who waits for whom would be a ring.
            for some in (arrivals, arrivals[::-1])[:: 1 if number % 2 else -1]:
                for device in devices[:: 1 if number % 2 else -1]:
                    own.batches.append(device, some)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload, range(4)))
    stored = [(batch.device, batch.ciphertext) for batch in store.batches.sealed(limit=1000)]
    assert (stored.count((ROSE, b"sealed")), stored.count((LILY, b"sealed"))) == (30, 30)


def test_what_a_killed_gateway_acknowledged_is_there_and_sent_again_it_is_there_once(
    place: Path | URL, store: Store
) -> None:
    enroll(store, ROSE)
    program = """
from umbel_server.store.batches import Arrival
with open_store(place) as store:
    for number in range(10_000):
        store.batches.append("rose", [Arrival(number.to_bytes(16, "big"), "key", b"h", b"sealed")])
        print(number, flush=True)
"""
    gateway = process(place, program)
    assert gateway.stdout is not None
    acknowledged = [int(gateway.stdout.readline()) for _ in range(25)]
    gateway.kill()
    acknowledged += [int(line) for line in gateway.communicate()[0].split("\n") if line]
    with store.database.read() as connection:
        ids = connection.execute(text("SELECT batch_id FROM batches")).scalars().all()
    kept = sorted(int.from_bytes(each, "big") for each in ids)
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) <= len(acknowledged) + 1
    again = [Arrival(number.to_bytes(16, "big"), "key", b"h", b"again") for number in range(len(kept) + 5)]
    store.batches.append(ROSE, again)
    sealed = store.batches.sealed(limit=100_000)
    assert [batch.ciphertext for batch in sealed] == [b"sealed"] * len(kept) + [b"again"] * 5
