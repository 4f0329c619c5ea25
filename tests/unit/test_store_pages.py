"""Lists of a large fleet, read a page at a time: the pages are the list, and no page reads it all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, event, insert

from rollout_world import DIGITS, HALF, World
from service_fleet import ManualClock
from umbel_proto.ids import RunId
from umbel_server.learning.fleet_ledger import Cost
from umbel_server.monitor.spending import spending
from umbel_server.store.runs import RoundRecord, RoundState
from umbel_server.store.store import Store, open_store
from umbel_server.store.tables import participations, rounds, runs
from umbel_server.store.tables_queries import queries
from umbel_server.store.tables_rollouts import rollouts

MANY, PAGE = 3000, 700
RUN = RunId("run-0000")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    where: Path | URL = tmp_path_factory.mktemp("pages") / "store.db"
    if request.param == "postgresql":
        where = request.getfixturevalue("postgresql").database(empty=False)
    with open_store(where, clock=ManualClock()) as opened:
        fill(opened)
        yield opened


def fill(store: Store) -> None:
    """Write 3,000 runs, attempts at rounds of one of them with 3,000 devices, and rollouts."""
    world = World.with_candidate(store, ManualClock())
    made = world.start(3, HALF)
    plan = {"model": DIGITS, "plan": "{}", "state": "finished", "reason": "", "finished_s": 9.0}
    # The oldest are last by name: no order of theirs is the one of the other.
    all_runs = [{**plan, "id": f"run-{n:04d}", "created_s": float(MANY - n)} for n in range(MANY)]
    over = {
        "run_id": RUN,
        "reason": "",
        "figures": "{}",
        "started_s": 1.0,
        "finished_s": 2.0,
        "phase": "unmask",
    }
    attempts = [
        {**over, "round": n // 3 + 1, "attempt": n % 3 + 1, "state": "opened" if n % 3 == 2 else "aborted"}
        for n in range(MANY)
    ]
    parts = [
        {"run_id": RUN, "round": each["round"], "attempt": each["attempt"], "device_id": f"device-{d:04d}",
         "outcome": ("summed", "charged", "dropped")[d % 3], "reason": "" if d % 3 == 0 else "gone"}
        for n, each in enumerate(attempts)
        for d in (n, (n + 1) % MANY)
    ]  # fmt: skip
    with store.database.write() as connection:
        connection.execute(insert(runs), [*all_runs, {**plan, "id": "run-0500-asks", "created_s": 1.0}])
        asked = {"id": "run-0500-asks", "kind": "mean", "asked_by": "ann", "why": "", "signed": b"s"}
        connection.execute(insert(queries).values(asked))  # It is a run too, and none that trains.
        connection.execute(insert(rounds), attempts)
        connection.execute(insert(participations), parts)
        first = connection.execute(rollouts.select().where(rollouts.c.id == made.id)).one()
        copies = [{**first._mapping, "id": f"digits-x{n:04d}", "state": "finished"} for n in range(MANY)]
        connection.execute(insert(rollouts), copies)


@contextmanager
def rows_read(store: Store) -> Iterator[list[str]]:
    """Collect the statements that are executed meanwhile."""
    said: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        said.append(statement)

    event.listen(store.database.engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(store.database.engine, "before_cursor_execute", note)


def paged(read: Callable[[Any], Sequence[Any]], key: Callable[[Any], Any], start: Any) -> list[Any]:
    """Return a list that was read a page at a time."""
    found: list[Any] = []
    last = start
    while page := read(last):
        assert len(page) <= PAGE
        found += page
        last = key(page[-1])
    return found


def test_runs_come_by_name_a_page_at_a_time(store: Store) -> None:
    found = paged(lambda last: store.runs.page(after=last, limit=PAGE), lambda each: each.id, "")
    assert found == sorted(store.runs.all(), key=lambda each: each.id)
    assert len(found) == MANY


def test_rollouts_come_by_name_a_page_at_a_time(store: Store) -> None:
    found = paged(lambda last: store.rollouts.page(after=last, limit=PAGE), lambda each: each.id, "")
    assert found == sorted(store.rollouts.all(), key=lambda each: each.id)
    assert len(found) == MANY + 1


@pytest.mark.parametrize("with_devices", [True, False])
def test_attempts_come_in_their_order_each_with_its_own_devices(store: Store, with_devices: bool) -> None:
    found = paged(
        lambda last: store.runs.attempts(RUN, after=last, limit=PAGE, with_devices=with_devices),
        lambda each: (each.round, each.attempt),
        (0, 0),
    )
    assert tuple(found) == store.runs.rounds(RUN, with_devices=with_devices)
    assert len(found) == MANY
    assert {len(each.participations) for each in found} == ({2} if with_devices else {0})


def test_attempts_come_the_last_first_every_so_many_th_and_counted(store: Store) -> None:
    every = store.runs.rounds(RUN, with_devices=False)
    found = paged(
        lambda last: store.attempts.newest(RUN, before=last, limit=PAGE),
        lambda each: (each.round, each.attempt),
        None,
    )
    assert tuple(found) == every[::-1]
    assert store.attempts.every(RUN, 1) == every
    # Of 1,000 rounds, round 1,000 is the last and no seventh one.
    assert store.attempts.every(RUN, 7) == tuple(r for r in every if r.round % 7 == 0 or r.round == MANY // 3)
    reached = store.attempts.reached(RUN)
    assert (reached.attempts, reached.opened, reached.spent) == (MANY, MANY // 3, {})
    assert store.attempts.reached(RunId("run-0001")).attempts == 0
    some = store.participants.turnout(RUN, of=[3, 7])
    assert some == {key: each for key, each in store.participants.turnout(RUN).items() if key[0] in (3, 7)}


def test_how_far_a_run_is_goes_by_the_last_attempts_that_say_so(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db", clock=ManualClock()) as store:
        run = RunId("r1")
        store.runs.create(run, DIGITS, "{}")
        told: tuple[tuple[int, RoundState, dict[str, float]], ...] = (
            (1, "opened", {"accuracy": 0.5, "epsilon_server": 1.0}),
            (2, "opened", {"accuracy": 0.7, "epsilon_server": 2.0}),
            (3, "aborted", {"epsilon_server": 3.0}),
            (4, "aborted", {}),
        )
        for number, state, figures in told:
            store.runs.begin_round(run, number, 1)
            store.runs.end_round(RoundRecord(run, number, 1, state, 1.0, 2.0, figures=figures))
        store.runs.begin_round(run, 5, 1)
        reached = store.attempts.reached(run)
    assert (reached.attempts, reached.opened) == (4, 2)
    assert reached.learned["accuracy"] == 0.7
    assert reached.spent["epsilon_server"] == 3.0


def test_what_devices_spent_comes_by_name_a_page_at_a_time(store: Store, tmp_path: Path) -> None:
    (tmp_path / RUN).mkdir()
    cost = Cost(bound_sq=100, coordinates=10, variance=Fraction(50))
    cost.save(tmp_path / RUN)
    everyone = spending(store, tmp_path, 1e-6)
    found = paged(
        lambda last: spending(store, tmp_path, 1e-6, after=last, limit=PAGE), lambda each: each.device, ""
    )
    assert tuple(found) == everyone
    # Who was only ever dropped was charged nothing, and is not listed.
    assert [each.device for each in everyone] == [f"device-{d:04d}" for d in range(MANY) if d % 3 != 2]
    assert {run.participations for each in everyone for run in each.runs} == {2}
    assert all(0 < each.epsilon < float("inf") for each in everyone)


def test_no_page_asks_the_database_for_the_whole_list(store: Store, tmp_path: Path) -> None:
    with rows_read(store) as said:
        store.runs.page(after="run-1000", limit=5)
        store.rollouts.page(after="digits-x1000", limit=5)
        store.runs.attempts(RUN, after=(500, 1), limit=5)
        spending(store, tmp_path, 1e-6, after="device-1000", limit=5)
    reads = [each for each in said if re.search(r"FROM (runs|rollouts|rounds|participations)\b", each)]
    assert len(reads) == 6
    for each in reads:
        # At most so many; of these devices; or of these attempts.
        assert " LIMIT " in each or " IN (" in each or re.search(r"<= \(", each), each
