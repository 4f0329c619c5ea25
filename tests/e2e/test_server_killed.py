"""A power cut of the run's server alone, over real Flower: the run is started again and goes on, and no charge is
forgotten. In memory the same is tested at every message and write: tests/simulation/test_resume.py.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from live_fleet import LiveFleet, live_fleet
from simulation.tiny import TinyFederation, check_run
from umbel_proto.ids import RunId
from umbel_server.learning.lock import LOCK
from umbel_server.learning.plan import Timing
from umbel_server.store.runs import RunningAttempt

DEVICES = 3
ROUNDS = 3
RUN = RunId("r1")
TIMING = Timing(train_timeout_s=60, phase_timeout_s=30, grace_s=1)


@pytest.mark.e2e
def test_a_run_whose_server_is_killed_after_devices_were_charged_goes_on_when_started_again(
    tmp_path: Path,
) -> None:
    federation = TinyFederation(tmp_path, DEVICES)
    plan = replace(federation.plan(rounds=ROUNDS), timing=TIMING)
    with live_fleet(federation) as fleet:
        for number in range(DEVICES):
            fleet.start_device(number)
        fleet.start_run(plan)
        left = kill_server(fleet)
        run, recorded = federation.record()
        assert run.state == "running"
        assert left.charged == tuple(f"dev-{number}" for number in range(DEVICES))
        fleet.control.start(federation.fleet, RUN)
        fleet.wait_for_run(timeout_s=90)

    rounds = check_run(federation, plan, RUN)
    assert rounds[: len(recorded)] == recorded
    aborted = rounds[len(recorded)]
    assert (aborted.round, aborted.attempt) == (left.round, left.attempt)
    assert aborted.reason == f"the server was stopped in phase {left.phase}"
    assert {part.outcome for part in aborted.participations} == {"charged"}


def kill_server(fleet: LiveFleet) -> RunningAttempt:
    """Kill the run's server in a round whose devices it has asked for their updates; return what is on record."""
    for round_ in range(1, ROUNDS):
        fleet.wait_for_phase(round_, "mask", timeout_s=90)
        pid = int((fleet.federation.fleet.runs / RUN / LOCK).read_text())
        # Stopped first: a round that has just ended is no case for this test.
        os.kill(pid, signal.SIGSTOP)
        left = fleet.store.runs.running_attempt(RUN)
        if left is not None and left.charged:
            os.kill(pid, signal.SIGKILL)
            return left
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("No round was caught in time.")
