"""Reviews stay on the device until somebody resolves them, encrypted and bounded; telemetry hears counts only."""

from __future__ import annotations

import sqlite3
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crashing import crashed
from model_packages import digits, first, opened, release
from umbel._data.consent import Consent
from umbel._data.dataset import DataSet
from umbel._home.directory import DeviceHome
from umbel._predict.model import Model, Prediction
from umbel._review import queue as _queue
from umbel._review import recent as _recent
from umbel._review import store as _review_store
from umbel._review.queue import Queue
from umbel._review.review import Review
from umbel._review.store import ReviewStore
from umbel.engines import load_engine
from umbel_proto.errors import StorageError, UsageError

NOW_S = 1.8e9
X = digits().held_out.x[0]


class Desk:
    """A device's reviews without the device: its store, its data set, what telemetry was told."""

    def __init__(self, home: DeviceHome) -> None:
        self.home = home
        self.now_s = NOW_S
        self.told: Counter[tuple[int, str]] = Counter()
        self.judged: list[tuple[int, bool, float | None]] = []
        self.file, self.key = home.data / "review.db", home.data / "review.key"
        self.store = ReviewStore(self.file, self.key)
        self.data = DataSet(home, opened(first()).manifest, clock=lambda: self.now_s)
        self.queue = Queue(
            "digits",
            lambda: self.store,
            tell=self.tell,
            judge=self.judge,
            data=lambda: self.data,
            clock=lambda: self.now_s,
        )
        self.review = Review(self.queue, opened(first()).manifest.labels, 2)

    def tell(self, version: int, name: str, by: int) -> None:
        self.told[version, name] += by

    def judge(self, version: int, agreed: bool, confidence: float | None) -> None:
        self.judged.append((version, agreed, confidence))

    def ask(self, x: NDArray[Any] = X, kept: NDArray[Any] | None = None) -> Prediction:
        """A model that was never trained is sure of nothing."""
        package = opened(first())
        said = Model(package, load_engine(package, "fp32")).predict(x)
        assert isinstance(said, Prediction)
        assert said.decision == "review"
        self.queue.offer(said, x if kept is None else kept)
        return said


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    home = DeviceHome(tmp_path / "home")
    home.make()
    desk = Desk(home)
    yield desk
    desk.store.close()
    desk.data.close()


def test_a_prediction_waits_until_it_is_resolved_and_its_example_is_learned_from(desk: Desk) -> None:
    said = desk.ask()
    (case,) = desk.review.pending()
    assert (case.id, case.label, case.name, case.model_version) == (said.id, said.label, said.name, 1)
    assert (case.confidence, case.at_s) == (said.confidence, NOW_S)
    np.testing.assert_array_equal(case.x, X)
    right = (said.label + 1) % 10
    made = desk.review.resolve(said.id, right, by="Ada", why="a closed loop")
    assert desk.review.pending() == ()
    assert desk.review.rulings() == (made,)
    assert (made.said, made.label, made.name) == (said.label, right, str(right))
    assert (made.by, made.why, made.override, made.at_s) == ("Ada", "a closed loop", False, NOW_S)
    (example,) = desk.data.examples()
    assert (example.y, example.source, example.labels[0].annotator) == (right, "review", "Ada")
    np.testing.assert_array_equal(example.x, X)
    assert desk.told == {(1, "review.asked"): 1, (1, "review.resolved"): 1, (1, "review.changed"): 1}
    with pytest.raises(UsageError, match="waits for a review"):
        desk.review.resolve(said.id, right, by="Ada")


def test_a_review_that_agrees_changes_nothing(desk: Desk) -> None:
    said = desk.ask()
    desk.review.resolve(said.id, said.label, by="Ada")
    assert (1, "review.changed") not in desk.told


def test_an_override_records_who_and_why_whether_the_prediction_waited_or_not(desk: Desk) -> None:
    said = desk.ask()
    for why in ("", "  "):
        with pytest.raises(UsageError, match="needs a reason"):
            desk.review.override(said, 3, by="Ada", why=why)
    desk.review.override(said, 3, by="Ada", why="the law says so")
    desk.review.override(said, 4, by="Eve", why="it does not")
    desk.review.override("00ff00ff00ff00ff", 5, by="Eve", why="an old one")
    assert desk.review.pending() == ()
    assert [(each.label, each.by, each.why, each.said, each.override) for each in desk.review.rulings()] == [
        (3, "Ada", "the law says so", said.label, True),
        (4, "Eve", "it does not", said.label, True),
        (5, "Eve", "an old one", None, True),
    ]
    assert desk.told[1, "review.overridden"] == 2
    assert desk.told[2, "review.overridden"] == 1  # of a version nobody knows: it counts for the present one


@pytest.mark.parametrize(
    ("label", "by"),
    [(10, "Ada"), (-1, "Ada"), (True, "Ada"), (1.0, "Ada"), ("10", "Ada"), ("", "Ada"), (3, " ")],
)
def test_who_decides_and_what_must_make_sense_or_the_case_goes_on_waiting(
    desk: Desk, label: Any, by: str
) -> None:
    said = desk.ask()
    with pytest.raises(UsageError, match=r"no class|who decides"):
        desk.review.resolve(said.id, label, by=by)
    assert len(desk.review.pending()) == 1
    assert desk.review.rulings() == ()


def test_a_class_may_be_given_by_its_name_wherever_a_person_says_what_holds(desk: Desk) -> None:
    first, second = desk.ask(), desk.ask()
    assert desk.review.resolve(first.id, "3", by="Ada").label == 3
    assert desk.review.override(first, "4", by="Ada", why="it is").label == 4
    assert desk.review.feedback(second, label=second.name, source="user", annotator="", x=None).agreed
    assert not desk.review.feedback(
        second, label=str((second.label + 1) % 10), source="user", annotator="", x=None
    ).agreed


def test_the_example_of_a_case_is_what_it_was_when_the_model_was_asked(desk: Desk) -> None:
    x = X.copy()
    desk.ask(x)
    x[:] = 0  # An application uses its buffer again.
    np.testing.assert_array_equal(desk.review.pending()[0].x, X)


def test_nothing_of_a_case_or_a_ruling_is_readable_on_disk(desk: Desk) -> None:
    said = desk.ask()
    desk.queue.keep()
    held = [desk.file.read_bytes(), (desk.home.data / "review.db-wal").read_bytes()]
    desk.review.resolve(said.id, 3, by="Ada Lovelace", why="a closed loop")
    held += [desk.file.read_bytes(), (desk.home.data / "review.db-wal").read_bytes()]
    for secret in (
        X.tobytes(),
        X.tobytes()[64:96],
        b"Ada Lovelace",
        b"closed loop",
        repr(said.confidence).encode(),
    ):
        assert not any(secret in raw for raw in held)
    assert any(b"digits" in raw for raw in held)  # The search finds what is there.
    assert stat.S_IMODE(desk.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(desk.file.stat().st_mode) == 0o600


def test_rows_cannot_change_places(desk: Desk) -> None:
    desk.ask()
    desk.ask()
    desk.queue.keep()
    with sqlite3.connect(desk.file) as other:
        one, two = other.execute("SELECT sealed FROM cases ORDER BY number").fetchall()
        other.execute("UPDATE cases SET sealed = ? WHERE number = 1", two)
        other.execute("UPDATE cases SET sealed = ? WHERE number = 2", one)
    other.close()
    with pytest.raises(StorageError, match="damaged"):
        desk.review.pending()


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_without_its_key_the_file_says_so(desk: Desk, damage: str) -> None:
    desk.ask()
    desk.queue.keep()
    desk.key.unlink()
    if damage == "another":
        desk.key.write_bytes(bytes(32))
        desk.key.chmod(0o600)
    with pytest.raises(StorageError, match="not the key"):
        desk.review.pending()
    with pytest.raises(StorageError, match="not the key"):
        desk.store.add("digits", [("a", NOW_S, b"")])


def test_the_oldest_go_and_are_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_review_store, "MAX_CASES", 3)
    ids = [desk.ask().id for _ in range(5)]
    assert [case.id for case in desk.review.pending()] == ids[2:]
    assert desk.told[1, "review.dropped"] == 2
    monkeypatch.setattr(_review_store, "MAX_BYTES", 100)  # No case is so small.
    desk.ask()
    assert desk.review.pending() == ()


@pytest.mark.parametrize("wrong_s", [365 * 86400.0, -365 * 86400.0, -NOW_S + 5])
def test_a_wrong_clock_costs_no_prediction_that_waits(desk: Desk, wrong_s: float) -> None:
    """Nor does the right one, however long nobody looks: they wait until somebody decides."""
    ids = [desk.ask().id for _ in range(2)]
    desk.queue.keep()
    right_s, desk.now_s = desk.now_s, desk.now_s + wrong_s
    ids += [desk.ask().id for _ in range(2)]
    desk.queue.keep()
    desk.now_s = right_s + 40 * 86400.0
    ids.append(desk.ask().id)
    assert [case.id for case in desk.review.pending()] == ids
    assert not desk.told[1, "review.dropped"]


def test_a_large_batch_of_unsure_answers_waits_whole(desk: Desk) -> None:
    said = desk.ask()
    for _ in range(_review_store.MAX_CASES - 1):
        desk.queue.offer(Prediction(said.label, said.name, 0.5, "review", 1, b""), X)
    assert len(desk.review.pending()) == _review_store.MAX_CASES


def test_memory_is_bounded_by_bytes_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queue, "MAX_UNKEPT_BYTES", 3 * np.array(X).nbytes)
    ids = [desk.ask().id for _ in range(6)]
    assert [case.id for case in desk.review.pending()] == ids[3:]
    assert desk.told[1, "review.dropped"] == 3
    monkeypatch.setattr(_queue, "MAX_UNKEPT_BYTES", 1)
    last = desk.ask().id  # One alone is kept, however large.
    assert desk.review.pending()[-1].id == last


def test_memory_is_bounded_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queue, "MAX_UNKEPT", 4)
    ids = [desk.ask().id for _ in range(6)]
    assert [case.id for case in desk.review.pending()] == ids[2:]
    assert desk.told[1, "review.dropped"] == 2


def test_threads_that_ask_while_another_keeps_lose_nothing_uncounted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "MAX_UNKEPT", 20)
    said = desk.ask()
    rows = [Prediction(said.label, said.name, 0.5, "review", 1, b"") for _ in range(800)]
    with ThreadPoolExecutor(8) as threads:
        for number in range(8):
            threads.submit(lambda start: [desk.queue.offer(each, X) for each in rows[start::8]], number)
        for _ in range(20):
            desk.queue.keep()
    kept = len(desk.review.pending())
    assert kept + desk.told[1, "review.dropped"] == 801
    assert desk.told[1, "review.asked"] == kept


def test_what_the_disk_does_not_take_goes_on_waiting(desk: Desk) -> None:
    ids = [desk.ask().id for _ in range(3)]
    desk.store._db().execute("PRAGMA max_page_count = 1")
    # More than what is left of the pages that are there.
    ids.append(desk.ask(kept=np.zeros((1, 1024, 1024), np.float32)).id)
    with pytest.raises(StorageError, match="No space"):
        desk.queue.keep()
    desk.store._db().execute("PRAGMA max_page_count = 100000")
    assert [case.id for case in desk.review.pending()] == ids
    assert desk.told[1, "review.asked"] == len(ids)


@pytest.mark.parametrize("way", ["resolve", "override"])
@pytest.mark.parametrize("full", ["examples", "reviews"])
def test_a_decision_and_its_example_are_both_kept_or_neither_is(desk: Desk, way: str, full: str) -> None:
    said = desk.ask()
    ways = {
        "resolve": lambda: desk.review.resolve(said, 3, by="Ada"),
        "override": lambda: desk.review.override(said, 3, by="Ada", why="a closed loop"),
    }
    assert len(desk.review.pending()) == 1
    database = desk.data._store._connection if full == "examples" else desk.store._db()
    database.execute("PRAGMA query_only = 1")
    with pytest.raises(StorageError):
        ways[way]()
    database.execute("PRAGMA query_only = 0")
    assert (len(desk.review.pending()), desk.review.rulings(), desk.data.examples()) == (1, (), ())
    assert not desk.told[1, "review.resolved"] + desk.told[1, "review.overridden"]
    made = ways[way]()
    assert (desk.review.pending(), desk.review.rulings()) == ((), (made,))
    (example,) = desk.data.examples()
    assert example.y == 3


def test_a_decision_waits_where_the_data_set_was_closed(desk: Desk) -> None:
    said = desk.ask()
    desk.data.close()
    with pytest.raises(UsageError, match="was closed"):
        desk.review.resolve(said, 3, by="Ada")
    assert (len(desk.review.pending()), desk.review.rulings()) == (1, ())


@pytest.mark.parametrize("way", ["resolve", "override"])
def test_what_the_installed_version_does_not_take_is_decided_all_the_same(desk: Desk, way: str) -> None:
    said = desk.ask(kept=np.zeros((1, 16, 16), np.float32))
    assert len(desk.review.pending()) == 1
    if way == "resolve":
        made = desk.review.resolve(said, 3, by="Ada")
    else:
        made = desk.review.override(said, 3, by="Ada", why="a closed loop")
    assert (desk.review.pending(), desk.review.rulings(), desk.data.examples()) == ((), (made,), ())


@pytest.mark.parametrize("what", [None, 3, []])
def test_what_is_no_prediction_is_told_so(desk: Desk, what: Any) -> None:
    for ask in (
        lambda: desk.review.resolve(what, 3, by="Ada"),
        lambda: desk.review.override(what, 3, by="Ada", why="so"),
        lambda: desk.review.feedback(what, label=3, source="user", annotator="", x=None),
    ):
        with pytest.raises(UsageError, match="is no prediction: give one Prediction, or its id"):
            ask()
    for by, why in ((None, "so"), ("Ada", None)):
        with pytest.raises(UsageError, match="is a text"):
            desk.review.override(desk.ask(), 3, by=by, why=why)  # type: ignore[arg-type]


def test_reviews_outlive_the_process_and_each_model_has_its_own(desk: Desk) -> None:
    said = desk.ask()
    desk.queue.keep()
    desk.store.close()
    desk.store = ReviewStore(desk.file, desk.key)
    assert [case.id for case in desk.review.pending()] == [said.id]
    assert desk.store.waiting() == {"digits": 1}
    assert desk.store.cases("other") == []
    desk.queue.model = "other"
    with pytest.raises(UsageError, match="waits for a review"):
        desk.review.resolve(said.id, 3, by="Ada")


def test_clearing_forgets_what_waits_and_keeps_what_was_decided(desk: Desk) -> None:
    desk.review.resolve(desk.ask().id, 3, by="Ada")
    desk.ask()
    desk.queue.keep()
    desk.ask()
    assert desk.review.clear() == 2
    assert desk.review.pending() == ()
    assert len(desk.review.rulings()) == 1


def test_without_consent_a_review_is_resolved_and_nothing_learned(desk: Desk) -> None:
    Consent(desk.home).revoke("training")
    desk.review.resolve(desk.ask().id, 3, by="Ada")
    assert len(desk.review.rulings()) == 1
    assert desk.data.examples() == ()


def test_feedback_tells_whether_the_model_was_right_and_keeps_the_example(desk: Desk) -> None:
    package = opened(release(2))
    model = Model(package, load_engine(package, "fp32"))
    agreed = 0
    for x, y in zip(digits().held_out.x[:20], digits().held_out.y[:20], strict=True):
        said = model.predict(x)
        assert isinstance(said, Prediction)
        given = desk.review.feedback(said, label=int(y), source="user", annotator="", x=x)
        assert given.kept
        assert given.agreed == (said.label == y)
        assert desk.judged[-1] == (2, given.agreed, said.confidence)
        agreed += given.agreed
    assert (len(desk.judged), sum(right for _, right, _ in desk.judged)) == (20, agreed)
    assert desk.told == {(2, "feedback.from.user"): 20}
    assert [example.y for example in desk.data.examples()] == digits().held_out.y[:20].tolist()


def test_feedback_without_the_example_is_counted_only(desk: Desk) -> None:
    said = desk.ask()
    desk.review.clear()
    given = desk.review.feedback(said, label=said.label, source="user", annotator="", x=None)
    assert (given.agreed, given.kept) == (True, False)
    with pytest.raises(UsageError, match="is not kept: give the Prediction"):
        desk.review.feedback("0123456789abcdef", label=1, source="user", annotator="", x=None)
    with pytest.raises(UsageError, match="give a source"):
        desk.review.feedback(said, label=1, source="", annotator="", x=None)


def test_feedback_by_id_finds_a_case_with_its_example(desk: Desk) -> None:
    said = desk.ask()
    given = desk.review.feedback(said.id, label=said.label, source="user", annotator="", x=None)
    assert (given.agreed, given.kept) == (True, True)
    assert len(desk.data.examples()) == 1
    assert desk.judged == [(1, True, said.confidence)]
    # Of a prediction that waits no more, what an application that asked for its id is remembered to have got.
    desk.review.clear()
    desk.review.feedback(said.id, label=(said.label + 1) % 10, source="user", annotator="", x=None)
    assert desk.judged[1:] == [(1, False, said.confidence)]


def test_where_a_label_is_from_is_counted_in_a_few_words_and_never_in_the_users(desk: Desk) -> None:
    said = desk.ask()
    for source in ("user", "expert", "sensor", "outcome", "rule", "grandma.smith", "user "):
        desk.review.feedback(said, label=said.label, source=source, annotator="Ada", x=None)
    told = {name: n for (_, name), n in desk.told.items() if name.startswith("feedback.from.")}
    assert told == {
        f"feedback.from.{word}": 1 for word in ("user", "expert", "sensor", "outcome", "rule")
    } | {"feedback.from.other": 2}


def test_two_people_who_label_the_same_prediction_are_compared_whichever_way_they_say_it(desk: Desk) -> None:
    first, second = desk.ask(), desk.ask()
    other = (first.label + 1) % 10

    def compared() -> tuple[int, int]:
        return desk.told[1, "feedback.compared"], desk.told[1, "feedback.alike"]

    desk.review.feedback(first, label=first.label, source="user", annotator="Ada", x=None)
    assert compared() == (0, 0)
    desk.review.feedback(first, label=first.label, source="user", annotator="Ada", x=None)
    desk.review.feedback(first, label=other, source="user", annotator="", x=None)
    assert compared() == (0, 0)  # Ada agrees with herself, and nobody is no second person.
    desk.review.resolve(first.id, first.label, by="Bert")
    assert compared() == (1, 1)
    desk.review.override(first, other, by="Carl", why="it says so")
    assert compared() == (2, 1)
    desk.review.feedback(second, label=other, source="user", annotator="Ada", x=None)
    assert compared() == (2, 1)  # Another prediction.


def test_what_is_remembered_of_labels_is_bounded() -> None:
    labeled = _recent.Labeled()
    assert labeled.agrees("first", "Ada", 1) is None
    for number in range(_recent.MAX_RECENT):
        labeled.agrees(f"{number}", "Ada", 1)
    assert labeled.agrees("first", "Bert", 1) is None
    assert len(labeled._given) == _recent.MAX_RECENT
    assert labeled.agrees(f"{_recent.MAX_RECENT - 1}", "Bert", 2) is False


def test_every_change_that_is_killed_at_any_instant_is_done_or_not_begun(tmp_path: Path) -> None:
    instants = [line.rsplit(" ", 1) for line in crashed("crashing_reviews.py", tmp_path)]
    found = {change: [left for each, left in instants if each == change] for change, _ in instants}
    assert {change: set(left) for change, left in found.items()} == {
        "add 0": {"0+0", "2+0"},
        "add 2": {"2+0", "4+0"},
        "decide 2": {"2+0", "1+1"},
    }
    assert min(map(len, found.values())) > 8
