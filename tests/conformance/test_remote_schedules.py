"""``umbel rounds schedule`` and ``umbel rounds pack`` in the fleet's directory and at its service: alike."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api_world import api_world
from model_packages import RELEASE, digits, first, opened
from registry_world import ANNA
from two_places import TwoPlaces
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, ModelName, RunId
from umbel_proto.package import read_package
from umbel_proto.update import write_update
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD
from umbel_server.fleet.publish import publish
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.run import TRAINED
from umbel_server.store.runs import Participation, RoundRecord

PLAN = """
model = "digits"
rounds = 2
devices = 8
heldout = "heldout.npz"
[privacy]
clip = 1.0
noise_multiplier = 4.0
delta = 1e-6
"""
PLACES = ("here", "far")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPlaces]:
    path = tmp_path_factory.mktemp("schedules")
    with api_world(path) as made:
        made.fleet.release_key.write_bytes(RELEASE.to_pem())
        made.fleet.release_pub.write_bytes(RELEASE.public.raw)
        publish(made.fleet, made.store, first(), actor=ANNA)
        both = TwoPlaces(made.fleet, made.store, made.clock, made.client)
        people = {
            "root": Role.ADMIN,
            "otto": Role.OPERATOR,
            "rita": Role.RELEASE_MANAGER,
            "vera": Role.VIEWER,
        }
        both.path = path
        both.tokens = {name: made.token(made.user(name, role), HELD[role]) for name, role in people.items()}
        # A plan's data lie beside it where the fleet's directory is, and in its directory of data at the service.
        (made.fleet.path / "data").mkdir()
        for directory in (path, made.fleet.path / "data"):
            np.savez(directory / "heldout.npz", **_examples())
        (path / "plan.toml").write_text(PLAN)
        yield both


def _examples() -> dict[str, Any]:
    held_out = digits().held_out
    assert held_out is not None
    return {"x": held_out.x[:200], "y": held_out.y[:200]}


def words_of(world: TwoPlaces) -> list[tuple[str, str]]:
    return [
        (each.action, each.object.split(":")[0])
        for each in world.store.audit.all()
        if each.action.startswith("schedule.")
    ]


def test_a_schedule_is_made_and_changed_the_same_in_both_places(world: TwoPlaces) -> None:
    said: dict[str, list[Any]] = {}
    for where in PLACES:
        before, lines = len(words_of(world)), []
        for words in (
            f"rounds schedule add from-{where} {{path}}/plan.toml --every 7d --at 02:30 --labels 9",
            f"rounds schedule pause from-{where} --reason lunch",
            f"rounds schedule resume from-{where} --reason fed --json",
            f"rounds schedule begin from-{where} --reason impatient",
            f"rounds schedule pause from-{where} --reason night --json",
        ):
            printed = world.run(words, where, "otto" if where == "far" else "root")
            told = json.loads(printed) if words.endswith("--json") else printed
            lines.append(json.loads(json.dumps(told).replace(f"from-{where}", "name")))
        said[where] = [lines, words_of(world)[before:]]
    assert said["far"] == said["here"]
    assert [action for action, _ in said["far"][1]] == [
        "schedule.create", "schedule.pause", "schedule.resume", "schedule.hasten", "schedule.pause",
    ]  # fmt: skip
    lists = [json.loads(world.run("rounds schedule list --json", where)) for where in PLACES]
    assert lists[0] == lists[1]
    assert [(each["schedule"], each["state"], each["labels"]) for each in lists[0]] == [
        ("from-far", "paused", 9),
        ("from-here", "paused", 9),
    ]
    assert all(each["next_s"] <= time.time() for each in lists[0])
    assert world.run("rounds schedule list", "far") == world.run("rounds schedule list", "here")
    plans = {each.name: each.plan["heldout"] for each in world.store.schedules.all()}
    assert plans == {
        "from-here": str(world.path / "heldout.npz"),
        "from-far": str(world.fleet.path / "data" / "heldout.npz"),
    }
    for where in PLACES:
        world.run(f"rounds schedule remove from-{where} --reason done", where)
    assert world.store.schedules.all() == ()


def test_schedules_come_in_pages_by_name(world: TwoPlaces) -> None:
    names = ["page-1", "page-2", "page-3"]
    for name in names:
        world.run(f"rounds schedule add {name} {{path}}/plan.toml --every 7d", "far")
    found, cursor = [], None
    while True:
        page = world.call(
            world.tokens["vera"],
            "GET",
            "/schedules",
            params={"limit": 1, **({"cursor": cursor} if cursor else {})},
        ).json()
        found += [each["schedule"] for each in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == names
    shown = world.call(world.tokens["vera"], "GET", "/schedules/page-2").json()
    assert (shown["schedule"], shown["state"], shown["every_s"]) == ("page-2", "active", 604_800)
    for name in names:
        world.run(f"rounds schedule remove {name} --reason done", "far")


REFUSED = [
    "rounds schedule add odd {path}/plan.toml --every 30s",
    "rounds schedule add odd {path}/plan.toml --every 36h --at 02:30",
    "rounds schedule add ../odd {path}/plan.toml --every 7d",
    "rounds schedule add odd {path}/nowhere.toml --every 7d",
    "rounds schedule pause nobody --reason x",
    "rounds schedule begin nobody --reason x",
    "rounds schedule remove nobody --reason x",
    "rounds pack nothing",
]


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused_of_schedules_ends_the_same_way(world: TwoPlaces, words: str) -> None:
    for where in PLACES:
        with pytest.raises(UsageError):
            world.run(words, where)
    assert world.store.schedules.all() == ()


def test_a_time_of_day_without_whole_days_is_refused_by_the_service_itself(world: TwoPlaces) -> None:
    plan = {"model": "digits", "rounds": 2, "devices": 8, "privacy": {"clip": 1.0, "noise_multiplier": 4.0}}
    asked = {"name": "odd", "plan": plan, "every_s": 90_000, "at_s": 9000}
    answer = world.call(world.tokens["otto"], "POST", "/schedules", json=asked)
    assert (answer.status_code, "whole days" in answer.json()["detail"]) == (422, True)
    asked = {**asked, "at_s": None, "plan": {**plan, "heldout": "/etc/passwd"}}
    answer = world.call(world.tokens["otto"], "POST", "/schedules", json=asked)
    assert (answer.status_code, "directory  data" in answer.json()["detail"]) == (422, True)


def test_a_schedule_asked_for_twice_under_one_key_is_made_once(world: TwoPlaces) -> None:
    plan = {
        "model": "digits",
        "rounds": 2,
        "devices": 8,
        "privacy": {"clip": 1.0, "noise_multiplier": 4.0, "delta": 1e-6},
    }
    asked = {"name": "once", "plan": plan, "every_s": 90_000}
    answers = [
        world.call(
            world.tokens["otto"], "POST", "/schedules", json=asked, headers={"Idempotency-Key": "a-key"}
        )
        for _ in range(2)
    ]
    assert [each.status_code for each in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert [action for action, _ in words_of(world)][-1] == "schedule.create"
    again = world.call(world.tokens["otto"], "POST", "/schedules", json=asked)
    assert again.status_code == 422
    world.run("rounds schedule remove once --reason done", "far")


def finished(world: TwoPlaces, run: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Put a finished run on record, and return what it has learned."""
    base = opened(first())
    plan = RunPlan.from_mapping(
        {
            "model": "digits", "version": 1, "package_sha256": base.sha256, "rounds": 1, "devices": 8,
            "heldout": str(world.fleet.path / "data" / "heldout.npz"),
            "privacy": {"clip": 1.0, "noise_multiplier": 1.0},
        }
    )  # fmt: skip
    runs = world.store.runs
    runs.create(RunId(run), ModelName("digits"), plan.to_json())
    runs.begin_round(RunId(run), 1, 1)
    figures = {"epsilon_server": 1.0, "epsilon_release": 1.0, "participations": 1}
    parts = (Participation(DeviceId("rose"), "summed"),)
    runs.end_round(RoundRecord(RunId(run), 1, 1, "opened", 1.0, 2.0, "", figures, parts))
    runs.finish(RunId(run), "finished", "")
    learned = (base.parameters() * np.float32(1.25)).astype(np.float32)
    (world.fleet.runs / run).mkdir()
    (world.fleet.runs / run / TRAINED).write_bytes(write_update(base, learned))
    return learned


def test_a_service_packs_what_a_run_has_learned_with_its_own_key_and_data(world: TwoPlaces) -> None:
    learned = finished(world, "trained")
    with pytest.raises(UsageError, match="Quantizing needs data"):
        world.run("rounds pack trained", "far")
    for words, sentence in (
        ("--calibration {path}/heldout.npz", "directory  data"),
        ("--heldout {path}/heldout.npz", "directory  data"),
        ("--key {path}/release.key", "is not sent to a service"),
        ("--out {path}/made.umbel", "where the fleet's directory is"),
    ):
        with pytest.raises(UsageError, match=sentence):
            world.run(f"rounds pack trained {words}", "far")
    for who in ("otto", "vera"):
        with pytest.raises(RefusedError, match="registry:write"):
            world.run("rounds pack trained --calibration heldout.npz", "far", who)
    made = json.loads(world.run("rounds pack trained --calibration heldout.npz --json", "far", "rita"))
    assert (made["run"], made["model"], made["version"]) == ("trained", "digits", 2)
    package = read_package(
        world.fleet.package(bytes.fromhex(made["sha256"])).read_bytes(), release_key=RELEASE.public
    )
    np.testing.assert_array_equal(package.parameters(), learned)
    added = world.store.audit.newest()
    assert added is not None
    assert (added.actor, added.action) == ("rita", "version.add")
    # What the command in the directory makes of the same run is the same version: the same parameters.
    here = json.loads(
        world.run("rounds pack trained --calibration {path}/heldout.npz --version 3 --json", "here")
    )
    assert here.keys() - made.keys() == {"package"}
    assert (
        Path(here["package"]).read_bytes() == world.fleet.package(bytes.fromhex(here["sha256"])).read_bytes()
    )
