"""Law: a device that is revoked or quarantined while a round runs is asked nothing more in it, costs the round no more
than its own share, and is invited to none after it; the run goes on with the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation.test_late_answers import DEVICES, ODD, Unruly, others_summed, part
from simulation.tiny import SimulatedClock, TinyFederation, check_run
from umbel_proto.ids import DeviceId
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_server.learning.link import Answer
from umbel_server.learning.run import run_to_end

NAME = DeviceId(f"dev-{ODD}")
AFTER = {SHARE: (MASK, CONFIRM, UNMASK), MASK: (CONFIRM, UNMASK)}
"""What a device that is shut out in a phase is not asked any more."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
    return TinyFederation(tmp_path_factory.mktemp("tiny"), DEVICES)


@pytest.mark.parametrize(("end", "kind"), [("revoke", SHARE), ("quarantine", SHARE), ("quarantine", MASK)])
def test_a_device_that_is_shut_out_is_asked_nothing_more(
    built: TinyFederation, tmp_path: Path, kind: str, end: str
) -> None:
    federation = built.copy(tmp_path / "own")
    assert isinstance(federation, TinyFederation)
    asked: list[tuple[str, str]] = []

    def meddle(now: str, round_: str, answers: list[Answer]) -> list[Answer]:
        asked.extend((now, round_) for answer in answers if answer.node == federation.node(ODD))
        if (now, round_) == (kind, "1"):
            with federation.fleet.open_store() as store:
                if end == "revoke":
                    store.devices.revoke(NAME)
                else:
                    store.devices.quarantine(NAME, reason="odd answers")
        return answers

    plan, clock = federation.plan(rounds=2), SimulatedClock()
    run = federation.create(plan, "r1")
    link = Unruly(federation.linked(clock), meddle=meddle)
    run_to_end(federation.fleet, run, link, clock=clock, pause=clock.pause)
    first, second = check_run(federation, plan, run)
    assert others_summed(first)
    # Once its masked update is in the sum, nobody can take it out again.
    assert part(first).outcome == ("dropped" if kind == SHARE else "summed")
    assert asked[-1] == (kind, "1")
    assert not {(later, "1") for later in AFTER[kind]} & set(asked)
    assert NAME not in {each.device for each in second.participations}
    assert len(second.participations) == DEVICES - 1
