"""Announced reviews in either database: kept once, answered by one of many, summed by version, ended with their time."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL

from review_seed import id_of, waiting
from service_fleet import ManualClock, PlainDevice
from umbel_proto.errors import RefusedError
from umbel_proto.ids import DeviceId, ModelName
from umbel_proto.reviews import EndedReview, WaitingReview
from umbel_server.access.actor import Actor
from umbel_server.store.batches import Arrival
from umbel_server.store.reviews import LIFE_S
from umbel_server.store.rollups import Verdict
from umbel_server.store.settings import RetentionPolicy
from umbel_server.store.store import Store, open_store

ROSE = DeviceId("rose")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(place: Path | URL, clock: ManualClock) -> Iterator[Store]:
    with open_store(place, clock=clock) as opened:
        application = PlainDevice().application(opened.tokens.issue(valid_s=60), name=ROSE)
        opened.devices.enroll(application, certificate_life_s=60)
        opened.releases.publish(ModelName("digits"), 1, sha256=secrets.token_bytes(32), size=1)
        yield opened


def tell(store: Store, *told: WaitingReview, ended: tuple[EndedReview, ...] = ()) -> None:
    store.batches.append(ROSE, [Arrival(secrets.token_bytes(16), "key", b"h", b"sealed")])
    [batch] = store.batches.sealed(limit=10)
    assert store.rollups.absorb([Verdict(batch.id, waiting=told, ended=ended)]) == 1


def said(store: Store, name: str, label: int = 7) -> WaitingReview:
    return waiting(name, now_s=store.clock(), version=1, label=label)


def test_of_many_who_answer_at_once_one_is_taken_and_the_others_are_told_who(store: Store) -> None:
    tell(store, said(store, "a"))
    [found] = store.reviews.page(limit=10)

    def answer(number: int) -> str:
        actor = Actor(f"reviewer-{number}", frozenset())
        try:
            store.reviews.answer(found.id, number, signed=b"signed", actor=actor, reason="so")
        except RefusedError as exc:
            return str(exc)
        return actor.name

    with ThreadPoolExecutor(8) as people:
        told = list(people.map(answer, range(8)))
    winners = [each for each in told if each.startswith("reviewer-")]
    assert len(winners) == 1
    assert [each for each in told if f"{winners[0]} answered it already" in each] != []
    assert sum(winners[0] in each for each in told) == 8
    after = store.reviews.get(found.id)
    assert (after.answered_by, after.answer) == (winners[0], int(winners[0].removeprefix("reviewer-")))
    assert [each.action for each in store.audit.all()].count("review.answer") == 1


def test_what_is_told_twice_is_kept_once_and_counted_by_version(store: Store, clock: ManualClock) -> None:
    tell(store, said(store, "a"), said(store, "b", 3))
    tell(store, said(store, "a", 9), said(store, "c"))
    kept = {each.announced_id: each.label for each in store.reviews.page(limit=10)}
    assert kept == {id_of("a"): 7, id_of("b"): 3, id_of("c"): 7}
    by_id = {each.announced_id: each.id for each in store.reviews.page(limit=10)}
    for name, label in (("a", 7), ("b", 4)):
        store.reviews.answer(
            by_id[id_of(name)], label, signed=b"s", actor=Actor("ada", frozenset()), reason="so"
        )
    assert len(store.reviews.answers_for(ROSE)) == 2
    tell(store, ended=(EndedReview(id_of("a"), "answered"), EndedReview(id_of("b"), "refused")))
    assert store.reviews.answers_for(ROSE) == ()
    [agreed] = store.reviews.agreement()
    assert (agreed.model, agreed.version, agreed.waiting, agreed.answered, agreed.agreed) == (
        "digits",
        1,
        1,
        2,
        1,
    )
    assert store.reviews.count(waiting=True) == 1
    clock.now_s += LIFE_S
    assert store.reviews.count(waiting=True) == 0
    clock.now_s += 86400.0 * RetentionPolicy().hours_days
    assert store.retention.expire(RetentionPolicy()).hours == 3
    assert store.reviews.page(limit=10) == ()


def test_a_rejected_report_brings_no_review(store: Store) -> None:
    store.batches.append(ROSE, [Arrival(secrets.token_bytes(16), "key", b"h", b"sealed")])
    [batch] = store.batches.sealed(limit=10)
    store.rollups.absorb([Verdict(batch.id, reason="malformed", waiting=(said(store, "a"),))])
    assert store.reviews.page(limit=10) == ()
