"""``umbel experiment`` in the fleet's directory and at its service: the same words, the same JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_world import api_world
from experiment_world import HOUR_S, shop
from service_fleet import ManualClock
from two_places import TwoPlaces, timeless
from umbel_proto.errors import RefusedError, UmbelError, UsageError
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD

PLAN = """
metric = "app.sales/app.visits"
least_effect = 0.02
question = "Do people buy more?"
treatment = 50
control = 50
least_devices = 20

[[gate]]
kind = "errors"
"""
START = "experiment start digits 3 --plan {path}/sales.toml --reason autumn --json"


@pytest.fixture(params=["here", "far"])
def where(request: pytest.FixtureRequest) -> str:
    made: str = request.param
    return made


@pytest.fixture
def world(tmp_path: Path) -> Iterator[TwoPlaces]:
    (tmp_path / "sales.toml").write_text(PLAN)
    with api_world(tmp_path, clock=ManualClock(time.time() - 5 * HOUR_S)) as made:
        both = TwoPlaces(made.fleet, made.store, made.clock, made.client)
        people = {"root": Role.ADMIN, "rita": Role.RELEASE_MANAGER, "vera": Role.VIEWER}
        both.path = tmp_path
        both.tokens = {name: made.token(made.user(name, role), HELD[role]) for name, role in people.items()}
        yield both


def same(world: TwoPlaces, words: str) -> Any:
    """Return what a command says, which is the same in both places."""
    told = {place: json.loads(world.run(f"{words} --json", place)) for place in ("here", "far")}
    assert timeless(told["far"]) == timeless(told["here"])
    # People read no moments but days: the tables are cut from the same JSON.
    assert world.run(words, "far") == world.run(words, "here") != ""
    return told["far"]


def test_an_experiment_reads_the_same_in_both_places_from_its_plan_to_its_decision(
    world: TwoPlaces, where: str
) -> None:
    devices = shop(world.store, world.clock)
    dry = same(world, "experiment plan digits 3 --plan {path}/sales.toml")
    assert dry["treatment"]["count"] == len(dry["treatment"]["devices"]) > 20
    begun = json.loads(world.run(START, where, "rita" if where == "far" else "root"))
    assert (begun["experiment"], begun["state"]) == ("digits-3-ab", "running")
    assert begun["created_by"] == ("rita" if where == "far" else begun["created_by"])
    devices.check()
    assert sorted(map(str, devices.with_version(3))) == sorted(dry["treatment"]["devices"])
    for _ in range(3):
        devices.sell({2: 0.3, 3: 0.45})
    world.clock.now_s = time.time()  # The clock of commands in the directory.
    assert same(world, "experiment show digits-3-ab")["figures"]["outcome"] == "better"
    world.run("experiment decide digits-3-ab extend --days 3 --reason more", where)
    ended = json.loads(world.run("experiment decide digits-3-ab ship --reason sells --json", where))
    assert [each["decision"] for each in ended["decisions"]] == ["extend", "ship"]
    assert same(world, "experiment list")["experiments"][0]["state"] == "shipped"
    assert same(world, "experiment show digits-3-ab")["figures"] == ended["decisions"][-1]["figures"]
    actions = [each.action for each in world.store.audit.all() if each.action.startswith("experiment.")]
    assert actions == ["experiment.create", "experiment.extend", "experiment.ship"]


def test_an_experiment_is_drawn_from_afar(world: TwoPlaces) -> None:
    devices = shop(world.store, world.clock)
    world.run(START, "far")
    devices.check()
    for _ in range(2):
        devices.sell({2: 0.3, 3: 0.45})
    world.run("experiment show digits-3-ab --plot {path}/sales.png", "far")
    assert (world.path / "sales.png").read_bytes().startswith(b"\x89PNG")


REFUSED = [
    ("experiment show spring --json", UsageError),
    ("experiment stop spring --reason odd", UsageError),
    ("experiment plan digits 9 --plan {path}/sales.toml", UsageError),
    ("experiment start digits 9 --plan {path}/sales.toml --reason autumn", UsageError),
    ("experiment start digits 3 --plan {path}/sales.toml --reason again", RefusedError),
    ("experiment decide digits-3-ab ship --reason early", RefusedError),
    ("experiment decide digits-3-ab extend --days 900 --reason long", UmbelError),
    ("experiment|stop|digits-3-ab|--reason| ", UsageError),
]


def test_what_is_refused_of_experiments_ends_the_same_way(world: TwoPlaces) -> None:
    shop(world.store, world.clock)
    world.run(START, "here")
    for words, kind in REFUSED:
        ends = set()
        for where in ("here", "far"):
            with pytest.raises(kind) as refused:
                world.run(words, where)
            ends.add(refused.value.exit_code)
        assert len(ends) == 1, words
    with pytest.raises(RefusedError, match="User vera may not do this"):
        world.run("experiment stop digits-3-ab --reason spite", "far", "vera")
    assert (
        json.loads(world.run("experiment list --json", "far", "vera"))["experiments"][0]["state"] == "running"
    )
