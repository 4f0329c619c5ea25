"""Rollouts over the API: begun, watched and stopped as at the command line, by the same rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from api_world import ApiWorld, api_world
from rollout_world import World
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD

PLAN = {"step": [{"name": "half", "percent": 50}, {"name": "all", "percent": 100}]}
NEW = {"model": "digits", "version": 3, "plan": PLAN, "reason": "autumn"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiWorld, World]]:
    with api_world(tmp_path_factory.mktemp("api")) as made:
        devices = World(made.store, made.clock, releases=(1, 2))
        devices.check()
        yield made, devices


def test_a_rollout_through_the_api(world: tuple[ApiWorld, World]) -> None:
    api, devices = world
    token = api.token(api.user("rita", Role.RELEASE_MANAGER), HELD[Role.RELEASE_MANAGER])

    def call(method: str, path: str, **body: object) -> tuple[int, dict[str, Any]]:
        answer = api.call(token, method, path, **({"json": body} if body else {}))
        return answer.status_code, answer.json()

    assert call("POST", "/holds/digits", reason="by rollouts only") == (
        200,
        {"model": "digits", "version": 2},
    )
    devices.release(3)
    _, dry = call("POST", "/rollouts/plan", model="digits", version=3, plan=PLAN)
    half = {str(device) for device in dry["steps"][0]["devices"]}
    status, begun = call("POST", "/rollouts", **NEW)
    assert (status, begun["rollout"], begun["state"]) == (201, "digits-3", "running")
    assert call("POST", "/rollouts", **NEW, name="another")[0] == 409
    devices.check()
    assert {str(device) for device in devices.with_version(3)} == half

    _, first = call("GET", "/rollouts/digits-3/devices?limit=3")
    assert [each["device"] for each in first["items"]] == sorted(half)[:3]
    assert call("POST", "/rollouts/digits-3/pause", reason="lunch")[1]["state"] == "paused"
    assert call("POST", "/rollouts/digits-3/pause", reason="lunch")[0] == 409
    assert call("POST", "/rollouts/digits-3/resume", reason="fed")[1]["state"] == "running"
    _, stopped = call("POST", "/rollouts/digits-3/stop", devices="roll-back", reason="smoke")
    assert (stopped["state"], stopped["reason"]) == ("rolled-back", "smoke")
    _, shown = call("GET", "/rollouts/digits-3")
    events = shown["events"]
    assert [(each["event"], each["actor"]) for each in events] == [
        ("start", "rita"),
        ("pause", "rita"),
        ("resume", "rita"),
        ("rollback", "rita"),
    ]
    assert set(devices.check().values()) == {2}


def test_a_device_is_pinned_and_unpinned(world: tuple[ApiWorld, World]) -> None:
    api, devices = world
    token = api.token(api.user("rolf", Role.OPERATOR), HELD[Role.OPERATOR])
    rose = devices.names[0]
    body = {"version": 1, "reason": "study"}
    assert api.call(token, "PUT", f"/pins/{rose}/digits", json=body).json()["version"] == 1
    assert devices.check(rose)[rose] == 1
    assert api.call(token, "PUT", f"/pins/{rose}/digits", json={**body, "version": 77}).status_code == 404
    assert api.call(token, "POST", f"/pins/{rose}/digits/end", json={"reason": "over"}).status_code == 200
    assert devices.check(rose)[rose] == 2


def test_what_is_not_there_is_not_found_and_a_bad_plan_is_refused(world: tuple[ApiWorld, World]) -> None:
    api, _ = world
    token = api.token(api.user("root", Role.ADMIN), HELD[Role.ADMIN])
    assert api.call(token, "GET", "/rollouts/spring").status_code == 404
    assert api.call(token, "POST", "/rollouts/spring/pause", json={"reason": "x"}).status_code == 404
    assert api.call(token, "POST", "/holds/letters", json={"reason": "x"}).status_code == 404
    bad: tuple[dict[str, Any], ...] = (
        {"rate": "many"},
        {"speed": 1},
        {"step": [1]},
        {"gate": [{"kind": []}]},
    )
    for plan in bad:
        answer = api.call(token, "POST", "/rollouts", json={**NEW, "plan": plan})
        assert answer.status_code == 422, answer.text
