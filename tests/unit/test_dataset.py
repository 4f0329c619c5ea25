"""The local data set: what was added comes back, of this model and place only; its labels, splits and copies."""

from __future__ import annotations

import contextlib
import copy
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashing import crashed
from model_packages import RELEASE, first, opened
from umbel._data.consent import Consent
from umbel._data.dataset import TEST_SHARE, DataSet
from umbel._data.rows import Retention
from umbel._data.store import MAX_LABELS
from umbel._home.directory import DeviceHome
from umbel.train.evaluate import hold_back
from umbel_proto.contract import Column, DataContract, Field
from umbel_proto.errors import RefusedError, StorageError, UsageError
from umbel_proto.manifest import Manifest

DAY_S = 86400.0
START_S = 1.8e9


class Clock:
    def __init__(self, now_s: float = START_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    home = DeviceHome(tmp_path / "home")
    home.make()
    return home


@pytest.fixture
def clock() -> Clock:
    return Clock()


def manifest() -> Manifest:
    return opened(first()).manifest


@pytest.fixture
def data(home: DeviceHome, clock: Clock) -> Iterator[DataSet]:
    with DataSet(home, manifest(), clock=clock) as data:
        yield data


def images(count: int, *, seed: int = 0) -> np.ndarray:
    shape = manifest().contract.fields[0].shape
    return np.random.default_rng(seed).integers(0, 17, (count, *shape)).astype(np.float32)


def test_examples_come_back_as_they_were_in_their_order(home: DeviceHome, data: DataSet) -> None:
    x, y = images(5), np.array([3, 1, 4, 1, 5])
    ids = data.add(x, y, source="user", annotator="ada")
    assert data.add(x[0], 9, source="camera") not in (ids, ())
    with DataSet(home, manifest(), clock=Clock()) as again:
        training, examples = again.training(), again.examples()
    assert training.x.tobytes() == np.concatenate([x, x[:1]]).tobytes()
    assert training.y is not None
    assert (training.y.dtype, training.y.tolist()) == (np.int64, [3, 1, 4, 1, 5, 9])
    assert tuple(example.id for example in examples[:5]) == ids
    assert [(e.source, e.at_s, e.labels[0].annotator) for e in examples[4:]] == [
        ("user", START_S, "ada"),
        ("camera", START_S, ""),
    ]


def test_nothing_on_disk_shows_an_example_its_label_or_who_gave_it(home: DeviceHome, data: DataSet) -> None:
    x = images(20)
    data.add(x, np.full(20, 7), source="the-kitchen", annotator="ada-lovelace")
    data.label(data.examples()[0].id, 8, source="the-kitchen", annotator="ada-lovelace")
    written = b"".join(path.read_bytes() for path in home.data.iterdir())
    key = home.examples_key.read_bytes()
    assert len(written) > 20 * x[0].nbytes
    for secret in (x[0].tobytes()[:64], b"the-kitchen", b"ada-lovelace"):
        assert secret not in written
    assert written.count(key) == 1  # In its own file only.
    assert stat.S_IMODE(home.examples_key.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (np.full((1, 8, 8), 99, np.float32), [1], "over 16"),
        (np.full((1, 8, 8), np.nan, np.float32), [1], "missing"),
        (np.zeros((2, 5), np.float32), [1, 2], "shape"),
        (None, [1, 10, 2], "0..9"),
        (None, [1, 2], "one label for each"),
        (None, [0.5, 1, 2], "whole numbers"),
    ],
)
def test_what_breaks_the_contract_is_refused_and_none_of_the_batch_kept(
    data: DataSet, x: np.ndarray | None, y: list[float], why: str
) -> None:
    given = images(3) if x is None else x.reshape(len(x), *images(1).shape[1:]) if x.size > 10 else x
    with pytest.raises(UsageError, match=why):
        data.add(given, np.array(y), source="user")
    assert data.examples() == ()


@pytest.mark.parametrize(
    "y", [["3", "1", "4"], ("3", "1", "4"), np.array(["3", "1", "4"]), np.array(["3", "1", "4"], object)]
)
def test_labels_are_given_by_name_as_by_number(home: DeviceHome, y: Any) -> None:
    data = DataSet(home, replace(manifest(), labels=tuple("9876543210")))
    data.add(images(3), y, source="user")
    [one] = data.add(images(1, seed=1)[0], "7", source="user")
    data.label(one, "5", source="ada")
    assert [example.labels[-1].y for example in data.examples()] == [6, 8, 5, 4]


@pytest.mark.parametrize(
    ("y", "why"),
    [
        (["3", "x", "4"], "Model digits has no label 'x': give .* by name, or whole numbers in 0..9"),
        (["3", 1, "4"], "Model digits has no label 1: give all of them by name, or whole numbers"),
        ("3", "one label for each"),
        (["3", "1"], "one label for each"),
        ([[3], [1, 4], [1]], "some have another length: give one label for each"),
    ],
)
def test_names_of_no_class_are_refused_and_so_are_too_few(data: DataSet, y: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        data.add(images(3), y, source="user")
    assert data.examples() == ()


def test_a_source_is_demanded_and_has_an_end(data: DataSet) -> None:
    with pytest.raises(UsageError, match="source"):
        data.add(images(1), [1], source="")
    with pytest.raises(UsageError, match="at most 200"):
        data.add(images(1), [1], source="x" * 201)


def tamper(home: DeviceHome, *statements: str) -> None:
    with sqlite3.connect(home.examples) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


SWAP = (
    "UPDATE {0} SET sealed = (SELECT sealed FROM {0} AS other WHERE other.id = 3 - {0}.id) WHERE id IN (1, 2)"
)
FLIP = "UPDATE examples SET sealed = CAST(substr(sealed, 1, 30) || x'{}' || substr(sealed, 32) AS BLOB) WHERE id = 1"


@pytest.mark.parametrize(
    "statements",
    [
        (SWAP.format("examples"),),
        (SWAP.format("labels"),),
        ("UPDATE labels SET example = 2 WHERE id = 1",),
        ("UPDATE examples SET model = 'digits' WHERE model = 'other'",),
        ("UPDATE examples SET near = zeroblob(16) WHERE id = 1",),
        (FLIP.format("00"), FLIP.format("01")),
    ],
)
def test_a_row_that_was_moved_swapped_or_altered_is_told_from_a_true_one(
    home: DeviceHome, data: DataSet, statements: tuple[str, ...]
) -> None:
    data.add(images(2), [1, 2], source="user")
    with DataSet(home, replace(manifest(), model="other"), clock=Clock()) as other:
        other.add(images(1, seed=1), [3], source="user")
    assert len(data.training()) == 2
    # One of two values of a byte is another one than was there.
    with pytest.raises(StorageError, match="damaged"):  # noqa: PT012
        for statement in statements:
            tamper(home, statement)
            data.training()


def test_a_row_cannot_be_there_twice(home: DeviceHome, data: DataSet) -> None:
    data.add(images(1), [1], source="user")
    columns = "name, model, schema, exact, near, shifted, added_s, sealed"
    with pytest.raises(sqlite3.IntegrityError):
        tamper(home, f"INSERT INTO examples ({columns}) SELECT {columns} FROM examples")
    columns = columns.replace("name", "x'0102030405060708'", 1)
    tamper(
        home,
        f"INSERT INTO examples ({columns.replace(columns.split(',')[0], 'name')}) SELECT {columns} FROM examples",
    )
    with pytest.raises(StorageError, match="damaged"):
        data.training()


def test_of_each_annotator_the_newest_label_counts_and_the_majority_wins(data: DataSet) -> None:
    (one,) = data.add(images(1), [3], source="user")
    data.label(one, 5, source="review", annotator="ada")
    (example,) = data.examples()
    assert (example.y, example.agreement) == (None, 0.5)
    with pytest.raises(UsageError, match="no labeled example"):
        data.training()
    data.label(one, 3, source="review", annotator="bob")
    data.label(one, 5, source="user")  # The user's second thought replaces the first.
    (example,) = data.examples()
    assert (example.y, example.agreement) == (5, 2 / 3)
    assert [(label.y, label.annotator) for label in example.labels] == [
        (3, ""),
        (5, "ada"),
        (3, "bob"),
        (5, ""),
    ]
    assert data.report().agreement == 2 / 3


def test_an_example_keeps_so_many_labels_the_newest(data: DataSet) -> None:
    (one,) = data.add(images(1), [0], source="user")
    for number in range(MAX_LABELS + 3):
        data.label(one, number % 10, source="review", annotator=f"person {number}")
    (example,) = data.examples()
    assert [label.annotator for label in example.labels] == [
        f"person {each}" for each in range(3, MAX_LABELS + 3)
    ]


def test_an_example_may_wait_for_its_label(data: DataSet) -> None:
    one, _ = data.add(images(2), source="camera")
    assert data.report().unlabeled == 2
    data.label(one, 4, source="user")
    assert (len(data.training()), data.report().unlabeled) == (1, 1)
    with pytest.raises(UsageError, match="no example"):
        data.label("00" * 8, 4, source="user")
    with pytest.raises(UsageError, match="hexadecimal"):
        data.label("one", 4, source="user")


def test_copies_exact_and_near_are_never_on_both_sides_of_a_split(data: DataSet) -> None:
    x = images(60)
    low, high = manifest().contract.fields[0].minimum, manifest().contract.fields[0].maximum
    near = np.clip(x + np.float32(0.1 * (high - low) / 32), low, high)
    data.add(np.concatenate([x, x, near]), np.zeros(180, np.int64), source="user")
    for share in (0.1, TEST_SHARE, 0.5):
        train, test = data.split(share)
        assert len(train) + len(test) == 180
        assert len(test) % 3 == 0 < len(test)
        steps = [
            {np.rint((row - low) / (high - low) * 32).tobytes() for row in side.x} for side in (train, test)
        ]
        assert not steps[0] & steps[1]
    report = data.report()
    assert (report.copies, report.near_copies, report.leaks) == (60, 60, 0)
    assert (report.train, report.test) == tuple(map(len, data.split()))


def test_what_is_near_but_rounded_apart_is_reported_as_a_leak(home: DeviceHome, data: DataSet) -> None:
    # Just below and just above the border of a step: two contents for the split, one on the other grid.
    step = 16 / 32
    rows = []
    for index in range(40):
        row = np.zeros(images(1).shape[1:], np.float32)
        row.flat[index] = 8
        row.flat[63 - index // 2] = 4
        rows += [row + np.float32(0.49 * step), row + np.float32(0.51 * step)]
    data.add(np.clip(np.stack(rows), 0, 16), np.zeros(80, np.int64), source="user")
    tested = data.split()[1]
    assert 0 < len(tested) < 80
    report = data.report()
    assert report.near_copies == 0
    assert report.leaks > 0


@given(sizes=st.lists(st.integers(1, 3), min_size=3, max_size=12), share=st.floats(0.05, 0.5))
def test_holding_back_by_content_keeps_equal_places_together(sizes: list[int], share: float) -> None:
    from umbel._data.examples import Examples

    chance = np.random.default_rng(len(sizes))
    own = chance.integers(0, 2**63, len(sizes), dtype=np.uint64) * np.uint64(2)
    places = np.repeat(own, sizes)
    x = np.arange(len(places), dtype=np.float32)[:, None]
    train, test = hold_back(Examples(x, None, places), share)
    assert train.places is not None
    assert test.places is not None
    assert not set(train.places.tolist()) & set(test.places.tolist())
    assert sorted([*train.x[:, 0], *test.x[:, 0]]) == x[:, 0].tolist()


def test_only_copies_of_one_example_cannot_be_divided(data: DataSet) -> None:
    data.add(np.repeat(images(1), 4, axis=0), np.zeros(4, np.int64), source="user")
    with pytest.raises(UsageError, match="Copies of one example"):
        data.split()


def test_the_report_says_what_is_there_and_how_balanced(data: DataSet) -> None:
    data.add(images(6), [0, 0, 0, 0, 1, 1], source="user")
    data.add(images(2, seed=1), source="camera")
    report = data.report()
    assert (report.rows, report.unlabeled, report.disputed, report.unusable) == (8, 2, 0, 0)
    names = manifest().labels
    assert report.labels == dict.fromkeys(names, 0) | {names[0]: 4, names[1]: 2}
    assert report.imbalance == float("inf")
    assert report.sources == {"camera": 2, "user": 6}
    data.add(images(10, seed=2), range(10), source="user")
    assert data.report().imbalance == 5.0


def test_what_another_version_takes_no_more_stays_but_is_not_trained_on(
    home: DeviceHome, data: DataSet
) -> None:
    x = images(4)
    x[0].flat[0] = 16
    x[1:] = np.minimum(x[1:], 8)
    data.add(x, [1, 2, 3, 4], source="user")
    contract = copy.deepcopy(manifest().contract)
    narrow = replace(contract, fields=(replace(contract.fields[0], maximum=8.0),))
    with DataSet(home, replace(manifest(), contract=narrow), clock=Clock()) as later:
        assert (len(later.training()), later.report().unusable) == (3, 1)
    other = replace(manifest(), labels=tuple(reversed(manifest().labels)))
    with DataSet(home, other, clock=Clock()) as renamed:
        assert (renamed.examples(), renamed.report().unusable) == ((), 4)
    assert len(data.training()) == 4


def of_columns(*columns: Column) -> Manifest:
    """A model of a table whose columns these are."""
    only = manifest().contract.fields[0]
    field = replace(
        only,
        shape=(len(columns),),
        minimum=min(column.minimum for column in columns),
        maximum=max(column.maximum for column in columns),
        allow_missing=False,
        columns=columns,
    )
    inputs = (replace(manifest().inputs[0], shape=("batch", len(columns))),)
    return replace(manifest(), contract=DataContract((field,)), inputs=inputs)


def test_near_is_told_by_each_columns_own_range_and_categories_are_never_near(home: DeviceHome) -> None:
    table = of_columns(
        Column("income", 0, 1e6), Column("age", 0, 100), Column("kind", 0, 90, (0.0, 1.0, 90.0))
    )
    rows = [[1000, 50, 0], [2000, 50.1, 0], [1000, 80, 0], [1000, 50, 1]]
    with DataSet(home, table, clock=Clock()) as data:
        data.add(np.array(rows, np.float32), [1, 2, 3, 4], source="user")
        assert (data.report().copies, data.report().near_copies) == (0, 1)


def test_what_the_contract_only_flags_is_kept_and_trained_on(home: DeviceHome) -> None:
    table = of_columns(Column("age", 0, 100, action="flag"), Column("height", 0, 3, action="clip"))
    rows = [[150, 1], [-7, 1], [50, 7]]
    with DataSet(home, table, clock=Clock()) as data:
        data.add(np.array(rows, np.float32), [1, 2, 4], source="user")
        assert (len(data.training()), data.report().unusable) == (3, 0)
        assert data.training().x[2].tolist() == [50, 3]


def test_the_oldest_go_when_there_are_too_many_or_too_much_and_are_counted(
    data: DataSet, clock: Clock
) -> None:
    data.retain(Retention(max_rows=5))
    ids = data.add(images(8), range(8), source="user")
    assert tuple(example.id for example in data.examples()) == ids[3:]
    size = data.report().bytes // 5
    data.retain(Retention(max_bytes=2 * size))
    assert tuple(example.id for example in data.examples()) == ids[6:]
    assert (data.report().crowded, data.report().expired) == (6, 0)
    data.retain(Retention(max_age_s=DAY_S))
    clock.now_s += 0.9 * DAY_S
    newest = data.add(images(1, seed=3), [1], source="user")
    clock.now_s += 0.2 * DAY_S
    assert len(data.training()) == 1
    assert tuple(example.id for example in data.examples()) == newest
    assert (data.report().crowded, data.report().expired) == (6, 2)


def test_a_clock_that_is_wrong_by_a_year_for_an_hour_costs_no_example(data: DataSet, clock: Clock) -> None:
    data.retain(Retention(max_age_s=30 * DAY_S))
    data.add(images(3), [1, 2, 3], source="user")
    for wrong_s in (365 * DAY_S, -365 * DAY_S, -START_S + 5):
        clock.now_s = START_S + wrong_s
        for _ in range(3):
            data.add(images(1), [0], source="user")
            clock.now_s += 1000
            assert len(data.training()) >= 3
    clock.now_s = START_S + DAY_S
    assert sum(example.y != 0 for example in data.examples()) == 3


def test_examples_expire_when_a_device_comes_back_after_long_and_stays(data: DataSet, clock: Clock) -> None:
    data.retain(Retention(max_age_s=30 * DAY_S))
    data.add(images(3), [1, 2, 3], source="user")
    clock.now_s += 60 * DAY_S
    assert len(data.training()) == 3
    clock.now_s += 1.1 * DAY_S
    with pytest.raises(UsageError, match="no labeled example"):
        data.training()
    assert data.report().expired == 3


@settings(max_examples=30)
@given(
    batches=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    rows=st.integers(1, 9),
    size=st.integers(1, 4000),
)
def test_whatever_comes_the_newest_stay_within_the_bounds(
    batches: list[int], rows: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = DeviceHome(tmp_path_factory.mktemp("data"))
    home.make()
    with DataSet(home, manifest(), clock=Clock()) as data:
        data.retain(Retention(max_rows=rows, max_bytes=size))
        ids: list[str] = []
        for number, count in enumerate(batches):
            ids += data.add(images(count, seed=number), np.zeros(count, np.int64), source="user")
            report = data.report()
            assert report.rows <= rows
            assert report.bytes <= size
            assert report.rows + report.crowded == len(ids)
            with contextlib.closing(sqlite3.connect(home.examples)) as db:
                assert (
                    db.execute("SELECT rows, bytes FROM totals").fetchone()
                    == db.execute(
                        "SELECT count(*), coalesce(sum(length(sealed)), 0) FROM examples"
                    ).fetchone()
                )
            assert [example.id for example in data.examples()] == ids[len(ids) - report.rows :]


def test_taking_back_consent_deletes_everything_and_refuses_more(home: DeviceHome, data: DataSet) -> None:
    x = images(30)
    data.add(x, np.zeros(30, np.int64), source="user")
    consent = Consent(home, clock=Clock(5.0))
    with contextlib.closing(sqlite3.connect(home.examples)) as db:
        sealed = [
            row for (row,) in db.execute("SELECT sealed FROM examples UNION ALL SELECT sealed FROM labels")
        ]
    assert consent.revoke("training", by="ada") == 30
    assert not home.examples_key.exists()
    left = b"".join(path.read_bytes() for path in home.data.iterdir())
    assert (len(sealed), [row for row in sealed if row[:20] in left]) == (60, [])
    assert (consent.decision().state, consent.decision().by, consent.decision().at_s) == (
        "revoked",
        "ada",
        5.0,
    )
    assert data.examples() == ()
    with pytest.raises(RefusedError, match="took back consent"):
        data.add(x, np.zeros(30, np.int64), source="user")
    assert not home.examples_key.exists()
    consent.grant("training")
    data.add(x[:2], [1, 2], source="user")
    assert len(data.training()) == 2


@pytest.mark.parametrize("by", ["", "  ", 7, None])
def test_who_decides_is_named_or_nothing_is_decided(home: DeviceHome, by: Any) -> None:
    """A decision by something else than a name was kept, and damaged the file for whoever read it."""
    consent = Consent(home)
    for decide in (consent.grant, consent.revoke):
        with pytest.raises(UsageError, match="Say who decides"):
            decide(by=by)
    assert consent.decision().state == "unasked"


def sealed_rows(home: DeviceHome) -> list[bytes]:
    with contextlib.closing(sqlite3.connect(home.examples)) as db:
        return [
            row for (row,) in db.execute("SELECT sealed FROM examples UNION ALL SELECT sealed FROM labels")
        ]


def test_what_was_deleted_is_overwritten_in_the_file(home: DeviceHome, data: DataSet) -> None:
    ids = data.add(images(30), np.zeros(30, np.int64), source="user")
    gone = set(sealed_rows(home))
    assert data.remove(*ids[1:]) == 29
    gone -= set(sealed_rows(home))
    data.close()
    left = home.examples.read_bytes()
    assert (len(gone), [row for row in gone if row[:20] in left]) == (58, [])


def test_the_file_shrinks_when_everything_is_deleted(home: DeviceHome, data: DataSet) -> None:
    data.add(images(500), np.zeros(500, np.int64), source="user")
    data.close()
    before = home.examples.stat().st_size
    Consent(home).revoke()
    assert home.examples.stat().st_size < before / 3


def test_a_copy_of_the_file_from_before_says_nothing_after_consent_was_taken_back(
    home: DeviceHome, data: DataSet
) -> None:
    data.add(images(3), [1, 2, 3], source="user")
    data.close()
    kept = home.examples.read_bytes()
    Consent(home).revoke()
    home.examples.write_bytes(kept)
    Consent(home).grant()
    with (
        DataSet(home, manifest(), clock=Clock()) as again,
        pytest.raises(StorageError, match="is missing, the key"),
    ):
        again.training()


def test_a_revocation_that_was_killed_halfway_is_completed_by_whoever_looks_next(
    home: DeviceHome, data: DataSet
) -> None:
    data.add(images(3), [1, 2, 3], source="user")
    data.close()
    code = (
        "import os, signal, sys; from pathlib import Path\nimport umbel._data.consent as c\n"
        "from umbel._home.directory import DeviceHome\n"
        "c.erase = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "c.Consent(DeviceHome(Path(sys.argv[1]))).revoke()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home.path)], check=False)
    assert done.returncode == -9
    assert home.examples_key.exists()
    with DataSet(home, manifest(), clock=Clock()) as again:
        assert again.examples() == ()
    assert not home.examples_key.exists()


def test_consent_that_nobody_can_read_is_no_consent_and_can_still_be_taken_back(
    home: DeviceHome, data: DataSet
) -> None:
    data.add(images(1), [1], source="user")
    home.consent.write_text("{")
    with pytest.raises(StorageError, match="nobody knows what the user allows"):
        data.add(images(1), [1], source="user")
    with pytest.raises(StorageError, match="nobody knows"):
        Consent(home).grant()
    assert Consent(home).revoke() == 1
    assert Consent(home).decision().state == "revoked"
    with pytest.raises(UsageError, match="no purpose"):
        Consent(home).revoke("marketing")


def test_on_a_full_disk_a_no_is_kept_and_what_it_forbids_cannot_be_read(
    home: DeviceHome, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    consent = Consent(home)
    consent.grant(by="someone of a long name, so that the next word is shorter")
    consent.grant("queries")
    data.add(images(2), [1, 2], source="user")

    def full(*_: object, **__: object) -> None:
        raise StorageError("No space is left.")

    with monkeypatch.context() as patch:
        patch.setattr(DeviceHome, "write", full)
        patch.setattr("umbel._data.store.transaction", full)
        with pytest.raises(StorageError):
            consent.grant(by="ada")
        assert consent.revoke(by="ada") == 0
        assert consent.revoke("queries") == 0
    assert (consent.decision().state, consent.decision().by) == ("revoked", "ada")
    assert consent.decision("queries").state == "revoked"
    assert not home.examples_key.exists()
    with DataSet(home, manifest(), clock=Clock()) as again:
        assert again.examples() == ()


def test_a_missing_foreign_or_open_key_is_one_clear_sentence_and_loses_nothing(
    home: DeviceHome, data: DataSet
) -> None:
    data.add(images(2), [1, 2], source="user")
    key = home.examples_key.read_bytes()
    home.examples_key.chmod(0o644)
    with pytest.raises(StorageError, match=r"mode 644\): run  chmod 600"):
        data.training()
    home.examples_key.unlink()
    with pytest.raises(StorageError, match="is missing, the key to"):
        data.add(images(1), [1], source="user")
    for wrong, why in ((os.urandom(32), "is not the key to"), (b"short", "is damaged")):
        home.write(home.examples_key, wrong, secret=True)
        with pytest.raises(StorageError, match=why):
            data.training()
    home.write(home.examples_key, key, secret=True)
    assert len(data.training()) == 2


def test_a_damaged_file_is_one_clear_sentence(home: DeviceHome, data: DataSet) -> None:
    data.add(images(40), np.zeros(40, np.int64), source="user")
    data.close()
    content = bytearray(home.examples.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    home.examples.write_bytes(content)
    with pytest.raises(StorageError, match="umbel data delete --all"):
        DataSet(home, manifest()).training()
    assert Consent(home).revoke() == 0
    assert not home.examples_key.exists()
    Consent(home).grant()
    with DataSet(home, manifest()) as again:
        again.add(images(1), [1], source="user")
        assert len(again.training()) == 1


def test_two_processes_and_two_threads_may_add_at_once_and_share_a_key(home: DeviceHome) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_dataset import *\n"
        "with DataSet(DeviceHome(Path(sys.argv[1])), manifest()) as data:\n"
        "    for n in range(20): data.add(images(1, seed=n), [1], source='process')\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, str(home.path), paths[0]]
    others = [subprocess.Popen(command, env=environment) for _ in range(2)]
    with DataSet(home, manifest(), clock=Clock()) as data:
        threads = [
            threading.Thread(target=lambda: [data.add(images(1), [2], source="thread") for _ in range(20)])
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [other.wait() for other in others] == [0, 0]
        assert (
            sorted(example.y for example in data.examples() if isinstance(example.y, int))
            == [1] * 40 + [2] * 40
        )


def test_a_disk_that_is_full_keeps_what_was_there(home: DeviceHome, data: DataSet) -> None:
    data.add(images(3), [1, 2, 3], source="user")
    data._store._connection.execute(f"PRAGMA max_page_count = {home.examples.stat().st_size // 4096 + 1}")
    with pytest.raises(StorageError, match="No space is left"):  # noqa: PT012
        for seed in range(200):
            data.add(images(20, seed=seed), np.zeros(20, np.int64), source="user")
    data._store._connection.execute("PRAGMA max_page_count = 1000000")
    kept = data.training()
    assert len(kept) % 20 == 3
    assert kept.x[:3].tobytes() == images(3).tobytes()


def test_examples_survive_a_kill_at_any_moment_whole_or_not_at_all(home: DeviceHome) -> None:
    """Killed in the middle of whatever it did: each batch is there with all its labels, or not at all."""
    code = (
        "import sys; from pathlib import Path\nfrom test_dataset import *\n"
        "with DataSet(DeviceHome(Path(sys.argv[1])), manifest()) as data:\n"
        "    print('ready', flush=True)\n"
        "    while True: data.add(images(7), np.arange(7), source='user'); print('added', flush=True)\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    added = 0
    for lines in (1, 2, 4, 7):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(home.path)], env=environment, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            for _ in range(lines):
                assert other.stdout.readline()
            other.kill()
            added += lines - 1 + len(other.stdout.readlines())
        with DataSet(home, manifest(), clock=Clock()) as data:
            held = [example.y for example in data.examples()]
        assert held == list(range(7)) * (len(held) // 7)
        assert len(held) >= 7 * added
        added = len(held) // 7


def test_near_copies_are_told_by_each_columns_own_range(home: DeviceHome, clock: Clock) -> None:
    columns = [*(Column(f"c{number}", 0.0, 16.0) for number in range(7)), Column("narrow", 0.0, 0.5)]
    contract = DataContract((Field.of_columns("x", "float32", columns, rows=(1, 8)),))
    x = np.full((1, 8, 8), 0.1, np.float32)
    other, near = x.copy(), x.copy()
    other[..., 7] = 0.3
    near[..., 0] += 0.05
    with DataSet(home, replace(manifest(), contract=contract), clock=clock) as data:
        data.add(np.stack([x, other]), np.array([1, 2]), source="user")
        assert data.report().near_copies == 0
        data.add(near, 1, source="user")
        assert data.report().near_copies == 1


def test_every_change_that_is_killed_at_any_instant_is_done_or_not_begun(tmp_path: Path) -> None:
    """Adding to an empty set and to one with examples, deleting what is over a bound, and taking back consent."""
    package = tmp_path / "digits.umbel"
    package.write_bytes(first())
    (tmp_path / "root").mkdir()
    lines = crashed("crashing_data.py", tmp_path / "root", package, RELEASE.public.raw.hex())
    instants = [line.rsplit(" ", 1) for line in lines]
    found = {change: [left for each, left in instants if each == change] for change, _ in instants}
    assert {change: sorted(set(left)) for change, left in found.items()} == {
        "add 0": ["0", "3"],
        "add 4": ["4", "7"],
        "retain 4": ["1", "4"],
        "revoke 4": ["0", "4"],
    }
    assert min(map(len, found.values())) > 20


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        ({"max_rows": 1000.5}, "max_rows is 1000.5: give a whole number"),
        ({"max_rows": "9"}, "max_rows is '9': give a whole number"),
        ({"max_bytes": 2**70}, r"max_bytes is .*: give a whole number under 2\*\*63"),
        ({"max_age_s": "a day"}, "max_age_s is 'a day': give a number of seconds"),
        ({"max_age_s": 0}, "an age over 0"),
    ],
)
def test_bounds_that_are_none_are_refused_before_the_file_hears_of_them(
    bounds: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        Retention(**bounds)
