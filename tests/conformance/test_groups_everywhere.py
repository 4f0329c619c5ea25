"""Groups over the API and at the command line, here and far away: the same words, and only for who may."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from api_world import api_world
from rollout_world import ANN, World
from two_places import TwoPlaces
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPlaces]:
    path = tmp_path_factory.mktemp("groups")
    with api_world(path) as made:
        full = TwoPlaces(made.fleet, made.store, made.clock, made.client)
        full.path, full.tokens = path, {}
        for name, role in (("root", Role.ADMIN), ("olga", Role.OPERATOR), ("vera", Role.VIEWER)):
            full.tokens[name] = made.token(made.user(name, role), HELD[role])
        fleet = World(made.store, made.clock, releases=())
        for name in fleet.names[:20]:
            made.store.placements.tag(name, ["north"], actor=ANN)
        yield full


@pytest.mark.parametrize("where", ["here", "far"])
def test_a_group_is_saved_counted_and_forgotten(world: TwoPlaces, where: str) -> None:
    made = json.loads(
        world.run(f"fleet|group|room-{where}|--begins|device-000|--tag|north|--reason|a room|--json", where)
    )
    assert (made["kind"], made["filter"], made["devices"]) == (
        "dynamic",
        {"tag": "north", "begins": "device-000"},
        1,
    )
    assert made["fewer_than_cohort"] is True
    listed = json.loads(world.run("fleet|groups|--json", where))
    assert [(each["name"], each["kind"], each["devices"], each["fewer_than_cohort"]) for each in listed] == [
        ("north", "static", 20, False),
        (f"room-{where}", "dynamic", 1, True),
    ]
    assert "1 (fewer than a cohort)" in world.run("fleet|groups", where)
    found = json.loads(world.run(f"fleet|devices|--group|room-{where}|--json", where))
    assert [each["id"] for each in found] == ["device-000"]
    assert json.loads(world.run(f"fleet|devices|--group|room-{where}|--tag|south|--json", where)) == []
    said = world.run(f"fleet|ungroup|room-{where}|--reason|torn down", where)
    assert said == f"There is no group room-{where} any more.\n"
    assert [each["name"] for each in json.loads(world.run("fleet|groups|--json", where))] == ["north"]


def test_only_who_may_change_devices_changes_groups(world: TwoPlaces) -> None:
    asked = {"status": "online", "reason": "to look"}
    for who, status in (("vera", 403), ("olga", 200)):
        answer = world.call(world.tokens[who], "PUT", "/groups/online", json=asked)
        assert answer.status_code == status
    assert world.call(world.tokens["vera"], "GET", "/groups/online").json()["saved_by"] == "olga"
    page = world.call(world.tokens["vera"], "GET", "/groups?limit=1").json()
    assert [each["name"] for each in page["items"]] == ["north"]
    after = world.call(world.tokens["vera"], "GET", f"/groups?cursor={page['next']}").json()
    assert ([each["name"] for each in after["items"]], after["next"]) == (["online"], None)
    why = {"reason": "looked"}
    assert world.call(world.tokens["vera"], "POST", "/groups/online/remove", json=why).status_code == 403
    assert world.call(world.tokens["olga"], "POST", "/groups/online/remove", json=why).status_code == 200
    assert world.call(world.tokens["olga"], "POST", "/groups/online/remove", json=why).status_code == 404
    newest = world.store.audit.newest()
    assert newest is not None
    assert (newest.actor, newest.action, newest.object) == ("olga", "group.remove", "group:online")


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"reason": "x"}, 422),
        ({"version": 2, "reason": "x"}, 422),
        ({"status": "asleep", "reason": "x"}, 422),
        ({"tag": "north"}, 422),
        ({"group": "north", "reason": "x"}, 422),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(
    world: TwoPlaces, asked: dict[str, object], status: int
) -> None:
    assert world.call(world.tokens["olga"], "PUT", "/groups/odd", json=asked).status_code == status


def test_a_group_called_as_a_tag_is_refused(world: TwoPlaces) -> None:
    answer = world.call(
        world.tokens["olga"], "PUT", "/groups/north", json={"status": "online", "reason": "x"}
    )
    assert answer.status_code == 409
    assert "have the tag north" in answer.json()["detail"]
