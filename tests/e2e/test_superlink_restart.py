"""Power cuts in the middle of a run: a device's, and then the SuperLink's. The run goes on, and its record is whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from live_fleet import live_fleet
from simulation.federation import Federation
from umbel_proto.ids import DeviceId
from umbel_server.learning.plan import Timing

DEVICES = 4
ROUNDS = 4
VICTIM = 2
EPOCHS = 100  # A training of a second or so: the SuperLink is gone before it ends.
TIMING = Timing(train_timeout_s=60, phase_timeout_s=30, grace_s=1)


@pytest.mark.e2e
def test_a_run_outlives_a_killed_device_and_a_killed_superlink(tmp_path: Path) -> None:
    federation = Federation(tmp_path, DEVICES)
    with live_fleet(federation) as fleet:
        devices = [fleet.start_device(number) for number in range(DEVICES)]
        plan = federation.plan(rounds=ROUNDS)
        training = replace(plan.training, epochs=EPOCHS)
        fleet.start_run(replace(plan, training=training, timing=TIMING))
        fleet.wait_for_phase(2, "mask", timeout_s=90)
        devices[VICTIM].kill()
        fleet.wait_for_words(0, "trains for round 3", timeout_s=60)
        recorded = federation.record()[1]
        fleet.superlink.kill()
        # The device has its question and an answer to it, and nobody to give it to.
        fleet.wait_for_words(0, "the answer waits for it", timeout_s=60)
        fleet.start_superlink()
        fleet.wait_for_run(timeout_s=90)

    run, rounds = federation.record()
    assert (run.state, run.reason) == ("finished", "")
    assert rounds[: len(recorded)] == recorded
    # No answer was lost with the SuperLink: the round in which it was killed has all that live, at its first try.
    assert {p.outcome for p in rounds[2].participations if p.device != f"dev-{VICTIM}"} == {"summed"}
    assert [(r.round, r.attempt) for r in rounds if r.state == "opened"] == [(1, 1), (2, 1), (3, 1), (4, 1)]
    second = {p.device: p.outcome for p in rounds[1].participations}
    victim = DeviceId(f"dev-{VICTIM}")
    assert second.pop(victim) == "charged"
    assert set(second.values()) == {"summed"}
    # Each device's own ledger has what the service's record says of it: once a round, and nothing twice.
    for number in range(DEVICES):
        taken = [
            (record.round, record.attempt)
            for record in rounds
            for part in record.participations
            if part.device == f"dev-{number}" and part.outcome != "dropped"
        ]
        charged = [(charge.round, charge.attempt) for charge in fleet.charges(number)]
        if number == VICTIM:
            # Killed when it was asked: the service counts the charge, whether it came to it or not.
            assert set(charged) <= set(taken)
        else:
            assert charged == taken
