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
LIVING = [number for number in range(DEVICES) if number != VICTIM]
# A training of seconds, in small steps: the SuperLink is gone before it ends, and the model is no worse for it.
EPOCHS, LEARNING_RATE = 60, 0.002
TIMING = Timing(train_timeout_s=60, phase_timeout_s=30, grace_s=1)


@pytest.mark.e2e
def test_a_run_outlives_a_killed_device_and_a_killed_superlink(tmp_path: Path) -> None:
    federation = Federation(tmp_path, DEVICES)
    with live_fleet(federation) as fleet:
        devices = [fleet.start_device(number) for number in range(DEVICES)]
        plan = federation.plan(rounds=ROUNDS)
        training = replace(plan.training, epochs=EPOCHS, learning_rate=LEARNING_RATE)
        fleet.start_run(replace(plan, training=training, timing=TIMING))
        fleet.wait_for_phase(2, "mask", timeout_s=90)
        devices[VICTIM].kill()
        # All have fetched their question: Flower hands a message out once, also to who loses it with the SuperLink.
        for number in LIVING:
            fleet.wait_for_words(number, "trains for round 3", timeout_s=60)
        recorded = federation.record()[1]
        fleet.superlink.kill()
        # A device has its question and an answer to it, and nobody to give it to.
        fleet.wait_for_words_of_any(LIVING, "the answer waits for it", timeout_s=60)
        fleet.start_superlink()
        fleet.wait_for_run(timeout_s=90)

    run, rounds = federation.record()
    assert (run.state, run.reason) == ("finished", "")
    assert rounds[: len(recorded)] == recorded
    # No answer was lost with the SuperLink: the round in which it was killed has all that live, at its first try.
    third = {p.device: (p.outcome, p.reason) for p in rounds[2].participations}
    third.pop(DeviceId(f"dev-{VICTIM}"), None)
    assert set(third.values()) == {("summed", "")}, (rounds[2].reason, third)
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
