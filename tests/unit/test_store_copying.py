"""A store that moves into PostgreSQL, and back: every row, once, or nothing."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from typer.testing import CliRunner

from postgresql_server import PostgresqlServer
from service_fleet import ManualClock, PlainDevice, make_fleet
from umbel_proto.errors import StorageError, UsageError
from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_server.cli import fleet as fleet_app
from umbel_server.store.batches import Arrival
from umbel_server.store.copying import ROWS_PER_STEP, copy_store
from umbel_server.store.database import Database
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.settings import ENVIRONMENT
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import metadata

ROSE = DeviceId("rose")


@pytest.fixture
def url(postgresql: PostgresqlServer) -> Iterator[URL]:
    made = postgresql.database(empty=True)
    yield made
    postgresql.drop(made)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store.db", clock=ManualClock(1_800_000_000.25)) as opened:
        fill(opened)
        yield opened


def fill(store: Store) -> None:
    application = PlainDevice().application(store.tokens.issue(valid_s=60.5), name=ROSE)
    store.devices.enroll(application, certificate_life_s=60.1)
    arrivals = [Arrival(secrets.token_bytes(16), "key", b"\x00\\N\n", b"\xff\x00") for _ in range(2100)]
    store.batches.append(ROSE, arrivals)
    of = (ModelName("digits"), 1, "int8", "onnx", 7200, 1, 7260)
    told = Rollup(ROSE, *of, {"a": 2**62}, {"h": Histogram("h", (0.1,), (1, 2), 1e-300)})
    store.rollups.absorb([Verdict(store.batches.sealed(limit=1)[0].id, (told,))])
    store.runs.create(RunId("run-1"), ModelName("digits"), '{"ä": "\\u0000\\n\\t"}')


def rows(store: Store) -> dict[str, list[tuple[object, ...]]]:
    with store.database.read() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(table.select())), key=repr)
            for table in metadata.sorted_tables
        }


def test_a_copy_has_every_row_and_goes_on_where_the_store_was(store: Store, url: URL, tmp_path: Path) -> None:
    target, back = Database(url), Database(tmp_path / "back.db")
    steps: list[tuple[str, int]] = []
    copied = copy_store(store.database, target, progress=lambda table, count: steps.append((table, count)))
    assert copied == copy_store(target, back)
    before = rows(store)
    assert {each.table: each.rows for each in copied} == {name: len(some) for name, some in before.items()}
    assert all(before[name] for name in ("batches", "audit", "cohort_rollups"))
    assert ("batches", ROWS_PER_STEP) in steps
    target.close()
    back.close()
    for place in (url, tmp_path / "back.db"):
        with open_store(place) as other:
            assert rows(other) == before
            other.batches.append(ROSE, [Arrival(bytes(16), "key", b"h", b"newest")])
            assert [batch.ciphertext for batch in other.batches.sealed(limit=9999)][-1] == b"newest"


def test_a_store_that_has_rows_is_not_copied_into(store: Store, url: URL) -> None:
    with open_store(url) as other:
        other.tokens.issue(valid_s=60)
        with pytest.raises(UsageError, match="has rows in audit: copy into an empty one"):
            copy_store(store.database, other.database)
        assert other.devices.all() == ()


def test_a_copy_that_differs_is_not_kept(store: Store, url: URL) -> None:
    """A database that changes what it is given, in the one way that a test can make it."""
    with open_store(url) as other:
        with other.database.write() as connection:
            connection.execute(
                text(
                    "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN NEW.last_seen_s = NEW.last_seen_s + 1e-6; RETURN NEW; END $$"
                )
            )
            connection.execute(
                text("CREATE TRIGGER change BEFORE INSERT ON devices FOR EACH ROW EXECUTE FUNCTION change()")
            )
        with pytest.raises(StorageError, match=r"The copy of devices in .* differs: nothing is kept"):
            copy_store(store.database, other.database)
        assert not any(rows(other).values())


def test_a_table_that_nobody_knows_is_not_left_behind_silently(store: Store, url: URL) -> None:
    with store.database.write() as connection:
        connection.execute(text("CREATE TABLE plugin (id INTEGER)"))
    target = Database(url)
    with pytest.raises(UsageError, match="a table plugin that is not of umbel"):
        copy_store(store.database, target)
    target.close()


def test_a_fleet_moves_into_postgresql(tmp_path: Path, url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet(tmp_path / "garden")
    with fleet.open_store() as store:
        fill(store)
        before = rows(store)
    secret = tmp_path / "url"
    secret.write_text(url.render_as_string(hide_password=False))

    def run(*words: str) -> str:
        done = CliRunner().invoke(fleet_app, ["store", *words, "--fleet", str(fleet.path)])
        assert done.exit_code == 0, done.output
        assert str(url.password) not in done.output
        return done.output

    assert "schema none" not in run("show")
    assert "the same when read back" in run("copy", "--to-file", str(secret))
    settings = fleet.path / "fleet.toml"
    settings.write_text(settings.read_text().replace('url_file = ""', f'url_file = "{secret}"'))
    told = json.loads(run("show", "--json"))
    assert told["store"].startswith("postgresql://umbel@")
    assert told["rows"] == {name: len(some) for name, some in before.items()}
    with type(fleet).open(fleet.path).open_store() as moved:
        assert moved.database.is_postgresql
        assert rows(moved) == before
    monkeypatch.setenv(ENVIRONMENT, secret.read_text())
    assert "is up to date" in run("upgrade")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Say where to copy the store"),
        (["--to", "postgresql://u:geheim@h/d"], "holds a password where others may read it"),
        (["--to", "store.db"], "is not one"),
    ],
)
def test_where_to_copy_is_said_without_a_password(tmp_path: Path, words: list[str], says: str) -> None:
    fleet = make_fleet(tmp_path / "garden")
    done = CliRunner().invoke(fleet_app, ["store", "copy", *words, "--fleet", str(fleet.path)])
    assert isinstance(done.exception, UsageError)
    assert says in str(done.exception)
    assert "geheim" not in str(done.exception)
