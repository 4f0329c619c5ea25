"""Runs as a service: two begin by themselves at once, and one whose server process is killed after devices were charged
is driven on, with no charge forgotten. In memory the same is tested at every message and write:
tests/simulation/test_resume.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from live_fleet import LiveFleet, live_fleet, umbel
from simulation.federation import Federation
from umbel_proto.ids import RunId
from umbel_proto.package import read_package
from umbel_server.learning.lock import LOCK
from umbel_server.learning.run import PROGRESS
from umbel_server.registry.stages import Stage
from umbel_server.store.registry import versions
from umbel_server.store.runs import RunningAttempt

DEVICES = 3
PLAN = """
model = "digits"
rounds = {rounds}
devices = {devices}
heldout = "{heldout}"
[training]
epochs = {epochs}
learning_rate = 0.1
momentum = 0.9
[privacy]
clip = 100.0
noise_multiplier = 0.0
[timing]
settle_s = 0.5
grace_s = 2.0
train_timeout_s = 60
phase_timeout_s = 30
[result]
calibration = "{calibration}"
"""


def command(*words: object) -> Any:
    done = subprocess.run([*umbel(*words), "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def pid_of(lock: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(lock.read_text())
    return None


def drafts(federation: Federation) -> dict[int, str | None]:
    """The versions of the registry that nobody has asked to release, and the run that each comes of."""
    with federation.fleet.open_store() as store, store.database.read() as connection:
        return {
            each.version: each.run for each in versions(connection, "digits") if each.stage is Stage.DRAFT
        }


def kill_server(fleet: LiveFleet, run: RunId) -> RunningAttempt:
    """Kill a run's server in a round whose devices it has asked for their updates; return what is on record."""
    progress = fleet.federation.fleet.runs / run / PROGRESS
    for round_ in (1, 2):

        def asked(round_: int = round_) -> bool:
            events = progress.read_text().splitlines(keepends=True) if progress.exists() else []
            told = [json.loads(line) for line in events if line.endswith("\n")]
            return any(each["round"] == round_ and each.get("phase") == "mask" for each in told)

        fleet.supervisor.wait(f"the updates of round {round_}", asked, timeout_s=90)
        pid = pid_of(progress.with_name(LOCK))
        assert pid is not None
        # Stopped first: a round that has just ended is no case for this test.
        os.kill(pid, signal.SIGSTOP)
        left = fleet.store.runs.running_attempt(run)
        if left is not None and left.charged:
            os.kill(pid, signal.SIGKILL)
            return left
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("No round was caught in time.")


@pytest.mark.e2e
def test_two_scheduled_runs_share_a_fleet_and_outlive_the_loss_of_a_server_process(tmp_path: Path) -> None:
    federation = Federation(tmp_path, DEVICES)
    fleet_dir = federation.fleet
    calibration = tmp_path / "calibration.npz"
    np.savez(calibration, x=federation.parts.train.x[:64])
    with live_fleet(federation) as fleet:
        for number in range(DEVICES):
            fleet.start_device(number)
        keeper = fleet.supervisor.start(
            "runs", umbel("serve", "runs", "--fleet", fleet_dir.path, "--poll-s", 0.2)
        )
        fleet.supervisor.wait("the keeper", lambda: keeper.says("ready runs"), timeout_s=60)
        for name, rounds, epochs in (("first", 2, 100), ("second", 2, 100)):
            plan = tmp_path / f"{name}.toml"
            plan.write_text(
                PLAN.format(
                    rounds=rounds,
                    devices=DEVICES,
                    heldout=federation.heldout,
                    epochs=epochs,
                    calibration=calibration,
                )
            )
            command(
                "rounds", "schedule", "add", name, plan, "--every", "7d", "--now", "--fleet", fleet_dir.path
            )

        left = kill_server(fleet, RunId("first-1"))
        recorded = federation.record("first-1")[1]
        assert left.charged == tuple(f"dev-{number}" for number in range(DEVICES))

        def all_ended() -> bool:
            return all(federation.record(run)[0].state != "running" for run in ("first-1", "second-1"))

        fleet.supervisor.wait("both runs", all_ended, timeout_s=120)
        fleet.supervisor.wait("both drafts", lambda: len(drafts(federation)) == 2, timeout_s=90)

    said = (tmp_path / "log" / "runs.log").read_text()
    assert said.count("first-1 was driven by nobody") == 1
    assert "second-1 was driven by nobody" not in said
    packed: list[int] = []
    for run, rounds in (("first-1", 2), ("second-1", 2)):
        record, attempts = federation.record(run)
        assert (record.state, record.reason) == ("finished", "")
        assert [a.round for a in attempts if a.state == "opened"] == list(range(1, rounds + 1))
        package = read_package(
            (fleet_dir.runs / run / "model.umbel").read_bytes(), release_key=fleet_dir.release_public()
        )
        packed.append(package.manifest.version)
        assert package.manifest.lineage["run"] == run
        assert package.manifest.lineage["base_sha256"] == federation.package.sha256
        np.testing.assert_array_equal(package.parameters(), federation.trained(run))
    attempts = federation.record("first-1")[1]
    assert attempts[: len(recorded)] == recorded
    aborted = attempts[len(recorded)]
    assert (aborted.round, aborted.attempt) == (left.round, left.attempt)
    assert aborted.reason == f"the server was stopped in phase {left.phase}"
    assert {part.outcome for part in aborted.participations} == {"charged"}
    for number in range(DEVICES):
        parts = [(each, p) for each in attempts for p in each.participations if p.device == f"dev-{number}"]
        asked = {(each.round, each.attempt) for each, part in parts if part.outcome != "dropped"}
        summed = {(each.round, each.attempt) for each, part in parts if part.outcome == "summed"}
        charged = [(each.round, each.attempt) for each in fleet.charges(number) if each.run == "first-1"]
        # Nothing twice, nothing that the service does not know; what was asked of it may not have come to it.
        assert len(set(charged)) == len(charged)
        assert summed <= set(charged) <= asked
    assert drafts(federation) == dict(zip(packed, ["first-1", "second-1"], strict=True))
    assert sorted(packed) == [2, 3]
    # Rounds of the two took place at the same time.
    spans = {
        run: (
            min(a.started_s for a in federation.record(run)[1]),
            max(a.finished_s or 0 for a in federation.record(run)[1]),
        )
        for run in ("first-1", "second-1")
    }
    assert spans["second-1"][0] < spans["first-1"][1]
