"""Reviews answered through services that the authority does not believe: who may, to what, and once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_authority import World, world_at

from model_packages import RELEASE, first, resigned
from review_seed import id_of, report, waiting
from umbel_proto.errors import RefusedError, UmbelError, UnavailableError, UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.reviews import EndedReview, ReviewAnswer, open_answer
from umbel_proto.wire.authority_pb2 import ReviewAsk
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import Permission
from umbel_server.fleet.publish import publish
from umbel_server.reviews.answer import answer_by_authority
from umbel_server.store.audit import Sought
from umbel_server.store.reviews import LIFE_S

HOUR_S = 3600.0
ROSE = DeviceId("rose")
SHIFTED = [str(number) for number in range(1, 11)]
"""Labels of version 2: one further on, so that the numbers of version 1 name other classes."""


@pytest.fixture(params=[False, True], ids=["here", "apart"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path, apart=request.param) as made:
        seed(made)
        if request.param:
            # The services have no key, as where the authority is another system user's process.
            made.fleet.authority_key.unlink()
        yield made


def seed(made: World) -> None:
    """Let two versions be out, with other labels, and a review of each wait on a device; the first is of version 1."""

    def shifted(body: dict[str, Any]) -> None:
        body |= {"version": 2, "labels": SHIFTED}

    made.fleet.release_key.write_bytes(RELEASE.to_pem())
    made.fleet.release_pub.write_bytes(RELEASE.public.raw)
    for package in (first(), resigned(first(), shifted)):
        publish(made.fleet, made.store, package, actor=local_actor())
    made.enrolled(ROSE)
    told = [waiting(f"of-{version}", now_s=made.clock(), version=version) for version in (1, 2)]
    report(made.fleet, made.store, ROSE, told)
    made.store.accounts.add(local_actor(), "rita", roles=frozenset({Role.REVIEWER}), password=None)


def token(world: World, *scopes: Permission) -> str:
    text, _ = world.store.api_tokens.create(local_actor(), "rita", scopes=frozenset(scopes), valid_s=HOUR_S)
    return text


def session(world: World) -> str:
    account = world.store.accounts.get("rita")
    assert account is not None
    return world.store.sessions.open(account)


def ask(world: World, review: int = 1, **changes: Any) -> ReviewAsk:
    own = {"token": token(world, Permission.REVIEWS_WRITE), "label": 3, "why": "two bows"}
    return ReviewAsk(**{**own, "review": review, **changes})


def sent(world: World) -> list[ReviewAnswer]:
    """What the device is told."""
    fleet, found = world.fleet, world.store.reviews.answers_for(ROSE)
    key = fleet.authority_public()
    return [open_answer(each, authority=key, fleet=fleet.name, device=ROSE) for each in found]


@pytest.mark.parametrize("shown", ["token", "session"])
def test_an_operators_answer_is_signed_and_on_record_in_one_step(world: World, shown: str) -> None:
    who = (
        {"token": token(world, Permission.REVIEWS_WRITE)} if shown == "token" else {"session": session(world)}
    )
    done = answer_by_authority(world.fleet, world.store, 1, "3", reason=" two bows ", **who)
    assert (done.state, done.answer, done.answered_by, done.reason) == ("answered", 3, "rita", "two bows")
    [answer] = sent(world)
    assert (answer.id, answer.label, answer.name) == (id_of("of-1"), 3, "3")
    assert (answer.by, answer.why) == ("rita", "two bows")
    (entry,) = world.store.audit.latest(Sought(action="review"), limit=5)
    assert (entry.actor, entry.action, entry.object, entry.reason) == (
        "rita", "review.answer", "review:1", "two bows"
    )  # fmt: skip
    assert json.loads(entry.after)["label"] == 3


def test_a_label_is_of_the_version_that_the_review_is_of(world: World) -> None:
    for review in (1, 2):
        answer_by_authority(
            world.fleet, world.store, review, "3", reason="so", token=token(world, Permission.REVIEWS_WRITE)
        )
    assert [(each.label, each.name) for each in sent(world)] == [(3, "3"), (2, "3")]


def with_nothing_to_show(world: World) -> ReviewAsk:
    return ask(world, token="")


def with_a_session_that_nobody_has(world: World) -> ReviewAsk:
    return ask(world, token="", session=session(world)[:-4] + "AAAA")


def with_a_session_that_ended(world: World) -> ReviewAsk:
    secret = session(world)
    world.store.sessions.close(secret)
    return ask(world, token="", session=secret)


def of_a_session_whose_account_is_no_reviewer_any_more(world: World) -> ReviewAsk:
    asked = ask(world, token="", session=session(world))
    world.store.accounts.set_roles(local_actor(), "rita", frozenset({Role.OPERATOR}))
    return asked


def with_a_token_that_nobody_has(world: World) -> ReviewAsk:
    return ask(world, token=token(world, Permission.REVIEWS_WRITE)[:-6] + "AAAAAA")


def with_a_token_for_other_things(world: World) -> ReviewAsk:
    return ask(world, token=token(world, Permission.REVIEWS_READ, Permission.AUDIT_READ))


def with_a_token_that_has_ended(world: World) -> ReviewAsk:
    asked = ask(world)
    world.clock.advance(HOUR_S)
    return asked


def to_no_review(world: World) -> ReviewAsk:
    return ask(world, review=77)


def to_a_number_that_no_review_can_have(world: World) -> ReviewAsk:
    return ask(world, review=(1 << 64) - 1)


def to_one_that_its_device_decided(world: World) -> ReviewAsk:
    report(world.fleet, world.store, ROSE, ended=[EndedReview(id_of("of-1"), "here")])
    return ask(world)


def to_one_that_waited_too_long(world: World) -> ReviewAsk:
    world.clock.advance(LIFE_S)
    return ask(world)


def with_a_label_that_there_is_not(world: World) -> ReviewAsk:
    return ask(world, label=10)


def with_no_reason(world: World) -> ReviewAsk:
    return ask(world, why="  ")


def with_a_reason_that_is_too_long(world: World) -> ReviewAsk:
    return ask(world, why="x" * 201)


Lie = Callable[[World], ReviewAsk]
LIES: dict[Lie, type[UmbelError]] = {
    with_nothing_to_show: RefusedError,
    with_a_session_that_nobody_has: RefusedError,
    with_a_session_that_ended: RefusedError,
    of_a_session_whose_account_is_no_reviewer_any_more: RefusedError,
    with_a_token_that_nobody_has: RefusedError,
    with_a_token_for_other_things: RefusedError,
    with_a_token_that_has_ended: RefusedError,
    to_no_review: UsageError,
    to_a_number_that_no_review_can_have: UsageError,
    to_one_that_its_device_decided: RefusedError,
    to_one_that_waited_too_long: RefusedError,
    with_a_label_that_there_is_not: UsageError,
    with_no_reason: UsageError,
    with_a_reason_that_is_too_long: UsageError,
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_service_that_lies_has_no_answer_signed(world: World, lie: Lie) -> None:
    asked = lie(world)
    records = world.store.audit.newest()
    with pytest.raises(LIES[lie]) as refused:
        world.authority.answer_review(asked)
    assert str(refused.value).rstrip().endswith((".", "wait"))
    for secret in (asked.token, asked.session):
        assert not secret or secret[-10:] not in str(refused.value)
    assert sent(world) == []
    assert world.store.audit.newest() == records


def test_of_two_answers_to_one_review_the_second_is_never_signed(world: World) -> None:
    world.authority.answer_review(ask(world))
    with pytest.raises(RefusedError, match="rita answered it already"):
        world.authority.answer_review(ask(world, label=4))
    assert [each.label for each in sent(world)] == [3]


def test_while_the_authority_is_away_no_review_is_answered_with_another_key(tmp_path: Path) -> None:
    with world_at(tmp_path, apart=True) as world:
        seed(world)
        shown = token(world, Permission.REVIEWS_WRITE)
    assert world.fleet.authority_key.exists()
    with pytest.raises(UnavailableError, match="umbel serve ca"):
        answer_by_authority(world.fleet, world.store, 1, "3", reason="two bows", token=shown)
    assert world.store.reviews.get(1).state == "open"
