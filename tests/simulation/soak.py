"""Many rounds in bad weather: devices and the server fail at random all the time, and nothing may be lost.

In two of five attempts some devices vanish, restart, answer late, twice or with damaged bytes; and every
six rounds or so the server ends at a random message or write and is started again. Time is simulated, so that no
deadline is waited for. After each end of the server, and at the last round, all that holds for any run is checked:
see `check_run`. The weather follows from the seed; keys and masks do not.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from simulation.deaths import PowerCut, after_commit, before_commit, before_sync
from simulation.federation import MemoryLink
from simulation.tiny import SimulatedClock, TinyFederation, check_attempts, check_run
from umbel_proto.ids import RunId
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_server.learning.checkpoint import path_of
from umbel_server.learning.link import Answer, NodeId, Payload
from umbel_server.learning.run import run_to_end
from umbel_server.store.runs import RoundRecord

KINDS = (TRAIN, SHARE, MASK, CONFIRM, UNMASK)
DEVICES = 7
FAULTS = ("vanish", "restart", "late", "twice", "copied late", "damaged", "stray")
VICTIMS = (60, 34, 5, 1)
"""Weights of 0, 1, .. devices that fail in an attempt; a round of seven bears the loss of two."""
STRANGER = NodeId(7)
LIFE = 20
"""Rounds that a server lives, at most."""
_PAGE_KB = 4


@dataclass(frozen=True, slots=True)
class Usage:
    """What this process uses.

    Args:
        resident_kb: Memory.
        blocks: Of Python's allocator.
        descriptors: Open files.
    """

    resident_kb: int
    blocks: int
    descriptors: int

    @classmethod
    def now(cls) -> Usage:
        """Measure it, without garbage."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * _PAGE_KB, sys.getallocatedblocks(), len(list(Path("/proc/self/fd").iterdir())))


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a soak went through.

    Args:
        rounds: Opened, all of them checked.
        aborted: Attempts that were not.
        deaths: Ends of the server.
        faults: How often each befell a device.
        early: Usage after a quarter of the rounds.
        late: Usage at the last.
        store_bytes: The service's database with its log.
        ledger_bytes: The largest ledger of a device with its log.
        seconds: It took.
    """

    rounds: int
    aborted: int
    deaths: int
    faults: Mapping[str, int]
    early: Usage
    late: Usage
    store_bytes: int
    ledger_bytes: int
    seconds: float


@dataclass
class Storm(MemoryLink):
    """Carries messages as badly as it can.

    Args:
        federation: Whose devices they are.
        clock: The devices'.
        chance: The weather.
        measure_at: Rounds in which to measure what the process uses.
    """

    federation: TinyFederation = field(kw_only=True)
    clock: SimulatedClock = field(kw_only=True)
    chance: Random = field(kw_only=True)
    measure_at: frozenset[int] = field(kw_only=True)
    faults: Counter[str] = field(default_factory=Counter)
    usage: dict[int, Usage] = field(default_factory=dict)
    planned: dict[tuple[str, NodeId], str] = field(default_factory=dict)
    held: list[Answer] = field(default_factory=list)
    sends_left: int = 0

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        self.sent.clear()
        if kind == TRAIN:
            self._forecast(int(group))
        self.sends_left -= 1
        if self.sends_left == 0 and self.chance.random() < 0.5:
            raise PowerCut
        struck = {
            node: fault for (at, node), fault in self.planned.items() if at == kind and node in payloads
        }
        for node, fault in struck.items():
            self.faults[fault] += 1
            if fault == "vanish":
                self.gone.add(node)
            if fault == "restart":
                self.saved.pop(node, None)
                number = node - self.federation.node(0)
                self.participants[node] = self.federation.started(number, self.clock)  # type: ignore[index]
        sent = super().send(kind, group, payloads, ttl_s=ttl_s)
        arriving, self.held = self.held, []
        for answer in self.answers:
            arriving += self._delivered(answer, struck.get(answer.node, ""))
        self.chance.shuffle(arriving)
        self.answers = arriving
        if self.sends_left == 0:
            raise PowerCut
        return sent

    def _forecast(self, round_: int) -> None:
        if round_ in self.measure_at and round_ not in self.usage:
            self.usage[round_] = Usage.now()
        self.gone = {node for node in self.gone if self.chance.random() < 0.3}
        count = self.chance.choices(range(len(VICTIMS)), VICTIMS)[0]
        victims = self.chance.sample(sorted(self.participants.keys() - self.gone), count)
        self.planned = {(self.chance.choice(KINDS), node): self.chance.choice(FAULTS) for node in victims}

    def _delivered(self, answer: Answer, fault: str) -> list[Answer]:
        """What of an answer arrives in its phase; the rest is held for the next."""
        match fault:
            case "late":
                self.held.append(answer)
                return []
            case "twice":
                return [answer, answer]
            case "copied late":
                self.held.append(answer)
                return [answer]
            case "damaged" if answer.payload is not None:
                body = bytearray(answer.payload.body)
                body[self.chance.randrange(len(body))] ^= 1 << self.chance.randrange(8)
                return [replace(answer, payload=Payload(bytes(body), answer.payload.vector))]
            case "stray":
                return [replace(answer, node=STRANGER), answer]
            case _:
                return [answer]


@dataclass
class Witness:
    """Remembers what a run's record said, and holds the record to it ever after."""

    federation: TinyFederation
    run: RunId
    count: int = 0
    digest: bytes = b""
    checkpoints: dict[int, bytes] = field(default_factory=dict)

    def look(self) -> None:
        """Assert that what was on record still is, and that checkpoints are the files they were."""
        _, rounds = self.federation.record(self.run)
        # Hashes, as a witness who keeps all records would look like a leak.
        assert not self.count or _digest(rounds[: self.count]) == self.digest
        check_attempts(rounds)
        self.count, self.digest = len(rounds), _digest(rounds)
        for record in rounds:
            if record.state == "opened":
                path = path_of(self.federation.fleet.runs / self.run, record.round)
                content = hashlib.sha256(path.read_bytes()).digest()
                assert self.checkpoints.setdefault(record.round, content) == content


def soak(root: Path, *, rounds: int, seed: int) -> Soaked:
    """Do that many rounds in bad weather and check them.

    Args:
        root: A directory of its own.
        rounds: How many, >= 8.
        seed: Of the weather.

    Raises:
        AssertionError: Something was lost, counted twice or wrong.
    """
    begin = time.perf_counter()
    federation, clock, chance = TinyFederation(root, DEVICES), SimulatedClock(), Random(seed)
    plan = replace(federation.plan(rounds=rounds), attempts=1000)
    run = federation.create(plan)
    link = Storm(
        federation.linked(clock),
        federation=federation,
        clock=clock,
        chance=chance,
        measure_at=frozenset({rounds // 4, rounds}),
    )
    witness = Witness(federation, run)
    deaths = 0
    while federation.record(run)[0].state == "running":
        with contextlib.suppress(PowerCut), _doomed(link):
            run_to_end(federation.fleet, run, link, clock=clock, pause=clock.pause)
        deaths += 1
        witness.look()
    records = check_run(federation, plan, run)
    return Soaked(
        rounds=rounds,
        aborted=len(records) - rounds,
        deaths=deaths - 1,
        faults=dict(sorted(link.faults.items())),
        early=link.usage[rounds // 4],
        late=link.usage[rounds],
        store_bytes=_size(federation.fleet.path / "store.db"),
        ledger_bytes=max(_size(home.ledger) for home in federation.homes),
        seconds=time.perf_counter() - begin,
    )


@contextlib.contextmanager
def _doomed(link: Storm) -> Iterator[None]:
    """Let a server live for some rounds at most, and end it at a random message, write or file."""
    chance = link.chance
    death, each = chance.choice(((None, 5), (before_commit, 7), (after_commit, 7), (before_sync, 2)))
    number = chance.randint(1, each * LIFE)
    link.sends_left = number if death is None else 0
    with contextlib.nullcontext() if death is None else death(number):
        yield


def _digest(rounds: tuple[RoundRecord, ...]) -> bytes:
    return hashlib.sha256(repr(rounds).encode()).digest()


def _size(database: Path) -> int:
    log = database.with_name(database.name + "-wal")
    return database.stat().st_size + (log.stat().st_size if log.exists() else 0)
