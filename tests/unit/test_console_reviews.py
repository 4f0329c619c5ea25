"""The screens of reviews: what waits on devices, answered once by whoever may, and nothing that a device sent runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from model_packages import RELEASE, first, resigned
from review_seed import id_of, report, waiting
from umbel_proto.reviews import EndedReview
from umbel_server.access.actor import Role, local_actor
from umbel_server.fleet.policy_command import ANNOUNCE, change_policy
from umbel_server.fleet.publish import publish


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("reviews")) as made:
        made.fleet.release_key.write_bytes(RELEASE.to_pem())
        made.fleet.release_pub.write_bytes(RELEASE.public.raw)
        publish(made.fleet, made.store, first(), actor=local_actor())
        made.device("rose")
        yield made


@pytest.fixture
def reviewer(world: ConsoleWorld) -> Visitor:
    return world.signed_in(Role.REVIEWER)


def announce(world: ConsoleWorld, *names: str) -> None:
    told = [waiting(name, now_s=world.clock(), version=1) for name in names]
    report(world.fleet, world.store, "rose", told)


def test_an_empty_screen_says_how_to_turn_it_on_and_then_what_devices_have_to_do(
    world: ConsoleWorld, reviewer: Visitor
) -> None:
    assert "umbel fleet policy --announce-reviews" in text_of(reviewer.get("/reviews").text)
    change_policy(world.fleet, world.store, {ANNOUNCE: True}, actor=local_actor(), reason="to review")
    page = text_of(reviewer.get("/reviews").text)
    assert "umbel fleet policy" not in page
    assert "umbel data consent --purpose reviews --grant" in page


def test_what_waits_is_listed_opened_and_answered(world: ConsoleWorld, reviewer: Visitor) -> None:
    announce(world, "a")
    page = text_of(reviewer.get("/reviews").text)
    for words in ("digits@1", "61 %", "unsure", "rose", "waits"):
        assert words in page
    asked = reviewer.get("/reviews/1").text
    assert asked.count('type="radio"') == 10
    assert " checked" not in asked  # Nobody is led to agree.
    answered = reviewer.post("/reviews/1", label="1", reason="a stroke")
    assert (answered.status_code, answered.headers["location"]) == (303, "/reviews")
    assert "Review 1 is answered: 1. rose is told" in text_of(reviewer.get("/reviews").text)
    done = text_of(reviewer.get("/reviews?show=ended").text)
    for words in ("on its way", "a-reviewer", "a stroke"):
        assert words in done
    assert "0.0 % 0.0 % to" in (agreement := text_of(reviewer.get("/reviews").text))
    assert "n = 1 " in agreement
    report(world.fleet, world.store, "rose", ended=[EndedReview(id_of("a"), "answered")])
    assert "done on the device" in text_of(reviewer.get("/reviews/1").text)


def test_the_second_reviewer_is_told_who_answered_and_keeps_their_words(
    world: ConsoleWorld, reviewer: Visitor
) -> None:
    announce(world, "a")
    assert world.signed_in(Role.ADMIN).post("/reviews/1", label="7", reason="a bar").status_code == 303
    late = reviewer.post("/reviews/1", label="1", reason="a stroke")
    assert late.status_code == 409
    assert "a-admin answered it already" in text_of(late.text)
    assert world.store.reviews.get(1).answer == 7


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"label": "1"},
        {"reason": "so"},
        {"label": "11", "reason": "so"},
        {"label": "1", "reason": "y" * 201},
    ],
)
def test_an_answer_without_a_label_or_a_reason_changes_nothing(
    world: ConsoleWorld, reviewer: Visitor, fields: dict[str, str]
) -> None:
    announce(world, "a")
    answer = reviewer.post("/reviews/1", **fields)
    assert answer.status_code == 422
    assert "Nothing was done" in text_of(answer.text)
    assert world.store.reviews.get(1).state == "open"


def test_labels_that_are_numbers_themselves_are_not_taken_for_places(
    world: ConsoleWorld, reviewer: Visitor
) -> None:
    def shifted(body: dict[str, Any]) -> None:
        body |= {"version": 2, "labels": [str(number) for number in range(1, 11)]}

    publish(world.fleet, world.store, resigned(first(), shifted), actor=local_actor())
    report(world.fleet, world.store, "rose", [waiting("b", now_s=world.clock(), version=2)])
    assert "said 8 on rose" in text_of(reviewer.get("/reviews/1").text)
    reviewer.post("/reviews/1", label="1", reason="a bow")
    assert world.store.reviews.get(1).answer == 1
    assert "Review 1 is answered: 2." in text_of(reviewer.get("/reviews").text)


def test_what_the_device_decided_itself_is_said(world: ConsoleWorld, reviewer: Visitor) -> None:
    announce(world, "a")
    reviewer.post("/reviews/1", label="1", reason="a stroke")
    report(world.fleet, world.store, "rose", ended=[EndedReview(id_of("a"), "here")])
    page = text_of(reviewer.get("/reviews/1").text)
    assert "decided on the device" in page
    assert "Somebody at the device was faster" in page


def test_what_a_device_withdrew_is_shown_no_more(world: ConsoleWorld, reviewer: Visitor) -> None:
    announce(world, "a")
    report(world.fleet, world.store, "rose", ended=[EndedReview(id_of("a"), "withdrawn")])
    for path in ("/reviews/1", "/reviews?show=ended"):
        page = text_of(reviewer.get(path).text)
        assert "withdrawn" in page
        assert "61 %" not in page
    assert reviewer.post("/reviews/1", label="1", reason="a stroke").status_code == 409


def test_it_is_for_reviewers(world: ConsoleWorld) -> None:
    announce(world, "a")
    viewer = world.signed_in(Role.VIEWER)
    assert 'href="/reviews"' not in viewer.get("/approvals").text
    for path in ("/reviews", "/reviews/1"):
        assert viewer.get(path).status_code == 403


def test_many_come_in_pages_and_leave_as_a_table(world: ConsoleWorld, reviewer: Visitor) -> None:
    announce(world, *(f"r{number}" for number in range(60)))
    first_page = reviewer.get("/reviews").text
    assert first_page.count(">Answer</a>") == 50
    assert "50 shown of 60" in text_of(first_page)
    assert reviewer.get("/reviews?cursor=11").text.count(">Answer</a>") == 10
    rows = list(csv.DictReader(io.StringIO(reviewer.get("/reviews?format=csv").text)))
    assert len(rows) == 60
    assert {row["device"] for row in rows} == {"rose"}
    assert reviewer.get("/reviews/61").status_code == 404
