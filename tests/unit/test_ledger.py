"""The device's privacy ledger: a charge that was made is on disk, and none is made twice."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import pytest

from umbel._rounds.ledger import Ledger
from umbel_proto.errors import BudgetError, RefusedError, StorageError
from umbel_proto.ids import RunId
from umbel_proto.privacy import examples
from umbel_proto.privacy.examples import ExampleCharge, NoisySteps
from umbel_proto.privacy.ledger import Charge, spent

DELTA = 1e-6


def charge(number: int, *, variance: Fraction = Fraction(10**13, 3)) -> Charge:
    return Charge(
        run=RunId("run1"),
        round=number,
        attempt=0,
        sid=number.to_bytes(32, "big"),
        bound_sq=2**70 // 2**30,
        padded=1000,
        variance=variance,
        at_s=1e9 + number,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    Ledger.create(path).close()
    return path


def spend(ledger: Ledger, number: int, *, budget: float = math.inf) -> float:
    return ledger.charge(charge(number), budget_epsilon=budget, budget_delta=DELTA)


def test_charges_are_kept_exactly_and_in_order(path: Path) -> None:
    big = charge(2, variance=Fraction(2**200 + 1, 3**50))
    with Ledger(path) as ledger:
        spend(ledger, 1)
        ledger.charge(big, budget_epsilon=math.inf, budget_delta=DELTA)
    with Ledger(path) as ledger:
        assert ledger.charges() == (charge(1), big)


def test_what_is_spent_is_what_the_rules_say_of_the_charges(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.spent(DELTA) == 0
        returned = [spend(ledger, number) for number in range(3)]
        assert returned == [spent([charge(n) for n in range(count)], DELTA) for count in (1, 2, 3)]
        assert ledger.spent(DELTA) == returned[-1]


def test_a_charge_over_the_budget_is_refused_and_not_kept(path: Path) -> None:
    with Ledger(path) as ledger:
        first = spend(ledger, 1)
        with pytest.raises(BudgetError):
            spend(ledger, 2, budget=first * 1.01)
        assert ledger.charges() == (charge(1),)
        spend(ledger, 3)


def test_a_session_is_charged_once_and_answered_once(path: Path) -> None:
    with Ledger(path) as ledger:
        spend(ledger, 1)
    with Ledger(path) as ledger:
        with pytest.raises(RefusedError, match="already"):
            spend(ledger, 1)
        assert ledger.charges() == (charge(1),)


def test_a_charge_that_returned_survives_a_kill_at_once(path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path; from unit_ledger import charge, Ledger\n"
        "Ledger(Path(sys.argv[1])).charge(charge(int(sys.argv[2])), budget_epsilon=9e9, budget_delta=1e-6)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    ).replace("unit_ledger", Path(__file__).stem)
    for number in range(4):
        command = [sys.executable, "-c", code, path, str(number), str(Path(__file__).parent)]
        assert subprocess.run(command, check=False).returncode == -9
        with Ledger(path) as ledger:
            assert [kept.round for kept in ledger.charges()] == list(range(number + 1))


def test_every_commit_waits_for_the_disk(path: Path) -> None:
    # A power cut cannot be tested here; that SQLite is told to survive one can.
    with Ledger(path) as ledger:
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_two_processes_never_spend_the_same_budget(path: Path) -> None:
    with Ledger(path) as ledger:
        budget = spend(ledger, 0) * 1.5
    outcomes: list[str] = []

    def contend(first: int) -> None:
        with Ledger(path) as mine:
            for number in range(first, first + 5):
                try:
                    spend(mine, number, budget=budget)
                    outcomes.append("charged")
                except BudgetError:
                    outcomes.append("refused")

    threads = [threading.Thread(target=contend, args=(first,)) for first in (10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Ledger(path) as ledger:
        assert ledger.spent(DELTA) <= budget
        assert outcomes.count("charged") == len(ledger.charges()) - 1 > 0


def test_a_missing_ledger_is_an_unknown_budget_and_not_a_fresh_one(path: Path) -> None:
    path.unlink()
    with pytest.raises(StorageError, match=r"ledger\.db is missing"):
        Ledger(path)


def test_an_emptied_ledger_is_an_unknown_budget_and_not_a_fresh_one(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="is empty"):
        Ledger(path)
    assert path.stat().st_size == 0
    with pytest.raises(StorageError, match="is empty"):
        Ledger.create(path)


def test_a_ledger_is_whole_when_it_gets_its_name(tmp_path: Path) -> None:
    """What a kill while one was made leaves behind is no ledger, and is made anew."""
    path = tmp_path / "new" / "ledger.db"
    path.parent.mkdir()
    for name in ("ledger.db.new", "ledger.db.new-wal"):
        (path.parent / name).write_bytes(b"half")
    with Ledger.create(path) as ledger:
        assert ledger.charges() == ()
        assert {file.name for file in path.parent.iterdir()} <= {
            "ledger.db",
            "ledger.db-wal",
            "ledger.db-shm",
        }


def test_creating_a_ledger_that_is_there_keeps_its_charges(path: Path) -> None:
    with Ledger(path) as ledger:
        spend(ledger, 1)
    with Ledger.create(path) as ledger:
        assert ledger.charges() == (charge(1),)


@pytest.mark.parametrize("content", [b"this is no database", b"SQLite format 3\x00" + bytes(5000)])
def test_a_damaged_ledger_is_said_to_be_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"ledger\.db is damaged"):
        Ledger(path)


def test_a_ledger_damaged_in_the_middle_is_found_out(path: Path) -> None:
    with Ledger(path) as ledger:
        for number in range(60):
            spend(ledger, number)
    raw = bytearray(path.read_bytes())
    for page in range(2, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(raw)
    with pytest.raises(StorageError, match=r"ledger\.db is damaged"):
        Ledger(path)


def test_a_charge_that_was_edited_into_nonsense_is_found_out(path: Path) -> None:
    with Ledger(path) as ledger:
        spend(ledger, 1)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE charges SET variance = '1/0'")
    connection.commit()
    connection.close()
    with Ledger(path) as ledger, pytest.raises(StorageError, match="damaged"):
        ledger.spent(DELTA)


def test_on_a_full_disk_nothing_is_charged_and_the_sentence_says_so(path: Path) -> None:
    with Ledger(path) as ledger:
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        returned = [spend(ledger, 0)]

        def fill() -> None:
            for number in range(1, 200):
                returned.append(spend(ledger, number))

        with pytest.raises(StorageError, match="No space is left on the disk of"):
            fill()
        assert len(ledger.charges()) == len(returned) < 200


def test_the_ledger_is_its_owners_only(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def training(number: int, *, rate: float = 0.1 + 1e-17, noise: float = 1.1) -> ExampleCharge:
    release = NoisySteps(rate, 10 + number, noise)
    return ExampleCharge(RunId("run1"), number, 1, number.to_bytes(32, "big"), release, 1e9 + number)


def test_charges_for_training_are_kept_exactly_in_order_and_apart(path: Path) -> None:
    with Ledger(path) as ledger:
        spend(ledger, 1)
        returned = [ledger.charge_training(training(number), budget_delta=DELTA) for number in (1, 2)]
    with Ledger(path) as ledger:
        assert ledger.trainings() == (training(1), training(2))
        assert ledger.charges() == (charge(1),)
        assert ledger.spent(DELTA) == spent([charge(1)], DELTA)
    assert returned == [examples.spent([training(n) for n in range(1, last)], DELTA) for last in (2, 3)]


def test_a_session_trained_twice_is_charged_twice(path: Path) -> None:
    with Ledger(path) as ledger:
        once = ledger.charge_training(training(1), budget_delta=DELTA)
        assert ledger.charge_training(training(1), budget_delta=DELTA) > once
        assert ledger.trainings() == (training(1), training(1))


def test_a_training_over_the_examples_budget_is_refused_and_not_kept(path: Path) -> None:
    with Ledger(path) as ledger:
        first = ledger.charge_training(training(1), budget_delta=DELTA)
        with pytest.raises(BudgetError):
            ledger.charge_training(training(2), budget_epsilon=first * 1.01, budget_delta=DELTA)
        with pytest.raises(BudgetError):
            ledger.charge_training(training(2, noise=0.0), budget_epsilon=1e9, budget_delta=DELTA)
        assert ledger.trainings() == (training(1),)


def test_a_charge_for_training_survives_a_kill_at_once(path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path; from unit_ledger import training, Ledger\n"
        "Ledger(Path(sys.argv[1])).charge_training(training(int(sys.argv[2])), budget_delta=1e-6)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    ).replace("unit_ledger", Path(__file__).stem)
    for number in range(3):
        command = [sys.executable, "-c", code, path, str(number), str(Path(__file__).parent)]
        assert subprocess.run(command, check=False).returncode == -9
        with Ledger(path) as ledger:
            assert ledger.trainings() == tuple(training(each) for each in range(number + 1))


def test_a_ledger_from_before_keeps_its_charges_and_takes_new_ones(path: Path) -> None:
    with Ledger(path) as ledger:
        spend(ledger, 1)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE trainings")  # as the first version made it
    connection.commit()
    connection.close()
    with Ledger(path) as ledger:
        assert (ledger.charges(), ledger.trainings()) == ((charge(1),), ())
        ledger.charge_training(training(1), budget_delta=DELTA)
    with Ledger(path) as ledger:
        assert (ledger.charges(), ledger.trainings()) == ((charge(1),), (training(1),))


def test_a_charge_for_training_that_was_edited_into_nonsense_is_found_out(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.charge_training(training(1), budget_delta=DELTA)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE trainings SET rate = 7.0")
    connection.commit()
    connection.close()
    with Ledger(path) as ledger, pytest.raises(StorageError, match="damaged"):
        ledger.trainings()
