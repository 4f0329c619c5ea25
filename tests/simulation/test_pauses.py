"""Laws: a paused run begins no round and charges nobody, wherever it was paused and whoever starts its server again;
resumed it goes on with the round after, as if there had been no pause."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from simulation.deaths import PowerCut
from simulation.federation import MemoryLink
from simulation.tiny import SimulatedClock, TinyFederation, check_ledgers, check_run
from umbel_proto.ids import RunId
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.pairwise import CONFIRM, MASK
from umbel_server.access.actor import local_actor
from umbel_server.learning.fleet_ledger import FleetLedger
from umbel_server.learning.link import NodeId, Payload
from umbel_server.learning.run import TRAINED, run_to_end
from umbel_server.store.runs import RoundRecord

DEVICES, ROUNDS = 3, 3


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
    """Three devices; tests give each run a name of its own."""
    return TinyFederation(tmp_path_factory.mktemp("paused"), DEVICES)


@dataclass
class Meanwhile(MemoryLink):
    """Somebody does something when a kind of message of a round is about to be sent."""

    round: int = 1
    kind: str = MASK
    does: Callable[[], None] = lambda: None

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        if (kind, group) == (self.kind, str(self.round)):
            self.does()
        return super().send(kind, group, payloads, ttl_s=ttl_s)


@dataclass
class Absent(MemoryLink):
    """Nobody is online, and somebody does something when that is seen the third time."""

    looked: int = 0
    does: Callable[[], None] = lambda: None

    def nodes(self) -> Sequence[NodeId]:
        self.looked += 1
        if self.looked == 3:
            self.does()
        return ()


@dataclass
class Coming(MemoryLink):
    """Somebody does something as devices are found, before they are invited."""

    does: Callable[[], None] = lambda: None

    def nodes(self) -> Sequence[NodeId]:
        self.does()
        return super().nodes()


def pause(federation: TinyFederation, run: RunId, reason: str = "lunch") -> None:
    with federation.fleet.open_store() as store:
        store.pauses.begin(run, actor=local_actor(), reason=reason)


def resume(federation: TinyFederation, run: RunId) -> None:
    with federation.fleet.open_store() as store:
        store.pauses.end(run, actor=local_actor(), reason="fed")


def reached(federation: TinyFederation, run: RunId) -> list[tuple[int, int, str]]:
    return [(each.round, each.attempt, each.state) for each in federation.record(run)[1]]


def begins_nothing(federation: TinyFederation, run: RunId) -> tuple[RoundRecord, ...]:
    """Start a paused run's server as often as somebody may; return the rounds on record."""
    before = federation.record(run)
    charged = [federation.charged(number, run) for number in range(DEVICES)]
    for _ in range(2):
        link = federation.link()
        run_to_end(federation.fleet, run, link)
        assert link.sent == []
    assert federation.record(run) == before
    assert [federation.charged(number, run) for number in range(DEVICES)] == charged
    assert before[0].state == "paused"
    return before[1]


@pytest.mark.parametrize("kind", [TRAIN, MASK, CONFIRM])
def test_a_run_ends_the_round_that_it_is_paused_in_and_goes_on_with_the_next_when_resumed(
    federation: TinyFederation, kind: str
) -> None:
    plan = federation.plan(rounds=ROUNDS)
    run = federation.create(plan, f"in-{kind.removeprefix('query.')}")
    link = Meanwhile(federation.participants(), kind=kind, does=lambda: pause(federation, run))
    run_to_end(federation.fleet, run, link)
    begins_nothing(federation, run)
    assert reached(federation, run) == [(1, 1, "opened")]
    assert federation.charged(0, run) == [(1, 1)]
    # It holds its place: what it may still ask of devices is set aside for it.
    with federation.fleet.open_store() as store:
        ledger = FleetLedger.of(store, federation.fleet.runs)
    assert ledger.reserved[run] == plan.most_participations
    resume(federation, run)
    run_to_end(federation.fleet, run, MemoryLink(federation.participants(), saved=link.saved))
    assert [each.attempt for each in check_run(federation, plan, run)] == [1] * ROUNDS


def test_a_run_that_waits_for_devices_is_paused_at_once_and_does_not_fail_for_want_of_them(
    federation: TinyFederation,
) -> None:
    plan = federation.plan(rounds=ROUNDS)
    run, clock = federation.create(plan, "waits"), SimulatedClock()
    link = Absent(federation.participants(), does=lambda: pause(federation, run))
    begun = clock()
    run_to_end(federation.fleet, run, link, clock=clock, pause=clock.pause)
    assert clock() - begun < plan.timing.join_timeout_s
    assert begins_nothing(federation, run) == ()
    resume(federation, run)
    run_to_end(federation.fleet, run, federation.link())
    check_run(federation, plan, run)


def test_a_run_that_is_paused_between_finding_devices_and_inviting_them_invites_none(
    federation: TinyFederation,
) -> None:
    run = federation.create(federation.plan(rounds=ROUNDS), "found")
    link = Coming(federation.participants(), does=lambda: pause(federation, run))
    run_to_end(federation.fleet, run, link)
    assert link.sent == []
    assert begins_nothing(federation, run) == ()


def test_a_run_that_is_stopped_while_it_waits_for_devices_begins_no_round_either(
    federation: TinyFederation,
) -> None:
    def stop() -> None:
        with federation.fleet.open_store() as store:
            store.runs.finish(run, "stopped", "enough")

    run, clock = federation.create(federation.plan(rounds=ROUNDS), "stops"), SimulatedClock()
    run_to_end(
        federation.fleet, run, Absent(federation.participants(), does=stop), clock=clock, pause=clock.pause
    )
    record, rounds = federation.record(run)
    assert (record.state, record.reason, rounds) == ("stopped", "enough", ())


def test_a_round_that_is_given_up_is_tried_again_only_after_the_pause(federation: TinyFederation) -> None:
    plan = federation.plan(rounds=ROUNDS)
    run, clock = federation.create(plan, "given-up"), SimulatedClock()
    vanish = {(federation.node(number), TRAIN) for number in range(DEVICES)}
    link = Meanwhile(
        federation.participants(), vanish=vanish, kind=TRAIN, does=lambda: pause(federation, run)
    )
    run_to_end(federation.fleet, run, link, clock=clock, pause=clock.pause)
    begins_nothing(federation, run)
    assert reached(federation, run) == [(1, 1, "aborted")]
    resume(federation, run)
    run_to_end(federation.fleet, run, federation.link())
    assert [(each.round, each.attempt) for each in check_run(federation, plan, run)][:2] == [(1, 1), (1, 2)]


def test_a_run_whose_server_is_killed_in_the_round_that_it_was_paused_in_stays_paused(
    federation: TinyFederation,
) -> None:
    plan = federation.plan(rounds=ROUNDS)
    run = federation.create(plan, "killed")

    def pause_and_die() -> None:
        pause(federation, run)
        raise PowerCut

    link = Meanwhile(federation.participants(), round=2, does=pause_and_die)
    with pytest.raises(PowerCut):
        run_to_end(federation.fleet, run, link)
    assert federation.record(run)[0].state == "paused"
    # Whoever is started again gives up the attempt, and begins no other.
    run_to_end(federation.fleet, run, federation.link())
    rounds = begins_nothing(federation, run)
    assert [(each.round, each.state) for each in rounds] == [(1, "opened"), (2, "aborted")]
    assert rounds[1].reason == "the server was stopped in phase mask"
    check_ledgers(federation, rounds, run)
    resume(federation, run)
    run_to_end(federation.fleet, run, federation.link())
    assert [(each.round, each.attempt) for each in check_run(federation, plan, run)] == [
        (1, 1), (2, 1), (2, 2), (3, 1),
    ]  # fmt: skip


def test_a_run_that_is_paused_in_its_last_round_is_finished_with_it(federation: TinyFederation) -> None:
    plan = federation.plan(rounds=ROUNDS)
    run = federation.create(plan, "last")
    link = Meanwhile(federation.participants(), round=ROUNDS, does=lambda: pause(federation, run))
    run_to_end(federation.fleet, run, link)
    check_run(federation, plan, run)


def test_a_paused_run_that_is_stopped_keeps_what_it_has_learned_and_does_not_go_on(
    federation: TinyFederation,
) -> None:
    run = federation.create(federation.plan(rounds=ROUNDS), "stopped")
    link = Meanwhile(federation.participants(), does=lambda: pause(federation, run))
    run_to_end(federation.fleet, run, link)
    with federation.fleet.open_store() as store:
        store.runs.finish(run, "stopped", "enough")
    after = federation.link()
    run_to_end(federation.fleet, run, after)
    assert after.sent == []
    assert federation.record(run)[0].state == "stopped"
    assert reached(federation, run) == [(1, 1, "opened")]
    assert (federation.fleet.runs / run / TRAINED).exists()


@pytest.fixture
def leaving() -> Iterator[list[Callable[[], None]]]:
    """What is done when a server has seen that its run is paused, and before it has left it."""
    does: list[Callable[[], None]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "begins no round" in record.getMessage() and does:
                does.pop()()

    heard, listener = logging.getLogger("umbel_server.learning.run"), Listener()
    level = heard.level
    heard.setLevel(logging.INFO)
    heard.addHandler(listener)
    yield does
    heard.removeHandler(listener)
    heard.setLevel(level)


def test_a_run_that_is_resumed_as_its_server_leaves_it_goes_on_with_that_server(
    federation: TinyFederation, leaving: list[Callable[[], None]]
) -> None:
    """Law: whoever resumes finds it driven, starts no other, and it does not stand still."""
    plan = replace(federation.plan(rounds=ROUNDS), attempts=1)
    run = federation.create(plan, "leaves")
    leaving.append(lambda: resume(federation, run))
    link = Meanwhile(federation.participants(), does=lambda: pause(federation, run))
    run_to_end(federation.fleet, run, link)
    assert leaving == []
    check_run(federation, plan, run)
