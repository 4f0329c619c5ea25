"""The screen of the audit log: what was done is found and exported, and a log that was changed is told."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from console_world import ConsoleWorld, Visitor, console_world, text_of
from umbel_server.access.actor import Actor, Role
from umbel_server.access.chain import checkpoint_file
from umbel_server.console.screens.audit import ROWS, differences, link_of

ANN, BOB = Actor("ann", frozenset()), Actor("bob", frozenset())


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("audit")) as made:
        yield made


@pytest.fixture(scope="module")
def looker(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.OPERATOR)


@pytest.fixture(scope="module")
def log(console: ConsoleWorld, looker: Visitor) -> ConsoleWorld:
    """A log with a page and a bit of entries, the last of them a year after the others."""
    for number in range(ROWS):
        console.store.audit.record(
            ANN,
            action="device.pin",
            object=f"device:cam-{number}",
            before={"version": 1},
            after={"version": 2},
        )
    console.store.audit.record(BOB, action="policy.change", object="policy:2", reason="=HYPERLINK(1)")
    return console


def numbers(page: str) -> list[int]:
    import re

    return [int(each) for each in re.findall(r'<td class="number"><a href="/audit/(\d+)">', page)]


def test_the_newest_is_first_and_the_next_page_goes_on_where_this_one_ends(
    log: ConsoleWorld, looker: Visitor
) -> None:
    newest = log.store.audit.newest()
    assert newest is not None
    page = looker.get("/audit").text
    assert numbers(page) == list(range(newest.sequence, newest.sequence - ROWS, -1))
    assert f"cursor={newest.sequence - ROWS + 1}" in page
    rest = numbers(looker.get(f"/audit?cursor={newest.sequence - ROWS + 1}").text)
    assert rest[0] == newest.sequence - ROWS
    assert rest[-1] == 1


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("actor=bob", 1),
        ("action=policy", 1),
        ("action=device.pin&object=device:cam-7", 1),
        ("actor=nobody", 0),
        ("action=dev%25", 0),
        ("from=2000-01-01&to=2000-01-02", 0),
        ("from=2000-01-01&actor=bob", 1),
    ],
)
def test_entries_are_found_by_who_what_whereto_and_when(
    log: ConsoleWorld, looker: Visitor, query: str, count: int
) -> None:
    page = looker.get(f"/audit?{query}").text
    assert len(numbers(page)) == count
    if not count:
        assert "Nothing that fits was done" in text_of(page)


def test_the_export_has_all_that_fits_and_runs_nothing_in_a_spreadsheet(
    log: ConsoleWorld, looker: Visitor
) -> None:
    (row,) = csv.DictReader(io.StringIO(looker.get("/audit?actor=bob&format=csv").text))
    assert (row["action"], row["reason"]) == ("policy.change", "'=HYPERLINK(1)")
    assert len(looker.get("/audit?actor=ann&format=json").json()) == ROWS


def test_an_entry_shows_what_it_changed_and_its_place_in_the_chain(
    log: ConsoleWorld, looker: Visitor
) -> None:
    entry = next(each for each in log.store.audit.all() if each.object == "device:cam-3")
    told = text_of(looker.get(f"/audit/{entry.sequence}").text)
    assert "version 1 2 changed" in told
    assert entry.hash.hex() in told
    assert entry.previous.hex() in told
    (one,) = differences(entry)
    assert (one.name, one.before, one.after, one.changed) == ("version", "1", "2", True)
    assert looker.get("/audit/999999").status_code == 404


def test_what_an_entry_is_about_is_a_click_away() -> None:
    assert link_of("version:digits@2") == "/models/digits/2"
    assert link_of("device:rose") == "/devices/rose"
    assert link_of("run:autumn-1") == "/runs/autumn-1"
    assert link_of("telemetry-key:abc") == ""
    assert link_of("version:digits") == ""


def test_whoever_may_not_read_the_log_is_told_which_role_may(log: ConsoleWorld) -> None:
    viewer = log.signed_in(Role.VIEWER)
    for answer in (viewer.get("/audit"), viewer.get("/audit?format=json"), viewer.post("/audit/verify")):
        assert answer.status_code == 403
        assert "operator" in text_of(answer.text)


def test_the_button_says_that_a_log_is_whole(log: ConsoleWorld, looker: Visitor) -> None:
    answer = looker.post("/audit/verify")
    newest = log.store.audit.newest()
    assert newest is not None
    told = text_of(answer.text)
    assert f"The log is whole: {newest.sequence:,} entries" in told
    assert newest.hash.hex() in told


def test_what_was_kept_elsewhere_is_held_against_the_log(log: ConsoleWorld, looker: Visitor) -> None:
    looker.get("/audit/verify")
    kept = checkpoint_file(log.fleet).read_text()
    told = text_of(looker.post("/audit/verify", checkpoints=kept).text)
    assert "The log is whole" in told
    assert "and 1 kept elsewhere" in told
    other = kept.replace('"sequence": 1', '"sequence": 2')
    assert other != kept
    assert "not signed by its key" in text_of(looker.post("/audit/verify", checkpoints=other).text)
    assert "cannot be read" in text_of(looker.post("/audit/verify", checkpoints="nonsense").text)


def test_a_log_that_was_changed_is_told_and_gets_no_signature(log: ConsoleWorld, looker: Visitor) -> None:
    """Last, as the log of this module is not what was written from here on."""
    signed = checkpoint_file(log.fleet).read_text()
    with log.store.database.write() as connection:
        connection.execute(text("DROP TRIGGER audit_no_update"))
        connection.execute(text("UPDATE audit SET actor = 'eve' WHERE sequence = 5"))
    told = text_of(looker.post("/audit/verify").text)
    assert "The log is not what was written. Entry 5 of the audit log was altered." in told
    assert "The log is whole" not in told
    assert checkpoint_file(log.fleet).read_text() == signed
