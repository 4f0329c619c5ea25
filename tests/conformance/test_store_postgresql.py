"""What only PostgreSQL does to a store: it stops, starts again, refuses, and gives transactions up."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL, select, text

from postgresql_server import PostgresqlServer
from service_fleet import PlainDevice
from umbel_proto.errors import StorageError, UnavailableError, UsageError
from umbel_proto.ids import DeviceId
from umbel_server.fleet.settings import FleetSettings
from umbel_server.store import postgresql as postgresql_module
from umbel_server.store.batches import Arrival
from umbel_server.store.database import Database, DiskFullError
from umbel_server.store.failures import RepeatableError
from umbel_server.store.postgresql import WRITERS_LOCK, postgresql_url
from umbel_server.store.settings import ENVIRONMENT, StoreSettings, store_place
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import devices

ROSE = DeviceId("rose")
PASSWORD = "correct-horse"


@pytest.fixture
def url(postgresql: PostgresqlServer) -> Iterator[URL]:
    made = postgresql.database()
    yield made
    postgresql.drop(made)


@pytest.fixture
def store(url: URL) -> Iterator[Store]:
    with open_store(url) as opened:
        application = PlainDevice().application(opened.tokens.issue(valid_s=60), name=ROSE)
        opened.devices.enroll(application, certificate_life_s=60)
        yield opened


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        ("53100", DiskFullError, "No space is left on the disk of postgresql://umbel@"),
        ("40001", RepeatableError, "busy"),
        ("40P01", RepeatableError, "busy"),
        ("55P03", UnavailableError, "busy"),
        ("57014", UnavailableError, "busy"),
        ("53300", UnavailableError, "does not answer"),
        ("57P01", UnavailableError, "does not answer"),
        ("57P03", UnavailableError, "does not answer"),
        ("08006", UnavailableError, "does not answer"),
        ("58030", UnavailableError, "does not answer"),
        ("XX001", StorageError, "corrupted: .* restore it from a backup"),
        ("42501", StorageError, "cannot be changed: check the rights"),
        ("22012", StorageError, "fails: the sentence"),
    ],
)
def test_what_the_server_says_is_one_sentence_of_ours(
    store: Store, code: str, kind: type[Exception], says: str
) -> None:
    said = f"DO $$ BEGIN RAISE 'the sentence' USING ERRCODE = '{code}', DETAIL = 'a private row'; END $$"
    with pytest.raises(kind, match=says) as caught, store.database.write() as connection:
        connection.execute(text(said))
    assert type(caught.value) is kind
    assert "private row" not in str(caught.value)


def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(StorageError, match="cannot be changed"), store.database.read() as connection:
        connection.execute(text("DELETE FROM tokens"))


def test_a_question_that_is_asked_often_is_planned_for_what_it_asks(store: Store) -> None:
    with store.database.read() as connection:
        for _ in range(20):
            connection.execute(select(devices.c.facts).where(devices.c.id == ROSE)).all()
        generic, custom = connection.exec_driver_sql(
            "SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements"
        ).one()
    assert custom
    assert not generic


def test_an_acknowledged_commit_waits_for_the_disk_whatever_the_server_is_set_to(
    postgresql: PostgresqlServer, url: URL
) -> None:
    for given, used in (("off", "on"), ("remote_apply", "remote_apply"), ("on", "on")):
        postgresql.execute(f"ALTER DATABASE {url.database} SET synchronous_commit = {given}")
        with open_store(url) as store, store.database.write() as connection:
            assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == used


def test_a_writer_that_waits_too_long_is_told_that_the_store_is_busy(
    url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_module, "BUSY_TIMEOUT_MS", 50)
    with open_store(url) as store, open_store(url) as other:
        with other.database.write(), pytest.raises(UnavailableError, match="busy: try again"):
            store.tokens.issue(valid_s=60)
        store.tokens.issue(valid_s=60)


def test_whoever_holds_no_connection_for_too_long_is_told_that_the_store_is_busy(
    url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_module, "BUSY_TIMEOUT_MS", 50)
    monkeypatch.setattr(postgresql_module, "CONNECTIONS", 1)
    monkeypatch.setattr(postgresql_module, "SPARE_CONNECTIONS", 0)
    database = Database(url)
    with database.read(), pytest.raises(UnavailableError, match="busy"), database.read():
        pass
    database.close()


def test_a_transaction_that_the_server_gives_up_is_made_again(
    postgresql: PostgresqlServer, url: URL, store: Store
) -> None:
    """Two that each wait for the other's row: each is made once, however often the server gives one of them up.

    The one given up may be back before the other has its row, and then they meet again.
    """
    postgresql.execute(f"ALTER DATABASE {url.database} SET deadlock_timeout = '20ms'")
    store.runs.create("a", "m", "")  # type: ignore[arg-type]
    store.runs.create("b", "m", "")  # type: ignore[arg-type]
    meet = threading.Barrier(2)
    tries: list[str] = []

    def change(first: str, second: str) -> None:
        def both(connection: object) -> None:
            tries.append(first)
            for run in (first, second):
                change = text("UPDATE runs SET plan = plan || 'x' WHERE id = :id")
                connection.execute(change, {"id": run})  # type: ignore[attr-defined]
                if run == first and len(tries) <= 2:
                    meet.wait(20)

        with open_store(url) as own:
            own.database.write_again(both)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(change, "ab", "ba"))
    assert len(tries) > 2
    assert {run.plan for run in store.runs.all()} == {"xx"}


def test_a_restart_costs_the_pool_nothing(postgresql: PostgresqlServer, store: Store) -> None:
    for how in (signal.SIGINT, signal.SIGQUIT):
        store.tokens.issue(valid_s=60)
        postgresql.stop(how)
        with pytest.raises(UnavailableError, match="does not answer: start it"):
            store.tokens.issue(valid_s=60)
        with pytest.raises(UnavailableError, match="does not answer: start it"):
            store.devices.all()
        postgresql.start()
        store.tokens.issue(valid_s=60)
        assert [device.id for device in store.devices.all()] == [ROSE]


def test_a_restart_between_two_calls_is_not_noticed(postgresql: PostgresqlServer, store: Store) -> None:
    for how in (signal.SIGINT, signal.SIGQUIT):
        store.tokens.issue(valid_s=60)
        postgresql.stop(how)
        postgresql.start()
        store.tokens.issue(valid_s=60)
        assert [device.id for device in store.devices.all()] == [ROSE]


def test_a_connection_lost_amid_a_transaction_loses_that_transaction_only(
    postgresql: PostgresqlServer, store: Store
) -> None:
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'umbel'"
    with pytest.raises(UnavailableError, match="does not answer"), store.database.write() as connection:  # noqa: PT012
        connection.execute(text("DELETE FROM devices"))
        postgresql.execute(end)
        connection.execute(text("SELECT 1"))
    assert [device.id for device in store.devices.all()] == [ROSE]


def test_of_what_was_acknowledged_under_load_a_crash_of_the_server_loses_nothing(
    postgresql: PostgresqlServer, store: Store
) -> None:
    acknowledged: list[bytes] = []
    errors: set[type[Exception]] = set()
    crash, done = threading.Event(), threading.Event()

    def upload(thread: int) -> None:
        number = 0
        while not done.is_set():
            batch_id = bytes([thread]) + number.to_bytes(15, "big")
            try:
                store.batches.append(ROSE, [Arrival(batch_id, "key", b"header", b"sealed")])
            except UnavailableError as exc:
                errors.add(type(exc))
                continue  # As a device does: the same again.
            acknowledged.append(batch_id)
            number += 1
            if len(acknowledged) == 100:
                crash.set()

    with ThreadPoolExecutor(6) as pool:
        threads = [pool.submit(upload, thread) for thread in range(6)]
        assert crash.wait(60)
        for _ in range(2):
            postgresql.stop(signal.SIGQUIT)
            before = len(acknowledged)
            postgresql.start()
            while len(acknowledged) < before + 50:
                assert not any(each.done() for each in threads)
        done.set()
        for each in threads:
            each.result()
    assert errors == {UnavailableError}
    with store.database.read() as connection:
        stored = list(connection.execute(text("SELECT batch_id FROM batches")).scalars())
    assert sorted(stored) == sorted(acknowledged)


def test_two_migrations_wait_for_the_same_lock_as_every_writer(url: URL, store: Store) -> None:
    with store.database.write(), store.database.read() as connection:
        held = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :low")
        assert connection.execute(held, {"low": WRITERS_LOCK & 0xFFFFFFFF}).scalar_one() == 1


def test_a_wrong_password_a_missing_database_and_a_foreign_encoding_are_one_sentence_each(
    postgresql: PostgresqlServer, url: URL
) -> None:
    with pytest.raises(StorageError, match="refuses its user: check the password") as caught:
        open_store(url.set(password=PASSWORD))
    assert PASSWORD not in str(caught.value)
    with pytest.raises(StorageError, match="no such database or user"):
        open_store(url.set(database="nowhere"))
    postgresql.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    with pytest.raises(StorageError, match="has the encoding SQL_ASCII"):
        open_store(postgresql.url("latin"))
    postgresql.execute("DROP DATABASE latin")


def test_the_password_is_in_no_log_error_or_repr(
    postgresql: PostgresqlServer, url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    password = str(url.password)
    with open_store(url) as store:
        words = [
            repr(store.database),
            repr(store.database.kind),
            repr(store.database.engine),
            store.database.name,
        ]
        store.tokens.issue(valid_s=60)
        postgresql.stop()
        with pytest.raises(UnavailableError) as caught:
            store.tokens.issue(valid_s=60)
        postgresql.start()
    chain: BaseException | None = caught.value
    while chain is not None:
        words += [str(chain), repr(chain)]
        chain = chain.__cause__
    assert len(password) == 32
    assert not [word for word in [*words, caplog.text] if password in word]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("", "is not one"),
        ("not a url", "is not one"),
        (f"postgresql://u:{PASSWORD}@h:port/d", "is not one"),
        ("mysql://u@h/d", "of no PostgreSQL database"),
        ("sqlite:///x.db", "of no PostgreSQL database"),
        ("postgresql://u@h", "of no PostgreSQL database"),
        (f"postgresql://u:{PASSWORD}@db.example/d?sslmode=disable", "does not verify the server"),
        (f"postgresql://u:{PASSWORD}@db.example/d?sslmode=prefer", "does not verify the server"),
        (f"postgresql://u:{PASSWORD}@db.example/d?sslmode=require", "does not verify the server"),
        (
            f"postgresql://u:{PASSWORD}@/d?host=/run&host=db.example&sslmode=allow",
            "does not verify the server",
        ),
    ],
)
def test_a_url_that_cannot_be_or_would_trust_any_server_is_refused(wrong: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        postgresql_url(wrong)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


def test_over_a_network_the_server_is_verified_unless_told_how_else() -> None:
    assert postgresql_url("postgresql://u@db.example/d").query["sslmode"] == "verify-full"
    assert postgresql_url("postgres://u@db.example/d?sslmode=verify-ca").query["sslmode"] == "verify-ca"
    for local in ("postgresql:///d", "postgresql://u@/d?host=/run/postgresql", "postgresql://u@127.0.0.1/d"):
        assert "sslmode" not in postgresql_url(local).query


def test_the_environment_goes_before_the_file_and_the_file_before_the_directory(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"postgresql://file:{PASSWORD}@localhost/d\n")
    of_file, of_url = StoreSettings(url_file="url"), StoreSettings(url="postgresql://u@localhost/d")
    assert store_place(tmp_path, StoreSettings(), {}) == tmp_path / "store.db"
    places = [store_place(tmp_path, settings, {}) for settings in (of_file, of_url)]
    assert [place.username for place in places if isinstance(place, URL)] == ["file", "u"]
    told = store_place(tmp_path, of_file, {ENVIRONMENT: "postgresql://environment@localhost/d"})
    assert isinstance(told, URL)
    assert told.username == "environment"
    (tmp_path / "url").unlink()
    with pytest.raises(StorageError, match=r"\[store\] url_file, .*url, cannot be read"):
        store_place(tmp_path, of_file, {})


@pytest.mark.parametrize("url", [f"postgresql://u:{PASSWORD}@h/d", f"postgresql:///d?password={PASSWORD}"])
def test_a_password_in_the_settings_is_refused_and_not_told(url: str) -> None:
    text = 'name = "garden"\nhost = "h"\nlisten = "::"\n[ports]\ngateway = 1\nenrollment = 2\nsuperlink = 3\n'
    with pytest.raises(UsageError, match="holds a password where others may read it") as caught:
        FleetSettings.from_toml(text + f'control = 4\n[store]\nurl = "{url}"\n')
    assert PASSWORD not in str(caught.value)
