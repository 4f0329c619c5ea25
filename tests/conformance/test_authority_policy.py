"""The fleet policy, changed by an operator through services that the authority does not believe."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from test_authority import World, world_at

from umbel_proto.conditions import Rules
from umbel_proto.credentials import open_policy, rules_message
from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_proto.wire.authority_pb2 import PolicyChange
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import Permission
from umbel_server.api.server import ApiServer
from umbel_server.store.audit import Sought

HOUR_S = 3600.0
CHARGING = Rules(charging=True)


@pytest.fixture(params=[False, True], ids=["here", "apart"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path, apart=request.param) as made:
        made.store.accounts.add(local_actor(), "olga", roles=frozenset({Role.ADMIN}), password=None)
        yield made


def token(world: World, *scopes: Permission, name: str = "olga") -> str:
    text, _ = world.store.api_tokens.create(local_actor(), name, scopes=frozenset(scopes), valid_s=HOUR_S)
    return text


def change(world: World, rules: Rules = CHARGING, *, version: int = 1) -> PolicyChange:
    return PolicyChange(
        token=token(world, Permission.POLICY_WRITE),
        version=version,
        training=rules_message(rules),
        reason="batteries wear out",
    )


def test_an_operators_token_has_the_next_policy_signed_and_put_on_record(world: World) -> None:
    before = world.fleet.policy()
    signed = world.authority.change_policy(change(world))
    told = open_policy(
        signed.SerializeToString(), authority=world.fleet.authority_public(), fleet=world.fleet.name
    )
    assert told == world.fleet.policy() == replace(before, training=CHARGING, version=2)
    (entry,) = world.store.audit.latest(Sought(action="policy.change"), limit=5)
    assert (entry.actor, entry.reason, entry.object) == ("olga", "batteries wear out", "policy:2")


def with_no_token(world: World) -> PolicyChange:
    asked = change(world)
    asked.token = ""
    return asked


def with_a_token_that_nobody_has(world: World) -> PolicyChange:
    asked = change(world)
    asked.token = asked.token[:-6] + "AAAAAA"
    return asked


def with_a_token_for_other_things(world: World) -> PolicyChange:
    asked = change(world)
    asked.token = token(world, Permission.POLICY_READ, Permission.DEVICES_WRITE)
    return asked


def with_a_token_that_has_ended(world: World) -> PolicyChange:
    asked = change(world)
    world.clock.advance(HOUR_S)
    return asked


def with_a_token_that_was_revoked(world: World) -> PolicyChange:
    asked = change(world)
    (kept,) = world.store.api_tokens.all(account="olga")
    world.store.api_tokens.revoke(local_actor(), kept.id)
    return asked


def of_an_operator_who_is_one_no_more(world: World) -> PolicyChange:
    asked = change(world)
    world.store.accounts.add(local_actor(), "otto", roles=frozenset({Role.ADMIN}), password=None)
    world.store.accounts.set_roles(local_actor(), "olga", frozenset({Role.VIEWER}))
    return asked


def of_a_policy_that_is_not_in_force(world: World) -> PolicyChange:
    return change(world, version=2)


def that_was_asked_before(world: World) -> PolicyChange:
    asked = change(world)
    world.authority.change_policy(asked)
    world.authority.change_policy(change(world, Rules(), version=2))
    return asked


def without_a_reason(world: World) -> PolicyChange:
    asked = change(world)
    asked.reason = "  "
    return asked


def with_a_battery_that_is_more_than_full(world: World) -> PolicyChange:
    asked = change(world)
    asked.training.min_battery = 1.5
    return asked


def with_a_reason_that_cannot_be_kept(world: World) -> PolicyChange:
    asked = change(world)
    asked.reason = "one\0two"
    return asked


Lie = Callable[[World], PolicyChange]
LIES: dict[Lie, type[UmbelError]] = {
    with_no_token: RefusedError,
    with_a_token_that_nobody_has: RefusedError,
    with_a_token_for_other_things: RefusedError,
    with_a_token_that_has_ended: RefusedError,
    with_a_token_that_was_revoked: RefusedError,
    of_an_operator_who_is_one_no_more: RefusedError,
    of_a_policy_that_is_not_in_force: RefusedError,
    that_was_asked_before: RefusedError,
    without_a_reason: UsageError,
    with_a_battery_that_is_more_than_full: UsageError,
    with_a_reason_that_cannot_be_kept: UsageError,
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_service_that_lies_has_no_policy_signed(world: World, lie: Lie) -> None:
    asked = lie(world)
    signed, records = world.fleet.signed_policy(), world.store.audit.newest()
    with pytest.raises(LIES[lie]) as refused:
        world.authority.change_policy(asked)
    assert str(refused.value).endswith(".")
    assert asked.token[-10:] not in str(refused.value) or not asked.token
    assert (world.fleet.signed_policy(), world.store.audit.newest()) == (signed, records)


def test_the_api_has_a_policy_changed_wherever_the_authority_is(world: World) -> None:
    trust = ssl.create_default_context(cafile=world.fleet.ca_pem)
    headers = {"Authorization": f"Bearer {token(world, Permission.POLICY_WRITE, Permission.POLICY_READ)}"}
    with (
        ApiServer(world.fleet, world.store, port=0) as server,
        httpx.Client(base_url=f"https://{server.address}/api/v1", verify=trust, headers=headers) as client,
    ):
        seen = client.get("/policy")
        again = {"If-Match": seen.headers["etag"]}
        body = {"min_battery": 0.5, "reason": "winter"}
        done = client.patch("/policy/training", json=body, headers=again)
        assert (done.status_code, done.json()["version"], done.json()["training"]["min_battery"]) == (
            200,
            2,
            0.5,
        )
        assert world.fleet.policy().training == Rules(min_battery=0.5)
        assert client.patch("/policy/training", json=body, headers=again).status_code == 412


def test_while_the_authority_is_away_the_api_says_so_and_nothing_changes(tmp_path: Path) -> None:
    with world_at(tmp_path, apart=True) as world:
        world.store.accounts.add(local_actor(), "olga", roles=frozenset({Role.ADMIN}), password=None)
        shown = token(world, Permission.POLICY_WRITE, Permission.POLICY_READ)
    with world.fleet.open_store(clock=world.clock) as store, ApiServer(world.fleet, store, port=0) as server:
        trust = ssl.create_default_context(cafile=world.fleet.ca_pem)
        headers = {"Authorization": f"Bearer {shown}"}
        with httpx.Client(
            base_url=f"https://{server.address}/api/v1", verify=trust, headers=headers
        ) as client:
            etag = client.get("/policy").headers["etag"]
            answer = client.patch(
                "/policy/training", json={"idle": True, "reason": "summer"}, headers={"If-Match": etag}
            )
    assert (answer.status_code, answer.json()["kind"]) == (503, "unavailable")
    assert answer.json()["detail"].endswith("start it with  umbel serve ca.")
    assert world.fleet.policy().version == 1
