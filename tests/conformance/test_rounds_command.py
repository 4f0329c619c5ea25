"""``umbel rounds`` on a fleet of real processes: what it starts it can follow, stop and show."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live_fleet import LiveFleet, live_fleet
from simulation.federation import Federation
from umbel_proto.errors import UsageError
from umbel_server.learning.lock import require_free

pytestmark = pytest.mark.e2e

PLAN = """
model = "digits"
rounds = 50
devices = 3
heldout = "heldout.npz"
[training]
learning_rate = 0.05
[privacy]
clip = 5.0
noise_multiplier = 0.01
[timing]
settle_s = 0.2
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LiveFleet]:
    with live_fleet(Federation(tmp_path, 3)) as running:
        yield running


def rounds(fleet: LiveFleet, *words: object) -> Any:
    command = [
        sys.executable,
        "-m",
        "umbel",
        "rounds",
        *map(str, words),
        "--fleet",
        fleet.federation.fleet.path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stdout


def test_a_run_is_started_followed_paused_resumed_stopped_and_shown_by_commands(
    fleet: LiveFleet, tmp_path: Path
) -> None:
    plan = fleet.federation.root / "plan.toml"
    plan.write_text(PLAN)
    for number in range(3):
        fleet.start_device(number)
    checked = rounds(fleet, "start", plan, "--dry-run", "--json")
    assert (checked["run"], checked["started"]) == ("digits-1", False)
    assert rounds(fleet, "list", "--json") == []
    started = rounds(fleet, "start", plan, "--json")
    assert started == {**checked, "started": True}

    def opened() -> int:
        return sum(each.state == "opened" for each in fleet.federation.record("digits-1")[1])

    fleet.supervisor.wait("two rounds", lambda: opened() >= 2, timeout_s=90)
    assert rounds(fleet, "list", "--json")[0]["rounds_done"] >= 2
    assert rounds(fleet, "pause", "digits-1", "--reason", "lunch", "--json")["state"] == "paused"
    directory = fleet.federation.fleet.runs / "digits-1"
    trained = directory / "trained.params"

    def nobody_drives_it() -> bool:
        with contextlib.suppress(UsageError):
            require_free(directory)
            return trained.exists()
        return False

    fleet.supervisor.wait("the round's end", nobody_drives_it, timeout_s=60)
    (paused, _), before = fleet.federation.record("digits-1"), opened()
    assert (paused.state, paused.reason) == ("paused", "lunch")
    assert rounds(fleet, "resume", "digits-1", "--reason", "fed", "--json")["state"] == "running"

    fleet.supervisor.wait("the round after", lambda: opened() > before, timeout_s=60)
    trained.unlink()
    assert rounds(fleet, "stop", "digits-1", "--reason", "enough", "--json")["state"] == "stopped"
    fleet.supervisor.wait("the run to stop", trained.exists, timeout_s=60)
    assert "digits-1 is stopped" in rounds(fleet, "watch", "digits-1")

    picture = tmp_path / "run.png"
    shown = rounds(fleet, "show", "digits-1", "--plot", picture, "--json")
    assert (shown["state"], shown["reason"]) == ("stopped", "enough")
    assert 2 <= shown["rounds_done"] < 50
    assert picture.read_bytes().startswith(b"\x89PNG")
    last = shown["attempts"][-1]["figures"]
    assert last["metrics"].keys() == {"loss", "accuracy"}
    assert 0 < last["epsilon_server"] <= started["epsilon_server"]
    assert "enough" in rounds(fleet, "show", "digits-1")
