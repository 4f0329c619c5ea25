"""The service under load while its processes and its database are killed: nothing acknowledged is lost or doubled.

Devices send reports, each until it is acknowledged and some of them once more; newcomers enroll through the gateway;
versions are rolled out one after the other. Meanwhile the gateway, the opener, the coordinators (what keeps runs, and
what decides on rollouts) and PostgreSQL are killed at random. At the end everything that somebody was told is looked
for. The load is small on purpose, about a third of a core with all the starts: what is searched is bad moments.

Usage: python tests/bench/soak_service.py [--seconds 60] [--seed 1]     --seconds 3600 for the hour
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc
from harness import QUICK, Report

sys.path.append(str(Path(__file__).resolve().parents[1]))

from service import Running, fleet_in
from sqlalchemy import select

from postgresql_server import PostgresqlServer
from service_fleet import PlainDevice, batch, upload, window
from umbel_proto.errors import StorageError, UnavailableError
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.access.actor import Actor, Role
from umbel_server.access.chain import verify
from umbel_server.fleet.layout import FleetDir
from umbel_server.rollouts.begin import begin, propose
from umbel_server.rollouts.plan import RolloutPlan, Step
from umbel_server.rollouts.state import Draft, Start
from umbel_server.store.store import Store
from umbel_server.store.tables import batches
from umbel_server.superexec import flower_environment

SENDERS, EVERY_S, TWICE = 6, 0.25, 0.1
NEWCOMER_S, ROLLOUT_S = 15.0, 5.0
KILL_S = (2.0, 5.0) if QUICK else (5.0, 20.0)
SETTLED_S, PATIENCE_S = 300.0, 240.0
SERVICES = ("gateway", "opener", "runs", "rollouts")
ANN = Actor("ann", frozenset({Role.OPERATOR}))
DIGITS = ModelName("digits")
AT_ONCE = RolloutPlan(steps=(Step("all", 100, least_s=0.0),))

_Answer = TypeVar("_Answer")


def until_answered(ask: Callable[[], _Answer]) -> _Answer:
    """Ask until there is an answer: what is killed is started again.

    Raises:
        Exception: What it was refused with, if nothing else came for so long that no start explains it.
    """
    give_up_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except (grpc.RpcError, UnavailableError, StorageError):
            if time.monotonic() > give_up_s:
                raise
        time.sleep(0.2)


class Player(threading.Thread):
    """Somebody who asks things of the service until told to stop; what ends them before is kept."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.stopped = stop
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self.play()
        except Exception as exc:
            traceback.print_exc()
            self.failure = exc

    def play(self) -> None:
        raise NotImplementedError


class Sender(Player):
    """A device that sends a report now and then, each until it is acknowledged."""

    def __init__(self, fleet: FleetDir, device: PlainDevice, stop: threading.Event) -> None:
        super().__init__(stop)
        self._fleet, self._device = fleet, device
        self.acknowledged: set[bytes] = set()

    def play(self) -> None:
        with self._device.channel(self._fleet) as channel:
            while not self.stopped.wait(random.uniform(0, 2 * EVERY_S)):
                batch_id = secrets.token_bytes(16)
                # Of this hour: what is older than the retention policy keeps, the opener deletes when it starts.
                plain = batch(window(start_s=int(time.time()) // 3600 * 3600))
                sealed = self._device.sealed(self._fleet, plaintext=plain, batch_id=batch_id)
                for _ in range(2 if random.random() < TWICE else 1):
                    self.acknowledged.update(
                        until_answered(lambda sealed=sealed: upload(channel, [sealed])).acknowledged
                    )


class Newcomers(Player):
    """Devices that enroll through the gateway, each with a token of its own."""

    def __init__(self, fleet: FleetDir, store: Store, stop: threading.Event) -> None:
        super().__init__(stop)
        self._fleet, self._store = fleet, store
        self.admitted: list[DeviceId] = []

    def play(self) -> None:
        while not self.stopped.wait(NEWCOMER_S):
            token = until_answered(lambda: self._store.tokens.issue(valid_s=3600))
            device = PlainDevice()
            reply = until_answered(lambda token=token, device=device: device.enroll(self._fleet, token))
            self.admitted.append(DeviceId(reply.device_id))


class Releases(Player):
    """Versions that are published and rolled out to everybody, one after the other."""

    def __init__(self, store: Store, stop: threading.Event) -> None:
        super().__init__(stop)
        self._store = store
        self.begun: list[str] = []

    def play(self) -> None:
        version = 2
        while not self.stopped.wait(ROLLOUT_S):
            if self.begun and until_answered(lambda: self._store.rollouts.get(self.begun[-1])).live:
                continue
            name = f"digits-{version}"
            until_answered(lambda version=version: publish(self._store, version))
            # Asked again, it may have been made before: the answer was lost.
            until_answered(lambda name=name, version=version: self._begin(name, version))
            self.begun.append(name)
            version += 1

    def _begin(self, name: str, version: int) -> None:
        made = self._store.rollouts.find(name)
        if made is None:
            begin(self._store, propose(self._store, DIGITS, version, AT_ONCE, name=name), actor=ANN)
        elif isinstance(made.state, Draft):
            self._store.rollouts.happen(name, Start(), actor=ANN)


def publish(store: Store, version: int) -> None:
    if any(each.version == version for each in store.releases.all()):
        return
    store.releases.publish(DIGITS, version, sha256=hashlib.sha256(b"%d" % version).digest(), size=1000)


def start_again(server: PostgresqlServer) -> None:
    """Start a database that was killed: for a moment what it left may still hold its memory."""
    for _ in range(10):
        with contextlib.suppress(RuntimeError):
            server.start()
            return
        time.sleep(1.0)
    server.start()


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """What there was to find, what was found, and how often what was killed."""

    killed: Counter[str]
    cpu_share: float
    acknowledged: int
    lost: int
    doubled: int
    admitted: int
    absent: int
    unregistered: int
    rollouts: int
    misdecided: int
    given_up: int
    entries: int


def soak(root: Path, server: PostgresqlServer, *, seconds: float, chance: random.Random) -> End:
    """Kill at random, and count."""
    fleet = fleet_in(root, server=server)
    devices = [PlainDevice() for _ in range(SENDERS)]
    killed: Counter[str] = Counter()
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(fleet.open_store())
        for device in devices:
            device.admit(fleet, store)
        publish(store, 1)
        stack.callback(Running("superlink", fleet, environment=flower_environment(fleet)).end, signal.SIGTERM)
        services = {name: Running(name, fleet) for name in SERVICES}
        for service in services.values():
            stack.callback(service.end, signal.SIGTERM)
        senders = [Sender(fleet, device, stop) for device in devices]
        newcomers, releases = Newcomers(fleet, store, stop), Releases(store, stop)
        threads = [*senders, newcomers, releases]
        for thread in threads:
            thread.start()
        began_s, until_s = time.monotonic(), time.monotonic() + seconds
        said_s = began_s
        while time.monotonic() < until_s:
            time.sleep(chance.uniform(*KILL_S))
            which = chance.choice([*SERVICES, "database"])
            killed[which] += 1
            if which == "database":
                server.stop(chance.choice([signal.SIGQUIT, signal.SIGINT]))
                time.sleep(chance.uniform(0.0, 2.0))
                start_again(server)
            else:
                services[which].end(signal.SIGKILL)
                time.sleep(chance.uniform(0.0, 2.0))
                services[which].start()
            if time.monotonic() - said_s > 60.0:
                said_s = time.monotonic()
                told = sum(len(each.acknowledged) for each in senders)
                print(
                    f"{said_s - began_s:.0f} s: {killed.total()} killed, {told} batches acknowledged, "
                    f"{len(newcomers.admitted)} admitted, {len(releases.begun)} rollouts",
                    flush=True,
                )
        stop.set()
        for thread in threads:
            thread.join()
        share = cpu_s() / (time.monotonic() - began_s)
        wait_for(lambda: not store.batches.sealed(limit=1))
        wait_for(lambda: not store.devices.unregistered())
        wait_for(lambda: not releases.begun or not store.rollouts.get(releases.begun[-1]).live)
        end = _count(fleet, store, senders, newcomers, releases, killed, share)
        return dataclasses.replace(end, given_up=sum(thread.failure is not None for thread in threads))


def wait_for(settled: Callable[[], bool]) -> None:
    """Wait until the services have done what is left; what they never do is counted afterwards."""
    give_up_s = time.monotonic() + SETTLED_S
    while not until_answered(settled) and time.monotonic() < give_up_s:
        time.sleep(0.2)


def cpu_s() -> float:
    """Processor time of this process and of what it started and has ended."""
    import resource

    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _count(
    fleet: FleetDir,
    store: Store,
    senders: list[Sender],
    newcomers: Newcomers,
    releases: Releases,
    killed: Counter[str],
    share: float,
) -> End:
    told = set().union(*(sender.acknowledged for sender in senders))
    with store.database.read() as connection:
        stored = list(connection.execute(select(batches.c.batch_id)).scalars())
    summed = sum(line.windows for line in store.rollups.all())
    there = store.devices.all()
    nodes = [device.node_id for device in there]
    # One version after the other, each decided upon once.
    histories = [[event.event for event in store.rollouts.events(name)] for name in releases.begun]
    return End(
        killed=killed,
        cpu_share=share,
        acknowledged=len(told),
        lost=len(told - set(map(bytes, stored))) + max(len(stored) - summed, 0),
        doubled=len(stored) - len(set(stored)) + max(summed - len(stored), 0),
        admitted=len(newcomers.admitted),
        absent=len(set(newcomers.admitted) - {device.id for device in there})
        + abs(len(there) - SENDERS - len(newcomers.admitted)),
        unregistered=len(nodes) - len(set(nodes) - {None}),
        rollouts=len(histories),
        misdecided=sum(len(history) != len(set(history)) or history != histories[0] for history in histories),
        given_up=0,
        entries=verify(fleet, store)[0],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The service, killed at random.")
    parser.add_argument("--seconds", type=float, default=15.0 if QUICK else 60.0)
    parser.add_argument("--seed", type=int, default=1, help="of what is killed and when")
    options = parser.parse_args()
    report = Report("soak_service")
    server = PostgresqlServer()
    with tempfile.TemporaryDirectory() as name, contextlib.closing(server), report.part("soak"):
        end = soak(Path(name), server, seconds=options.seconds, chance=random.Random(options.seed))
        report.value("length", options.seconds, unit="s")
        for which in (*SERVICES, "database"):
            report.value(f"kills of {which}", end.killed[which], unit="")
        report.value("cores used, without PostgreSQL", end.cpu_share, unit="")
        report.value("batches acknowledged", end.acknowledged, unit="")
        report.value("batches lost", end.lost, unit="", at_most=0)
        report.value("batches doubled", end.doubled, unit="", at_most=0)
        report.value("devices admitted", end.admitted, unit="")
        report.value("devices absent, or admitted twice", end.absent, unit="", at_most=0)
        report.value("devices without a node of their own in Flower", end.unregistered, unit="", at_most=0)
        report.value("rollouts", end.rollouts, unit="")
        report.value("rollouts decided twice, or not", end.misdecided, unit="", at_most=0)
        report.value("who got no answer in four minutes", end.given_up, unit="", at_most=0)
        report.value("entries of the audit log, all verified", end.entries, unit="")
    report.finish()


if __name__ == "__main__":
    main()
