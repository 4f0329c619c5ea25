"""The device's commands against the real gateway."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from device_world import HOUR_S, NO_DEVICES, UMBEL, UNASKED, World, make_world
from model_packages import digits, release
from service_fleet import DAY_S, ManualClock, running
from umbel._home.directory import DeviceHome
from umbel._rounds.conditions import Conditions
from umbel._rounds.ledger import Ledger
from umbel_server.fleet.publish import publish


def umbel(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(UMBEL), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


def test_predicting_on_the_command_line_fetches_predicts_and_reports(world: World) -> None:
    publish(world.fleet, world.store, release(2))
    path = world.root / "x.npz"
    np.savez(path, x=digits().held_out.x[:100], y=digits().held_out.y[:100])
    home = world.root / "d1"
    done = umbel("enroll", world.token(), "--home", home, "--name", "rose", "--json")
    assert json.loads(done.stdout) == {"fleet": "garden", "device": "rose", "home": str(home)}

    for variant, ran in (("fp32", "fp32"), ("int8", "int8")):
        done = umbel("predict", "digits", path, "--home", home, "--variant", variant, "--json")
        result = json.loads(done.stdout)
        assert (result["model"], result["version"], result["variant"]) == ("digits", 2, ran)
        assert (result["n"], len(result["labels"])) == (100, 100)
        assert result["accuracy"] > 0.9
        assert 0 < result["latency_us"]["p50"] <= result["latency_us"]["p90"]
    assert world.predictions() == 200

    status = json.loads(umbel("status", "--home", home, "--json").stdout)
    assert (status["device"], status["spooled_batches"], status["epsilon"]) == ("rose", 0, 0.0)
    assert [(model["model"], model["version"]) for model in status["models"]] == [("digits", 2)]

    table = umbel("predict", "digits", path, "--home", home).stdout
    assert "accuracy" in table
    wrong = world.root / "wrong.npz"
    np.savez(wrong, x=np.zeros((2, 5), np.float32))
    done = umbel("predict", "digits", wrong, "--home", home, "--offline")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("Error: Row 0: ")


def test_lines_of_json_on_the_standard_input_are_answered_with_lines_and_reported(world: World) -> None:
    publish(world.fleet, world.store, release(2))
    home = world.device("d1").path
    x, y = digits().held_out.x[:20], digits().held_out.y[:20]
    lines = [*map(json.dumps, x.tolist()), json.dumps({"x": x[0].tolist()}), "[1, 2]"]
    done = umbel("predict", "digits", "-", "--home", home, input="\n".join(lines))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert np.mean([said["label"] for said in answers[:20]] == y) > 0.9
    assert answers[20] == answers[0]
    # The line that does not fit ends it, and those before it count.
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("Error: Line 22: ")
    assert world.predictions() == 21

    done = umbel("predict", "digits", "-", "--home", home, "--offline", input=lines[0])
    assert json.loads(done.stdout) == answers[0]
    assert json.loads(umbel("status", "--home", home, "--json").stdout)["spooled_batches"] == 1
    assert world.predictions() == 21


def test_without_the_gateway_the_command_line_predicts_and_keeps_its_report(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet = make_world(tmp_path, clock)
    path = tmp_path / "x.npz"
    np.savez(path, x=digits().held_out.x[:3])
    with running(fleet, clock=clock) as (_, store):
        world = World(fleet, store, clock, tmp_path)
        publish(fleet, store, release(2))
        home = world.device("d1").path
        assert umbel("predict", "digits", path, "--home", home).returncode == 0
    done = umbel("predict", "digits", path, "--home", home, "--json")
    assert done.returncode == 0
    assert "does not answer" in done.stderr
    assert len(json.loads(done.stdout)["labels"]) == 3
    assert json.loads(umbel("status", "--home", home, "--json").stdout)["spooled_batches"] == 1


def test_errors_on_the_command_line_are_one_sentence_and_an_exit_code(world: World, unused: str) -> None:
    home, token = world.root / "d1", world.token()
    cases: list[tuple[tuple[object, ...], int, str]] = [
        (("enroll", "nonsense", "--home", home), 3, "not an enrollment token"),
        (("enroll", world.token(), "--gateway", unused, "--home", home), 5, "does not answer"),
        (("enroll", world.token(), "--gateway", "nowhere", "--home", home), 2, "host:port"),
        (("enroll", token, "--home", home), 0, ""),
        (("enroll", token, "--home", world.root / "d2"), 3, "already used"),
        (("enroll", world.token(), "--home", home), 2, "already device"),
        (("predict", "digits", world.root / "none.npz", "--home", home), 2, "There is no file"),
    ]
    for args, code, sentence in cases:
        done = umbel(*args)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1 if code else 0), done.stderr
        assert sentence in done.stderr
    (home / "ledger.db").write_bytes(b"damaged")
    done = umbel("privacy", "--home", home)
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    assert "ledger.db is damaged" in done.stderr


def test_an_expired_device_that_knows_no_way_back_does_not_run(world: World) -> None:
    world.clock.advance(-DAY_S - HOUR_S)
    home = world.device("d1")
    home.write_identity(dataclasses.replace(home.identity, enrollment=""))
    done = umbel("run", "--home", home.path)
    assert (done.returncode, done.stdout) == (4, "")
    assert "expired on" in done.stderr


def test_the_devices_commands_run_with_what_a_device_has(world: World) -> None:
    publish(world.fleet, world.store, release(2))
    path, at = world.root / "x.npz", ("--home", str(world.root / "rose"))
    np.savez(path, x=digits().held_out.x[:3])
    plan = ("privacy", "plan", "--devices", "5000", "--rounds", "9", "--dim", "999", "--epsilon", "4")
    words = [
        ("enroll", world.token(), "--name", "rose", *at),
        ("predict", "digits", str(path), *at),
        plan,
        *(
            (*each, *at)
            for each in (("status",), ("doctor",), ("privacy",), ("data", "list"), ("model", "list"))
        ),
        *((*each, "--help") for each in ((), ("run",), ("train",), ("data",), ("review", "show"))),
    ]
    code = (
        f"import sys\nfor name in {NO_DEVICES}: sys.modules[name] = None\nfrom umbel.cli import app\n"
        f"for words in {words}: app(words, standalone_mode=False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for said in ("Enrolled as rose", "predictions  3", "rose of fleet garden", "epsilon_server", "Usage: "):
        assert said in done.stdout


def test_an_agent_enrolls_serves_alone_and_stops_cleanly(world: World) -> None:
    publish(world.fleet, world.store, release(2))
    path, home = world.root / "x.npz", DeviceHome(world.root / "d1")
    np.savez(path, x=digits().held_out.x[:3])
    command = [UMBEL, "run", "--home", home.path, "--token", world.token(), "--poll", "0.2", "--name", "rose"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as agent:
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "ready rose\n"
            second = umbel("run", "--home", home.path)
            assert (second.returncode, second.stderr.count("\n")) == (2, 1)
            assert "already runs" in second.stderr
            assert umbel("predict", "digits", path, "--home", home.path).returncode == 0
            status = json.loads(umbel("status", "--home", home.path, "--json").stdout)
            assert status["agent_runs"] is True
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(20) == 0
        finally:
            agent.kill()
    assert world.predictions() == 3
    assert not home.agent_runs()
    # It trains on what applications keep, and nobody has asked their user.
    assert Conditions(home, probes=()).now().reasons == (UNASKED,)
    assert umbel("data", "consent", "--grant", "--home", home.path).returncode == 0
    assert Conditions(home, probes=()).now().trains


def test_a_killed_agent_comes_back_as_the_same_device(world: World) -> None:
    home = world.device("rose")
    for _ in range(2):
        command = [UMBEL, "run", "--home", home.path, "--poll", "0.2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as agent:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "ready rose\n"
            os.kill(agent.pid, signal.SIGKILL)
            assert agent.wait(20) == -9
    with Ledger(home.ledger) as ledger:
        assert ledger.charges() == ()
