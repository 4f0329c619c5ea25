"""Questions to the fleet, signed for operators through services that the authority does not believe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_authority import World, world_at

from query_world import a_query
from umbel_proto.analytics.query import Query, open_query, write_query
from umbel_proto.credentials import sign_policy
from umbel_proto.errors import RefusedError, UmbelError, UnavailableError, UsageError
from umbel_proto.ids import FleetId, RunId
from umbel_proto.wire.authority_pb2 import QueryAsk
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import Permission
from umbel_server.ca.registrar import MAX_QUERY_LIFE_S
from umbel_server.queries.ask import free_name
from umbel_server.queries.sign import by_authority, with_key
from umbel_server.store.audit import Sought

HOUR_S = 3600.0


@pytest.fixture(params=[False, True], ids=["here", "apart"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path, apart=request.param) as made:
        made.store.accounts.add(local_actor(), "olga", roles=frozenset({Role.OPERATOR}), password=None)
        policy = replace(made.fleet.policy(), min_cohort=4)
        made.fleet.policy_bin.write_bytes(sign_policy(made.fleet.authority_signer(), policy))
        if request.param:
            # The services have no key, as where the authority is another system user's process.
            made.fleet.authority_key.unlink()
        yield made


def token(world: World, *scopes: Permission, name: str = "olga") -> str:
    text, _ = world.store.api_tokens.create(local_actor(), name, scopes=frozenset(scopes), valid_s=HOUR_S)
    return text


def session(world: World, name: str = "olga") -> str:
    account = world.store.accounts.get(name)
    assert account is not None
    return world.store.sessions.open(account)


def question(world: World, **changes: object) -> Query:
    own: dict[str, object] = {
        "fleet": world.fleet.name,
        "asked_by": "olga",
        "min_cohort": world.fleet.policy().min_cohort,
        "not_after_s": int(world.clock.now_s + HOUR_S),
    }
    return a_query(**{**own, **changes})


def ask(world: World, query: Query | None = None) -> QueryAsk:
    body = write_query(question(world) if query is None else query)
    return QueryAsk(token=token(world, Permission.QUERIES_WRITE), query=body)


@pytest.mark.parametrize("shown", ["token", "session"])
def test_an_operators_question_is_signed_and_on_record(world: World, shown: str) -> None:
    query = question(world)
    if shown == "token":
        sign = by_authority(world.fleet, world.store, token=token(world, Permission.QUERIES_WRITE))
    else:
        sign = by_authority(world.fleet, world.store, session=session(world))
    signed = sign(query)
    key = world.fleet.authority_public()
    assert open_query(signed, authority=key, fleet=world.fleet.name, now_s=world.clock.now_s) == query
    (entry,) = world.store.audit.latest(Sought(action="query.sign"), limit=5)
    assert (entry.actor, entry.reason, entry.object) == ("olga", "to know", "query:q1")
    assert json.loads(entry.after) == {
        "asks": query.sentence,
        "query_sha256": hashlib.sha256(signed).hexdigest(),
    }


def test_without_an_authority_apart_the_file_signs_for_who_has_the_directory(tmp_path: Path) -> None:
    with world_at(tmp_path, apart=False) as world:
        query, key = question(world), world.fleet.authority_public()
        signed = with_key(world.fleet)(query)
        assert open_query(signed, authority=key, fleet=world.fleet.name, now_s=world.clock.now_s) == query


def with_nothing_to_show(world: World) -> QueryAsk:
    asked = ask(world)
    asked.token = ""
    return asked


def with_a_session_that_nobody_has(world: World) -> QueryAsk:
    return QueryAsk(session=session(world)[:-4] + "AAAA", query=ask(world).query)


def with_a_session_that_ended(world: World) -> QueryAsk:
    secret = session(world)
    world.store.sessions.close(secret)
    return QueryAsk(session=secret, query=ask(world).query)


def of_a_session_whose_account_is_no_operator_any_more(world: World) -> QueryAsk:
    asked = QueryAsk(session=session(world), query=ask(world).query)
    world.store.accounts.set_roles(local_actor(), "olga", frozenset({Role.VIEWER}))
    return asked


def with_a_token_that_nobody_has(world: World) -> QueryAsk:
    asked = ask(world)
    asked.token = asked.token[:-6] + "AAAAAA"
    return asked


def with_a_token_for_other_things(world: World) -> QueryAsk:
    asked = ask(world)
    asked.token = token(world, Permission.PRIVACY_READ, Permission.RUNS_WRITE)
    return asked


def with_a_token_that_has_ended(world: World) -> QueryAsk:
    asked = ask(world, question(world, not_after_s=int(world.clock.now_s + 2 * HOUR_S)))
    world.clock.advance(HOUR_S)
    return asked


def in_another_name(world: World) -> QueryAsk:
    return ask(world, question(world, asked_by="root"))


def to_another_fleet(world: World) -> QueryAsk:
    return ask(world, question(world, fleet=FleetId("meadow")))


def that_is_too_old(world: World) -> QueryAsk:
    return ask(world, question(world, not_after_s=int(world.clock.now_s)))


def that_holds_for_too_long(world: World) -> QueryAsk:
    return ask(world, question(world, not_after_s=int(world.clock.now_s + MAX_QUERY_LIFE_S + 2)))


def that_is_content_with_fewer_devices(world: World) -> QueryAsk:
    return ask(world, question(world, min_cohort=world.fleet.policy().min_cohort - 1))


def that_is_no_question(world: World) -> QueryAsk:
    asked = ask(world)
    asked.query = asked.query[:-3]
    return asked


def that_is_not_written_as_it_is_signed(world: World) -> QueryAsk:
    asked = ask(world)
    asked.query = asked.query + b"\xf8\x7f\x01"  # A field that nobody knows.
    return asked


Lie = Callable[[World], QueryAsk]
LIES: dict[Lie, type[UmbelError]] = {
    with_nothing_to_show: RefusedError,
    with_a_session_that_nobody_has: RefusedError,
    with_a_session_that_ended: RefusedError,
    of_a_session_whose_account_is_no_operator_any_more: RefusedError,
    with_a_token_that_nobody_has: RefusedError,
    with_a_token_for_other_things: RefusedError,
    with_a_token_that_has_ended: RefusedError,
    in_another_name: RefusedError,
    to_another_fleet: RefusedError,
    that_is_too_old: RefusedError,
    that_holds_for_too_long: RefusedError,
    that_is_content_with_fewer_devices: RefusedError,
    that_is_no_question: UsageError,
    that_is_not_written_as_it_is_signed: UsageError,
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_service_that_lies_has_no_question_signed(world: World, lie: Lie) -> None:
    asked = lie(world)
    records = world.store.audit.newest()
    with pytest.raises(LIES[lie]) as refused:
        world.authority.sign_query(asked)
    assert str(refused.value).endswith(".")
    for secret in (asked.token, asked.session):
        assert not secret or secret[-10:] not in str(refused.value)
    assert world.store.audit.newest() == records


def test_under_one_name_one_question_is_signed_and_again_only_the_same(world: World) -> None:
    asked = ask(world)
    first = world.authority.sign_query(asked)
    assert world.authority.sign_query(asked) == first
    until_s = question(world).not_after_s
    for other in (question(world, why="something else"), question(world, not_after_s=until_s + 1)):
        with pytest.raises(RefusedError, match="Another question q1 was signed already"):
            world.authority.sign_query(ask(world, other))
    assert len(world.store.audit.latest(Sought(action="query.sign"), limit=9)) == 2
    world.authority.sign_query(ask(world, question(world, id=RunId("q2"), why="something else")))


def test_what_was_asked_with_the_key_at_hand_keeps_its_name_too(tmp_path: Path) -> None:
    with world_at(tmp_path, apart=False) as world:
        world.store.accounts.add(local_actor(), "olga", roles=frozenset({Role.OPERATOR}), password=None)
        query = question(world)
        world.store.queries.ask(query, with_key(world.fleet)(query), "{}", actor=local_actor())
        with pytest.raises(RefusedError, match="Another question q1 was signed already"):
            world.authority.sign_query(ask(world, question(world, why="something else")))


def test_a_question_that_was_signed_and_never_asked_keeps_its_name(world: World) -> None:
    assert free_name(world.store, "mean") == "mean-1"
    world.authority.sign_query(ask(world, question(world, id=RunId("mean-1"))))
    assert free_name(world.store, "mean") == "mean-2"


def test_while_the_authority_is_away_no_question_is_signed_with_another_key(tmp_path: Path) -> None:
    with world_at(tmp_path, apart=True) as world:
        world.store.accounts.add(local_actor(), "olga", roles=frozenset({Role.OPERATOR}), password=None)
        sign = by_authority(world.fleet, world.store, token=token(world, Permission.QUERIES_WRITE))
        query = replace(question(world), id=RunId("q2"))
    assert world.fleet.authority_key.exists()
    with pytest.raises(UnavailableError, match="umbel serve ca"):
        sign(query)
