"""Services beside a store whose disk is full: they wait, go on by themselves, and nothing is lost or done twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from full_disk import FullDisk
from rollout_world import DIGITS, HALF, World, admit
from service_fleet import ManualClock, PlainDevice, batch, make_fleet, window
from umbel_proto.ids import DeviceId
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.evaluate import Evaluator, rules_path
from umbel_server.monitor.alerts.state import Timing
from umbel_server.monitor.opener import Opener
from umbel_server.rollouts.decider import Decider
from umbel_server.rollouts.plan import Gate, Kind, Step
from umbel_server.store.alerts import Reading, Telling
from umbel_server.store.batches import Arrival
from umbel_server.store.store import Store

NOW_S = 1_800_000_000.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_S)


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    return make_fleet(tmp_path / "garden")


@pytest.fixture
def store(fleet: FleetDir, clock: ManualClock) -> Iterator[Store]:
    with fleet.open_store(clock=clock) as opened:
        yield opened


def run_through(run: Callable[[Callable[[float], bool]], None], *before_turns: Callable[[], object]) -> None:
    """Run a service for so many turns; before each of them something happens."""
    turns = iter(before_turns)

    def stopped(_: float) -> bool:
        turn = next(turns, None)
        if turn is None:
            return True
        turn()
        return False

    run(stopped)


def nothing() -> None:
    """Happens."""


class Disk:
    """Fills and frees the disk of a store when it is told to."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def fill(self) -> None:
        self._full = FullDisk(self._store)

    def free(self) -> None:
        self._full.free()


@pytest.mark.parametrize("turns_before", [0, 1], ids=["full at its start", "full later"])
def test_an_opener_on_a_full_disk_waits_and_then_counts_every_batch_once(
    fleet: FleetDir, store: Store, caplog: pytest.LogCaptureFixture, turns_before: int
) -> None:
    device, disk = PlainDevice(), Disk(store)
    device.admit(fleet, store, name="rose")

    hours = itertools.count(2)

    def deliver() -> None:
        hour_s = next(hours) * 3600
        for _ in range(40):
            sealed = device.sealed(fleet, plaintext=batch(*(window(f"m{n}", 1, hour_s) for n in range(10))))
            named = pb.BatchHeader.FromString(sealed.header)
            arrival = Arrival(named.batch_id, named.key_id, sealed.header, sealed.ciphertext)
            store.batches.append(device.id, [arrival])

    def look_at_it() -> None:
        assert len(store.batches.sealed(limit=100)) == 40
        disk.free()

    def deliver_and_fill() -> None:
        deliver()
        disk.fill()

    if turns_before:
        before = (deliver, deliver_and_fill)
    else:
        deliver_and_fill()
        before = (nothing,)
    opener = Opener(store, fleet.telemetry_private())
    run_through(opener.run, *before, nothing, nothing, look_at_it, nothing, nothing)
    told = [record.message for record in caplog.records if "batches stay as they are" in record.message]
    assert len(told) == 3
    assert all("No space is left" in each for each in told)
    assert store.batches.sealed(limit=1) == ()
    counted = {(str(line.model), line.hour_s): line.windows for line in store.rollups.all()}
    delivered = itertools.product((f"m{n}" for n in range(10)), (7200, 10_800)[: turns_before + 1])
    assert counted == dict.fromkeys(delivered, 40)
    assert sum(entry.action == "telemetry-key.read" for entry in store.audit.all()) == 1


def test_a_decider_on_a_full_disk_waits_and_then_advances_a_rollout_once(
    store: Store, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    world, disk = World.with_candidate(store, clock), Disk(store)
    steps = (Step("half", 50, least_s=60.0), Step("all", 100, least_s=60.0))
    made = world.start(3, replace(HALF, steps=steps, gates=(Gate(Kind.ERRORS, 0.05),)))
    world.check()
    world.report({})
    clock.advance(61)

    def look_at_it() -> None:
        assert [each.event for each in store.rollouts.events(made.id)] == ["start"]
        disk.free()

    run_through(Decider(store).run, disk.fill, nothing, look_at_it, nothing, nothing)
    assert sum("rollouts stay as they are" in record.message for record in caplog.records) == 2
    assert [each.event for each in store.rollouts.events(made.id)] == ["start", "advance"]
    assert sum(entry.action == "rollout.advance" for entry in store.audit.all()) == 1
    world.check()
    assert set(world.has.values()) == {3}


def test_an_evaluator_on_a_full_disk_waits_and_then_tells_of_every_alert_once(
    fleet: FleetDir, store: Store, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    rules_path(fleet).write_text(
        '[[channel]]\nname = "ops"\nkind = "webhook"\nurl = "https://hooks.example.org/x"\n'
        '[[rule]]\nname = "lag"\nwhat = "opener_lag"\nthreshold = 0\n'
    )
    admit(store, [DeviceId("rose")])
    store.batches.append(DeviceId("rose"), [Arrival(b"i" * 16, "key", b"h", b"s")])
    hot = [Reading({"model": DIGITS, "feature": f"f{n}"}, True, None, "it is hot" * 20) for n in range(40)]
    silent = Telling({}, lambda _kind, _alerts: {})
    store.alerts.look("gone", "critical", hot, Timing(), telling=silent, act=lambda _c, _a: ())
    clock.advance(1)
    disk = Disk(store)

    def look_at_it() -> None:
        assert {each.status for each in store.alerts.all(rule="gone")} == {"firing"}
        disk.free()

    def later() -> None:
        clock.advance(3600)

    run_through(Evaluator(fleet, store).run, disk.fill, later, look_at_it, later, later)
    assert "alerts stay as they are" in caplog.text
    (lag,) = store.alerts.all(rule="lag")
    assert [each.event for each in store.alerts.events(lag.fingerprint)] == ["firing"]
    for alert in store.alerts.all(rule="gone"):
        assert [each.event for each in store.alerts.events(alert.fingerprint)] == ["firing", "resolved"]
    assert sorted((each.rule, each.kind) for each in store.notices.recent()) == [
        ("gone", "resolved"),
        ("lag", "firing"),
    ]
