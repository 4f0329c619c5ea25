"""``umbel experiment``: from the plan to the decision, in the words of people and of programs."""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from experiment_world import HOUR_S, shop
from service_fleet import ManualClock, make_fleet
from umbel_proto.errors import MissingExtraError, UsageError
from umbel_server.experiments.command import app

Run = Callable[..., Result]
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


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    made = make_fleet(tmp_path / "garden")
    (tmp_path / "sales.toml").write_text(PLAN)
    return made.path


@pytest.fixture
def run(garden: Path) -> Run:
    def command(*words: object) -> Result:
        found = CliRunner().invoke(app, [*map(str, words), "--fleet", str(garden)])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        assert found.exit_code == 0, found.output
        return found

    return command


def test_an_experiment_from_its_plan_to_its_decision(
    run: Run, garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from umbel_server.fleet.layout import FleetDir

    # The command knows one clock: what happened before is dated by it.
    clock = ManualClock(time.time() - 5 * HOUR_S)
    plan = ("digits", 3, "--plan", tmp_path / "sales.toml")
    with FleetDir.open(garden).open_store(clock=clock) as store:
        world = shop(store, clock)
        dry = json.loads(run("plan", *plan, "--json").output)
        assert dry["treatment"]["count"] + dry["control"]["count"] == 60
        assert (dry["others"], dry["doubt"]) == (0, None)
        told = run("plan", *plan).output
        assert "by app.sales/app.visits" in told
        assert "then       all" in told
        world.begin(plan=_plan())
        world.check()
        shown = json.loads(run("show", "digits-3-ab", "--json").output)
        assert (shown["state"], shown["figures"]["outcome"]) == ("running", "too little yet")
        assert [str(device) for device in sorted(world.with_version(3))] == dry["treatment"]["devices"]
        with pytest.raises(UsageError, match="nothing to draw"):
            run("show", "digits-3-ab", "--plot", tmp_path / "early.png")
        for _ in range(3):
            world.sell({2: 0.3, 3: 0.45})
        text = run("show", "digits-3-ab", "--plot", tmp_path / "sales.png").output
        assert "Do people buy more?" in text
        assert "The treatment is better" in text
        assert "app.sales/app.visits: +0.1" in text
        assert (tmp_path / "sales.png").read_bytes().startswith(b"\x89PNG")
        shown = json.loads(run("show", "digits-3-ab", "--json").output)
        assert {point["treatment"] for point in shown["figures"]["course"]} == {dry["treatment"]["count"]}

        assert (
            "somebody is to decide by"
            in run("decide", "digits-3-ab", "extend", "--days", 3, "--reason", "x").output
        )
        assert (
            "rollout digits-3-ab goes on" in run("decide", "digits-3-ab", "ship", "--reason", "sells").output
        )
        shown = json.loads(run("show", "digits-3-ab", "--json").output)
        assert (shown["state"], [each["decision"] for each in shown["decisions"]]) == (
            "shipped",
            ["extend", "ship"],
        )
        assert shown["figures"] == shown["decisions"][-1]["figures"]
        assert "sells" in run("show", "digits-3-ab").output
        assert json.loads(run("list", "--json").output)["experiments"][0]["state"] == "shipped"
        assert "app.sales/app.visits" in run("list").output
        world.check()
        assert set(world.has.values()) == {3}
    _without_matplotlib(monkeypatch)
    with pytest.raises(MissingExtraError, match="Drawing a plot"):
        run("show", "digits-3-ab", "--plot", tmp_path / "sales.png")


def test_an_experiment_is_started_and_stopped_with_a_reason(run: Run, garden: Path, tmp_path: Path) -> None:
    from umbel_server.fleet.layout import FleetDir

    with FleetDir.open(garden).open_store() as store:
        shop(store, ManualClock(), devices=60)
    begun = run(
        "start", "digits", 3, "--plan", tmp_path / "sales.toml", "--name", "sales", "--reason", "autumn"
    )
    assert "Experiment sales compares digits 3 with 2" in begun.output
    with pytest.raises(UsageError, match="Say why"):
        run("stop", "sales", "--reason", " ")
    assert "is stopped" in run("stop", "sales", "--reason", "not now").output
    for words, sentence in (
        (("show", "spring"), "There is no experiment 'spring'"),
        (("decide", "sales", "cancel", "--reason", "x"), "no decision"),
        (("plan", "digits", 3, "--plan", tmp_path / "nowhere.toml"), "cannot be read"),
        (("start", "digits", 9, "--plan", tmp_path / "sales.toml"), "Version 9 of digits is not released"),
    ):
        with pytest.raises(UsageError, match=sentence):
            run(*words)


def _plan() -> Any:
    from umbel_server.experiments.plan import ExperimentPlan

    return ExperimentPlan.from_toml(PLAN)


def _without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "umbel_server.experiments.plot", raising=False)
    real = builtins.__import__

    def importing(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", importing)
