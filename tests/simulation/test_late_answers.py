"""Law: answers that are late, repeated, out of order or not asked for, and devices that forget a round, cost at
most the round of the device they come from; the sum stays that of its survivors.

The link gives up late answers before a round sees them; here it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from simulation.federation import MemoryLink
from simulation.tiny import SimulatedClock, TinyFederation, check_run
from umbel._rounds.ledger import Ledger
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_server.learning.link import Answer, NodeId, Payload
from umbel_server.learning.run import run_to_end
from umbel_server.store.runs import Participation, RoundRecord

KINDS = (TRAIN, SHARE, MASK, CONFIRM, UNMASK)
DEVICES = 8
ODD = 3
"""The number of the device whose answers go astray."""
LOST = {TRAIN: "dropped", SHARE: "dropped", MASK: "charged", CONFIRM: "summed", UNMASK: "summed"}
"""What becomes of a device that is lost in a phase."""

Meddle = Callable[[str, str, list[Answer]], list[Answer]]
"""(kind, round, answers) -> what arrives in that phase."""


@dataclass
class Unruly(MemoryLink):
    """Delivers other answers than were given."""

    meddle: Meddle = field(default=lambda _kind, _round, answers: answers)
    each: bool = False

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        sent = super().send(kind, group, payloads, ttl_s=ttl_s)
        self.answers = self.meddle(kind, group, self.answers)
        return sent

    def receive(self) -> Sequence[Answer]:
        if not self.each:
            return super().receive()
        first, self.answers = self.answers[:1], self.answers[1:]
        return first


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
    """Eight devices; tests give each run a name of its own."""
    return TinyFederation(tmp_path_factory.mktemp("tiny"), DEVICES)


def rounds_of(
    federation: TinyFederation, name: str, meddle: Meddle, *, each: bool = False
) -> tuple[RoundRecord, ...]:
    """Do two rounds over an unruly link and check all that holds for any run."""
    plan, clock = federation.plan(rounds=2), SimulatedClock()
    run = federation.create(plan, name)
    link = Unruly(federation.linked(clock), meddle=meddle, each=each)
    run_to_end(federation.fleet, run, link, clock=clock, pause=clock.pause)
    return check_run(federation, plan, run)


def part(record: RoundRecord, number: int = ODD) -> Participation:
    (found,) = [part for part in record.participations if part.device == f"dev-{number}"]
    return found


def others_summed(record: RoundRecord) -> bool:
    rest = [part for part in record.participations if part.device != f"dev-{ODD}"]
    return [part.outcome for part in rest] == ["summed"] * (DEVICES - 1)


def is_odd(answer: Answer) -> bool:
    return answer.node == TinyFederation.node(ODD)


def following(kind: str, round_: str) -> tuple[str, str]:
    place = KINDS.index(kind) + 1
    return (KINDS[place], round_) if place < len(KINDS) else (KINDS[0], str(int(round_) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_comes_a_phase_late_is_not_waited_for_and_not_used(
    federation: TinyFederation, kind: str
) -> None:
    held: list[Answer] = []

    def meddle(now: str, round_: str, answers: list[Answer]) -> list[Answer]:
        if (now, round_) == (kind, "1"):
            held.extend(filter(is_odd, answers))
            return [answer for answer in answers if not is_odd(answer)]
        if (now, round_) == following(kind, "1"):
            return [*held, *answers]
        return answers

    first, second = rounds_of(federation, f"late-{KINDS.index(kind)}", meddle)
    assert len(held) == 1
    assert part(first).outcome == LOST[kind]
    assert others_summed(first)
    assert others_summed(second)
    # The last phase's arrives when the device owes an answer to the next invitation: it is taken for that.
    assert part(second).outcome == ("dropped" if kind == UNMASK else "summed")


def test_answers_of_an_attempt_that_was_given_up_do_not_count_in_the_next(federation: TinyFederation) -> None:
    """Three of eight are silent for the mask, which is one too many; they answer in the next attempt instead."""
    held: dict[str, list[Answer]] = {}
    silent = {TinyFederation.node(number) for number in (1, ODD, 5)}

    def meddle(kind: str, round_: str, answers: list[Answer]) -> list[Answer]:
        if round_ == "1" and kind not in held:
            held[kind] = answers
            return [a for a in answers if a.node not in silent] if kind == MASK else answers
        # Attempt 2: the answers of the first come again, behind the right ones.
        return [*answers, *held.get(kind, [])]

    aborted, opened, second = rounds_of(federation, "given-up", meddle)
    assert (aborted.round, aborted.attempt, aborted.state) == (1, 1, "aborted")
    assert {p.outcome for p in aborted.participations} == {"charged"}
    assert (opened.round, opened.attempt) == (1, 2)
    assert {p.outcome for p in (*opened.participations, *second.participations)} == {"summed"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_another_attempt_puts_its_device_out_and_no_other(
    federation: TinyFederation, kind: str
) -> None:
    """Replayed from round 1 into round 2, in place of the right one."""
    held: list[Answer] = []

    def meddle(now: str, round_: str, answers: list[Answer]) -> list[Answer]:
        if now != kind:
            return answers
        if round_ == "1":
            held.extend(filter(is_odd, answers))
            return answers
        return [*held, *(answer for answer in answers if not is_odd(answer))]

    first, second = rounds_of(federation, f"replayed-{KINDS.index(kind)}", meddle)
    assert part(first).outcome == "summed"
    assert part(second).outcome == LOST[kind]
    assert others_summed(second)


@pytest.mark.parametrize("other", [False, True], ids=["same-bytes", "other-bytes"])
def test_of_two_answers_of_a_device_the_first_counts(federation: TinyFederation, other: bool) -> None:
    def meddle(_kind: str, _round: str, answers: list[Answer]) -> list[Answer]:
        return [twin for answer in answers for twin in (answer, spoiled(answer) if other else answer)]

    for record in rounds_of(federation, f"twice-{int(other)}", meddle):
        assert {p.outcome for p in record.participations} == {"summed"}


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_second_copy_that_comes_a_phase_late_puts_out_its_device_and_no_other(
    federation: TinyFederation, kind: str
) -> None:
    held: list[Answer] = []

    def meddle(now: str, round_: str, answers: list[Answer]) -> list[Answer]:
        if (now, round_) == (kind, "1"):
            held.extend(filter(is_odd, answers))
        return [*held, *answers] if (now, round_) == following(kind, "1") else answers

    first, second = rounds_of(federation, f"copy-{KINDS.index(kind)}", meddle)
    assert part(first).outcome == LOST[following(kind, "1")[0]]
    assert others_summed(first)
    assert {p.outcome for p in second.participations} == {"summed"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_answer_costs_at_most_its_devices_round(federation: TinyFederation, kind: str) -> None:
    """In phase 2 the damage is in a sealed box: it does not open, and its receiver holds one share less."""

    def meddle(now: str, round_: str, answers: list[Answer]) -> list[Answer]:
        hit = (now, round_) == (kind, "1")
        return [spoiled(answer) if hit and is_odd(answer) else answer for answer in answers]

    first, second = rounds_of(federation, f"damaged-{KINDS.index(kind)}", meddle)
    assert part(first).outcome == ("summed" if kind == SHARE else LOST[kind])
    assert bool(part(first).reason) == (part(first).outcome != "summed")
    assert others_summed(first)
    assert {p.outcome for p in second.participations} == {"summed"}


@pytest.mark.parametrize("each", [False, True], ids=["at-once", "one-by-one"])
def test_answers_may_come_in_any_order(federation: TinyFederation, each: bool) -> None:
    rounds = rounds_of(
        federation, f"order-{int(each)}", lambda _kind, _round, answers: answers[::-1], each=each
    )
    for record in rounds:
        assert {p.outcome for p in record.participations} == {"summed"}


def test_answers_of_nodes_that_nobody_asked_are_not_heard(federation: TinyFederation) -> None:
    """A node that is no device, and a device that was not invited."""
    plan, clock = replace(federation.plan(rounds=2), devices=DEVICES - 1), SimulatedClock()
    stranger, everyone = 7, {TinyFederation.node(number) for number in range(DEVICES)}

    def meddle(_kind: str, _round: str, answers: list[Answer]) -> list[Answer]:
        # Who is left out of a round was drawn by lot; all others answer at once.
        (uninvited,) = everyone - {answer.node for answer in answers}
        strays = [replace(answers[0], node=node) for node in (stranger, uninvited)]
        return [*strays, *answers, Answer(stranger, None, "no")]

    run = federation.create(plan, "strangers")
    link = Unruly(federation.linked(clock), meddle=meddle)
    run_to_end(federation.fleet, run, link, clock=clock, pause=clock.pause)
    for record in check_run(federation, plan, run):
        assert len({part.device for part in record.participations}) == DEVICES - 1
        assert {(part.outcome, part.reason) for part in record.participations} == {("summed", "")}


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_device_started_anew_within_a_round_refuses_what_it_knows_nothing_of(
    federation: TinyFederation, kind: str
) -> None:
    clock, plan = SimulatedClock(), federation.plan(rounds=2)
    charges: list[int] = []

    class Restarting(MemoryLink):
        def send(self, now: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
            if (now, group) == (kind, "1"):
                self.saved.pop(TinyFederation.node(ODD))
                with Ledger(federation.homes[ODD].ledger) as ledger:
                    charges.append(len(ledger.charges()))
            return super().send(now, group, payloads, ttl_s=ttl_s)

    run = federation.create(plan, f"restarted-{KINDS.index(kind)}")
    run_to_end(federation.fleet, run, Restarting(federation.linked(clock)), clock=clock, pause=clock.pause)
    first, second = check_run(federation, plan, run)
    assert part(first).outcome == LOST[kind]
    assert others_summed(first)
    assert {p.outcome for p in second.participations} == {"summed"}
    # What it refuses costs it nothing: asked for its update, it charges nothing, though the service counts it.
    own = federation.charged(ODD, run)
    assert own == ([(2, 1)] if KINDS.index(kind) <= KINDS.index(MASK) else [(1, 1), (2, 1)])


def spoiled(answer: Answer) -> Answer:
    """Return an answer with a byte changed in the middle of its message."""
    assert answer.payload is not None
    body = bytearray(answer.payload.body)
    body[len(body) // 2] ^= 0x55
    return replace(answer, payload=Payload(bytes(body), answer.payload.vector))
