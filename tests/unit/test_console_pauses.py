"""Pausing a run in the console: what the page says, who may, and what becomes of two operators at once."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator

import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from rollout_world import ANN
from run_world import trained
from umbel_proto.ids import RunId
from umbel_server.access.actor import Role
from umbel_server.learning.lock import driving
from umbel_server.store.audit import Sought
from umbel_server.store.runs import RunRecord

SPRING = RunId("spring")


@pytest.fixture
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("paused")) as made:
        trained(made.store, SPRING, at_s=made.clock())
        yield made


@pytest.fixture
def operator(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.OPERATOR)


def now(console: ConsoleWorld) -> RunRecord:
    found = console.store.runs.get(SPRING)
    assert found is not None
    return found


def hidden(page: str) -> dict[str, str]:
    """Return the hidden fields of a page's form, but the session's token."""
    form = page[page.rindex('<form method="post"') :]
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {name: html.unescape(value) for name, value in found if name != "csrf"}


def test_a_run_is_paused_with_a_reason_and_its_page_says_how_many_rounds_are_left(
    console: ConsoleWorld, operator: Visitor
) -> None:
    viewer = console.signed_in(Role.VIEWER)
    page = operator.get("/runs/spring").text
    assert "Pause after this round 3 of 6 rounds are left" in text_of(page)
    assert "/runs/spring/pause" not in viewer.get("/runs/spring").text
    asked = text_of(operator.get("/runs/spring/pause").text)
    assert "3 of 6 rounds are left. No round is under way." in asked
    assert viewer.post("/runs/spring/pause", reason="x").status_code == 403
    assert operator.post("/runs/spring/pause", reason="").status_code == 422
    assert now(console).state == "running"
    assert operator.post("/runs/spring/pause", reason="the backbone is slow").status_code == 303
    assert now(console).state == "paused"
    (entry,) = console.store.audit.all(Sought(object="run:spring", action="run.pause"))
    assert (entry.actor, entry.reason) == ("a-operator", "the backbone is slow")
    told = operator.get("/runs/spring").text
    assert "paused digits from version" in text_of(told)
    assert "3 of 6 rounds are left. No round begins, and no device is charged, until" in text_of(told)
    assert "the backbone is slow" in text_of(told)
    assert "/runs/spring/resume" in told
    assert "/runs/spring/stop" in told
    assert "/runs/spring/pause" not in told


def test_the_round_that_a_run_is_paused_in_is_shown_to_its_end(
    console: ConsoleWorld, operator: Visitor
) -> None:
    console.store.runs.begin_round(SPRING, 4, 1)
    assert "Round 4 is under way: it goes on to its end" in operator.get("/runs/spring/pause").text
    console.store.pauses.begin(SPRING, actor=ANN, reason="lunch")
    told = text_of(operator.get("/runs/spring").text)
    assert "Round 4 goes on to its end. No other one begins" in told
    assert "Secure aggregation now: round 4" in told
    assert "round 4, train" in text_of(operator.get("/runs").text)


def test_paused_runs_are_listed_counted_and_found_by_their_state(
    console: ConsoleWorld, operator: Visitor
) -> None:
    trained(console.store, "summer", at_s=console.clock())
    assert "1 paused" not in text_of(operator.get("/").text)
    console.store.pauses.begin(SPRING, actor=ANN, reason="lunch")
    for state, runs in (("paused", {SPRING}), ("running", {"summer"}), ("", {SPRING, "summer"})):
        rows = csv.DictReader(io.StringIO(operator.get(f"/runs?state={state}&format=csv").text))
        assert {row["run"] for row in rows} == runs, state
    assert "Runs under way 1 summer 1 paused" in text_of(operator.get("/").text)
    charges = text_of(console.signed_in(Role.ADMIN).get("/settings/privacy").text)
    assert "spring paused" in charges, "what it may still ask for is set aside"


def test_of_two_who_pause_a_run_the_second_is_told_and_keeps_their_words(
    console: ConsoleWorld, operator: Visitor
) -> None:
    console.store.pauses.begin(SPRING, actor=ANN, reason="lunch")
    late = operator.post("/runs/spring/pause", reason="me too")
    assert late.status_code == 409
    assert "Run spring is paused already (lunch)" in text_of(late.text)
    assert "me too" in text_of(late.text)
    assert operator.get("/runs/spring/pause").status_code == 409
    assert now(console).reason == "lunch"


def test_who_resumes_what_somebody_changed_meanwhile_does_nothing_and_is_told(
    console: ConsoleWorld, operator: Visitor
) -> None:
    """Law: a run goes on by what whoever decides has seen: not what was paused anew, nor what runs."""
    console.store.pauses.begin(SPRING, actor=ANN, reason="lunch")
    asked = operator.get("/runs/spring/resume").text
    assert "3 of 6 rounds are left, and it goes on with the next one." in text_of(asked)
    seen = hidden(asked)
    assert float(seen["since"]) == now(console).paused_s
    console.store.pauses.end(SPRING, actor=ANN, reason="fed")
    late = operator.post("/runs/spring/resume", **seen, reason="fed")
    assert late.status_code == 409
    assert "somebody changed run spring meanwhile, it is running." in text_of(late.text)
    console.clock.advance(1)
    console.store.pauses.begin(SPRING, actor=ANN, reason="the labels are wrong")
    late = operator.post("/runs/spring/resume", **seen, reason="fed")
    assert late.status_code == 409
    assert "it is paused (the labels are wrong)" in text_of(late.text)
    for odd in ("", "nan", "x", "1e999"):
        assert operator.post("/runs/spring/resume", since=odd, reason="fed").status_code == 409
    assert operator.post("/runs/spring/resume", **seen, reason="").status_code == 422
    assert now(console).state == "paused"


def test_a_paused_run_is_stopped_like_any_other_and_then_neither_paused_nor_resumed(
    console: ConsoleWorld, operator: Visitor
) -> None:
    console.store.pauses.begin(SPRING, actor=ANN, reason="lunch")
    asked = operator.get("/runs/spring/stop").text
    assert "It ends now." in text_of(asked)
    fields = hidden(asked)
    done = operator.post("/runs/spring/stop", **fields, typed="spring", reason="bad data")
    assert done.status_code == 303
    assert (now(console).state, now(console).reason) == ("stopped", "bad data")
    for what in ("pause", "resume"):
        assert operator.get(f"/runs/spring/{what}").status_code == 409
        assert operator.post(f"/runs/spring/{what}", reason="x").status_code == 409
    assert "Pause after" not in operator.get("/runs/spring").text


def test_a_paused_run_whose_round_is_still_driven_can_be_resumed(
    console: ConsoleWorld, operator: Visitor
) -> None:
    console.store.pauses.begin(SPRING, actor=ANN, reason="lunch")
    directory = console.fleet.runs / SPRING
    directory.mkdir(parents=True)
    with driving(directory):
        form = hidden(operator.get("/runs/spring/resume").text)
        assert operator.post("/runs/spring/resume", **form, reason="fed").status_code == 303
    assert now(console).state == "running"
    (entry,) = console.store.audit.all(Sought(object="run:spring", action="run.resume"))
    assert (entry.actor, entry.reason) == ("a-operator", "fed")
