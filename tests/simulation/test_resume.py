"""Laws: wherever a run's server ends, the run goes on after its last recorded round; no attempt's number comes
twice; the service counts at least the charges that devices do; and two servers never drive one run.

A server ends here in two ways: by an exception that nothing handles, at every message and every write; and by
SIGKILL, in a process of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from simulation.deaths import Deaths, PowerCut, after_commit, before_commit, before_sync
from simulation.driver import CHECKPOINT
from simulation.federation import MemoryLink
from simulation.tiny import TinyFederation, check_ledgers, check_run
from umbel_proto.errors import RefusedError, UnavailableError, UsageError
from umbel_proto.ids import DeviceId, RunId
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_server.learning.link import Answer, NodeId, Payload
from umbel_server.learning.lock import require_free
from umbel_server.learning.run import run_to_end

KINDS = (TRAIN, SHARE, MASK, CONFIRM, UNMASK)
MOMENTS = ("not asked", "half asked", "all asked", "half answered")
DEVICES = 3
ROUNDS = 2
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
    """Three devices; tests give each run a name of its own."""
    return TinyFederation(tmp_path_factory.mktemp("tiny"), DEVICES)


@dataclass
class Dying(MemoryLink):
    """The server ends at a message kind of the last round.

    Args:
        kind: The kind.
        moment: One of ``MOMENTS``.
        again: Whether it ends there every time.
    """

    kind: str = ""
    moment: str = ""
    again: bool = False
    dying: bool = False

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        if (kind, group) != (self.kind, str(ROUNDS)):
            return super().send(kind, group, payloads, ttl_s=ttl_s)
        if self.moment == "not asked":
            raise PowerCut
        half = dict(itertools.islice(payloads.items(), len(payloads) // 2))
        sent = super().send(kind, group, half if self.moment == "half asked" else payloads, ttl_s=ttl_s)
        if self.moment != "half answered":
            raise PowerCut
        self.answers = self.answers[: len(half)]
        self.dying = True
        return sent

    def receive(self) -> Sequence[Answer]:
        if self.dying and not self.answers:
            raise PowerCut
        return super().receive()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_ends_in_any_phase_leaves_an_aborted_attempt_and_the_run_goes_on(
    federation: TinyFederation, kind: str, moment: str
) -> None:
    plan = federation.plan(rounds=ROUNDS)
    phase = kind.removeprefix("query.")
    run = federation.create(plan, f"{phase}-{MOMENTS.index(moment)}")
    link = Dying(federation.participants(), kind=kind, moment=moment)
    with pytest.raises(PowerCut):
        run_to_end(federation.fleet, run, link)
    record, left = federation.record(run)
    assert record.state == "running"
    charged = KINDS.index(kind) >= KINDS.index(MASK)
    assert sum(line.charged for line in federation.ledger(run).values()) == (DEVICES if charged else 0)

    # The devices still have what they keep in memory.
    run_to_end(federation.fleet, run, MemoryLink(federation.participants(), saved=link.saved))
    rounds = check_run(federation, plan, run)
    assert rounds[:1] == left
    aborted, opened = rounds[1:]
    assert (aborted.attempt, aborted.reason) == (1, f"the server was stopped in phase {phase}")
    assert [part.outcome for part in aborted.participations] == (["charged"] * DEVICES if charged else [])
    assert opened.attempt == 2
    assert opened.figures["participations"] == (3 if charged else 2)


@pytest.mark.parametrize(
    ("dying", "least"),
    [
        # Each round writes seven times: its beginning, five phases and its end; the run's beginning and end.
        pytest.param(before_commit, 7 * ROUNDS + 2, id="before-commit"),
        pytest.param(after_commit, 7 * ROUNDS + 1, id="after-commit"),
        pytest.param(before_sync, 2 * ROUNDS + 2, id="before-sync"),
    ],
)
def test_a_server_that_ends_at_any_write_loses_no_recorded_round(
    federation: TinyFederation, dying: Deaths, least: int, request: pytest.FixtureRequest
) -> None:
    plan = federation.plan(rounds=ROUNDS)
    for number in itertools.count(1):
        run = federation.create(plan, f"{request.node.callspec.id}-{number}")
        try:
            with dying(number):
                run_to_end(federation.fleet, run, federation.link())
        except PowerCut:
            left = federation.record(run)[1]
            run_to_end(federation.fleet, run, federation.link())
            assert check_run(federation, plan, run)[: len(left)] == left
        else:
            assert number - 1 >= least
            return


def test_a_round_that_ends_its_server_each_time_ends_the_run_after_the_planned_attempts(
    federation: TinyFederation,
) -> None:
    plan = replace(federation.plan(rounds=ROUNDS), attempts=3)
    run = federation.create(plan, "loop")
    for _ in range(plan.attempts):
        with pytest.raises(PowerCut):
            run_to_end(federation.fleet, run, Dying(federation.participants(), kind=MASK, moment="all asked"))
    link = federation.link()
    with pytest.raises(RefusedError, match="aborted 3 times, the last time because the server was stopped"):
        run_to_end(federation.fleet, run, link)
    assert link.sent == []
    record, rounds = federation.record(run)
    assert record.state == "failed"
    assert [(r.round, r.attempt, r.state) for r in rounds] == [
        (1, 1, "opened"), (2, 1, "aborted"), (2, 2, "aborted"), (2, 3, "aborted"),
    ]  # fmt: skip
    check_ledgers(federation, rounds, run)
    assert federation.charged(0, run) == [(1, 1), (2, 1), (2, 2), (2, 3)]


def test_a_run_that_fails_in_a_round_leaves_no_running_attempt_and_forgets_no_charge(
    federation: TinyFederation,
) -> None:
    class Broken(MemoryLink):
        def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
            if kind == CONFIRM:
                raise UnavailableError("The SuperLink does not answer.")
            return super().send(kind, group, payloads, ttl_s=ttl_s)

    run = federation.create(federation.plan(rounds=ROUNDS), "broken")
    with pytest.raises(UnavailableError):
        run_to_end(federation.fleet, run, Broken(federation.participants()))
    record, (only,) = federation.record(run)
    assert (record.state, record.reason) == ("failed", "The SuperLink does not answer.")
    assert (only.state, only.reason) == ("aborted", "the run failed in phase confirm")
    check_ledgers(federation, (only,), run)
    assert federation.ledger(run)[DeviceId("dev-0")].charged == 1


@contextlib.contextmanager
def server(
    federation: TinyFederation, run: RunId, point: str, moment: str
) -> Iterator[subprocess.Popen[str]]:
    """A run's server in a process of its own, which has come to a point of the last round."""
    words = (sys.executable, "-m", "simulation.driver", federation.root, run, str(ROUNDS), point, moment)
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("point", "moment"), [*((kind, "answered") for kind in KINDS), (MASK, "asked"), (CHECKPOINT, "written")]
)
def test_a_killed_server_is_followed_by_another_that_finishes_the_run(
    federation: TinyFederation, point: str, moment: str
) -> None:
    plan = federation.plan(rounds=ROUNDS)
    run = federation.create(plan, f"killed-{point.removeprefix('query.')}-{moment}")
    with server(federation, run, point, moment):
        pass  # It is killed at the end of the block.
    assert federation.record(run)[0].state == "running"
    run_to_end(federation.fleet, run, federation.link())
    rounds = check_run(federation, plan, run)
    phase = "unmask" if point == CHECKPOINT else point.removeprefix("query.")
    assert [(r.round, r.attempt, r.reason) for r in rounds] == [
        (1, 1, ""), (2, 1, f"the server was stopped in phase {phase}"), (2, 2, ""),
    ]  # fmt: skip
    # Of a file that it was writing nothing is left.
    assert [path.name for path in (federation.fleet.runs / run).glob(".*")] == []


def test_a_second_server_of_the_same_run_is_refused_and_changes_nothing(federation: TinyFederation) -> None:
    plan = federation.plan(rounds=ROUNDS)
    run = federation.create(plan, "two")
    with server(federation, run, MASK, "asked") as first:
        link = federation.link()
        with pytest.raises(UsageError, match=f"Run two is driven by process {first.pid} already"):
            run_to_end(federation.fleet, run, link)
        assert link.sent == []
        # The command asks before it starts another process, and names the same one.
        with pytest.raises(UsageError, match=f"Run two is driven by process {first.pid} already"):
            require_free(federation.fleet.runs / run)
        with federation.fleet.open_store() as store:
            running = store.runs.running_attempt(run)
        assert running is not None
        assert (running.round, running.attempt, running.phase) == (ROUNDS, 1, "mask")
        assert federation.record(run)[0].state == "running"
    require_free(federation.fleet.runs / run)
    run_to_end(federation.fleet, run, federation.link())
    check_run(federation, plan, run)
