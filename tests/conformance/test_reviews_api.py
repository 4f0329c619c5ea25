"""Announced reviews at the service: what is kept of hostile reports, and how people list and answer, here and far away."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_world import api_world
from model_packages import RELEASE, first
from review_seed import id_of, report, waiting
from service_fleet import ManualClock
from two_places import TwoPlaces, timeless
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.reviews import MAX_ANNOUNCED, EndedReview, WaitingReview, open_answer
from umbel_proto.wire import reviews_pb2
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import HELD, Permission
from umbel_server.fleet.publish import publish
from umbel_server.reviews.answer import answer
from umbel_server.store.reviews import LIFE_S
from umbel_server.store.settings import RetentionPolicy


@pytest.fixture
def world(tmp_path: Path) -> Iterator[TwoPlaces]:
    with api_world(tmp_path, clock=ManualClock()) as made:
        made.fleet.release_key.write_bytes(RELEASE.to_pem())
        made.fleet.release_pub.write_bytes(RELEASE.public.raw)
        publish(made.fleet, made.store, first(), actor=local_actor())
        for name in ("rose", "iris"):
            made.device(name)
        both = TwoPlaces(made.fleet, made.store, made.clock, made.client)
        people = {"root": Role.ADMIN, "rita": Role.REVIEWER, "eve": Role.REVIEWER, "vera": Role.VIEWER}
        both.path = tmp_path
        both.tokens = {name: made.token(made.user(name, role), HELD[role]) for name, role in people.items()}
        yield both


def announce(world: TwoPlaces, *names: str, device: str = "rose", **more: Any) -> None:
    told = [waiting(name, now_s=world.clock(), version=1, **more) for name in names]
    report(world.fleet, world.store, device, told)


def states(world: TwoPlaces) -> dict[bytes, str]:
    return {each.announced_id: each.state for each in world.store.reviews.page(limit=1000)}


def test_a_reviewer_lists_answers_once_and_the_second_is_told_who_was_first(world: TwoPlaces) -> None:
    announce(world, "a", "b")
    rita, eve = world.tokens["rita"], world.tokens["eve"]
    page = world.call(rita, "GET", "/reviews", params={"limit": 1, "waiting": True}).json()
    [newest] = page["items"]
    assert (newest["device"], newest["name"], newest["percent"], newest["waits"]) == ("rose", "7", 61, True)
    [other] = world.call(rita, "GET", "/reviews", params={"limit": 1, "cursor": page["next"]}).json()["items"]
    assert other["review"] < newest["review"]
    where = f"/reviews/{newest['review']}"
    assert world.call(rita, "GET", where).json()["labels"] == [str(number) for number in range(10)]
    said = {"json": {"label": "1", "reason": "a stroke"}, "headers": {"Idempotency-Key": "once"}}
    done = world.call(rita, "POST", f"{where}/answer", **said)
    assert (done.status_code, done.json()["answer_name"], done.json()["answered_by"]) == (200, "1", "rita")
    assert world.call(rita, "POST", f"{where}/answer", **said).json() == done.json()
    late = world.call(eve, "POST", f"{where}/answer", json={"label": "7", "reason": "a bar"})
    assert (late.status_code, late.json()["kind"]) == (409, "refused")
    assert "rita answered it already" in late.json()["detail"]
    entries = [each for each in world.store.audit.all() if each.action == "review.answer"]
    assert [(each.actor, each.reason) for each in entries] == [("rita", "a stroke")]
    assert json.loads(entries[0].before)["label"] == 7
    assert json.loads(entries[0].after)["label"] == 1
    [signed] = world.store.reviews.answers_for(newest["device"])
    sent = open_answer(
        signed, authority=world.fleet.authority_public(), fleet=world.fleet.name, device=newest["device"]
    )
    assert (sent.label, sent.by, sent.why) == (1, "rita", "a stroke")
    [rate] = world.call(eve, "GET", "/review-agreement").json()["items"]
    assert (rate["waiting"], rate["answered"], rate["agreed"], rate["rate"]) == (1, 1, 0, 0.0)


def test_only_who_may_judge_models_sees_or_answers_what_single_devices_said(world: TwoPlaces) -> None:
    announce(world, "a")
    vera = world.tokens["vera"]
    for method, path in (("GET", "/reviews"), ("GET", "/reviews/1"), ("GET", "/review-agreement")):
        assert world.call(vera, method, path).status_code == 403
    refused = world.call(vera, "POST", "/reviews/1/answer", json={"label": "1", "reason": "so"})
    assert refused.status_code == 403
    writes = {role for role in Role if Permission.REVIEWS_WRITE in HELD[role]}
    assert writes == {Role.REVIEWER, Role.ADMIN}


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"label": "1"}, 422),
        ({"label": "1", "reason": ""}, 422),
        ({"label": "1", "reason": "   "}, 422),
        ({"label": "1", "reason": "x" * 201}, 422),
        ({"label": "seven", "reason": "so"}, 422),
        ({"label": "10", "reason": "so"}, 422),
        ({"label": "1", "reason": "so", "state": "applied"}, 422),
    ],
)
def test_an_answer_that_says_too_little_or_nonsense_changes_nothing(
    world: TwoPlaces, asked: dict[str, str], status: int
) -> None:
    announce(world, "a")
    assert world.call(world.tokens["rita"], "POST", "/reviews/1/answer", json=asked).status_code == status
    assert states(world) == {id_of("a"): "open"}
    assert world.call(world.tokens["rita"], "POST", "/reviews/99/answer", json=asked).status_code in (
        404,
        422,
    )


def test_commands_say_the_same_here_and_far_away(world: TwoPlaces) -> None:
    announce(world, "a", "b", "c")
    for words in ("fleet review list", "fleet review list --all --model digits", "fleet review show 2"):
        told = {place: json.loads(world.run(f"{words} --json", place)) for place in ("here", "far")}
        assert timeless(told["here"]) == timeless(told["far"])
    for number, where in ((1, "here"), (2, "far")):
        words = f"fleet|review|answer|{number}|7|--reason|plain to see"
        assert f"Review {number}: 7. Device rose is told when it next asks." in world.run(words, where)
    with pytest.raises(RefusedError, match="root answered it already"):
        world.run("fleet|review|answer|2|7|--reason|again", "far")
    for where in ("here", "far"):
        assert "100.0%" in world.run("fleet review agreement", where)
        assert "answered, on its way" in world.run("fleet review list --all", where)
        with pytest.raises(UsageError, match="no review 77"):
            world.run("fleet review show 77", where)


def test_whether_devices_announce_is_changed_here_and_far_away_and_stays_on_record(world: TwoPlaces) -> None:
    assert world.fleet.policy().announce_reviews is False
    for where, asked in (("here", "--announce-reviews"), ("far", "--no-announce-reviews --idle")):
        words = f"fleet policy {asked} --reason why --json"
        told = json.loads(world.run(words, where))
        assert told["announce_reviews"] is world.fleet.policy().announce_reviews is (where == "here")
    assert world.fleet.policy().training.idle is True
    entries = [json.loads(each.after) for each in world.store.audit.all() if each.action == "policy.change"]
    assert [each["announce_reviews"] for each in entries] == [True, True, False]


HOSTILE: list[dict[str, Any]] = [
    {"id": b"short"},
    {"id": b""},
    {"model": "../../etc"},
    {"model": "<script>alert(1)</script>"},
    {"version": 0},
    {"version": (1 << 32) - 1},
    {"minute": (1 << 64) - 1},
    {"label": (1 << 32) - 1},
    {"percent": 101},
    {"unsure": False, "flagged": False},
]


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_a_report_with_a_review_that_cannot_be_is_rejected_whole(
    world: TwoPlaces, change: dict[str, Any]
) -> None:
    good = waiting("a", now_s=world.clock(), version=1).to_wire()
    bad = reviews_pb2.WaitingReview()
    bad.CopyFrom(good)
    for name, value in change.items():
        setattr(bad, name, value)
    report(world.fleet, world.store, "rose", batch=pb.Batch(waiting_reviews=[good, bad]))
    assert states(world) == {}
    assert sum(each.rejected for each in world.store.batches.deliveries()) == 1


def test_a_report_with_too_many_reviews_or_an_end_that_there_is_not_is_rejected(world: TwoPlaces) -> None:
    many = [waiting(str(number), now_s=world.clock(), version=1) for number in range(MAX_ANNOUNCED + 1)]
    report(world.fleet, world.store, "rose", many)
    odd = reviews_pb2.EndedReview(id=id_of("a"), end=reviews_pb2.REVIEW_END_UNKNOWN)
    report(world.fleet, world.store, "rose", batch=pb.Batch(ended_reviews=[odd]))
    assert states(world) == {}
    assert sum(each.rejected for each in world.store.batches.deliveries()) == 2


def test_no_device_fills_the_table_or_touches_anothers_reviews(world: TwoPlaces) -> None:
    for begin in (0, 60, 120):
        announce(world, *(f"r{number}" for number in range(begin, begin + 60)))
    assert len(states(world)) == MAX_ANNOUNCED
    announce(world, "r0", "r1")  # Again: the same ones.
    assert len(states(world)) == MAX_ANNOUNCED
    report(world.fleet, world.store, "iris", ended=[EndedReview(id_of("r0"), "withdrawn")])
    assert set(states(world).values()) == {"open"}
    announce(world, "r0", device="iris")
    assert sum(1 for each in world.store.reviews.page(limit=1000) if each.announced_id == id_of("r0")) == 2


def test_of_what_the_fleet_never_released_nothing_is_kept(world: TwoPlaces) -> None:
    report(world.fleet, world.store, "rose", [waiting("a", now_s=world.clock(), version=2)])
    assert states(world) == {}


def test_a_device_cannot_say_that_it_did_what_nobody_asked_for_nor_undo_what_is_over(
    world: TwoPlaces,
) -> None:
    announce(world, "a")
    for end, after in (("answered", "open"), ("gone", "gone"), ("here", "gone"), ("answered", "gone")):
        report(world.fleet, world.store, "rose", ended=[EndedReview(id_of("a"), end)])  # type: ignore[arg-type]
        assert states(world) == {id_of("a"): after}
    announce(world, "a")
    assert states(world) == {id_of("a"): "gone"}


def test_what_waited_too_long_is_neither_answered_nor_sent_and_ends_with_the_hours(world: TwoPlaces) -> None:
    announce(world, "a", "b")
    world.run("fleet|review|answer|1|7|--reason|plain to see", "here")
    world.clock.now_s += LIFE_S
    assert world.store.reviews.answers_for(world.store.reviews.get(1).device) == ()
    with pytest.raises(RefusedError, match="nobody answered it in time"):
        answer(world.fleet, world.store, 2, "7", actor=local_actor(), reason="plain to see")
    assert world.store.reviews.count(waiting=True) == 0
    policy = RetentionPolicy()
    world.clock.now_s += 86400.0 * policy.hours_days
    world.store.retention.expire(policy)
    assert states(world) == {}


def test_what_is_told_of_a_prediction_is_less_exact_than_it_is_known() -> None:
    told = WaitingReview.of(
        id_of("a"),
        model="digits",
        version=1,
        at_s=119.9,
        label=3,
        confidence=0.69999,
        unsure=True,
        flagged=False,
    )
    assert (told.minute, told.percent) == (1, 69)
    assert WaitingReview.from_wire(told.to_wire()) == told
    odd = WaitingReview.of(
        id_of("a"),
        model="digits",
        version=1,
        at_s=-5,
        label=3,
        confidence=math.nan,
        unsure=True,
        flagged=False,
    )
    assert (odd.minute, odd.percent) == (0, 0)
