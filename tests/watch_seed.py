"""A fleet whose models are watched: drifted devices, gaps between cohorts, labels, latencies, bytes and a waiver."""

from __future__ import annotations

import numpy as np
from sqlalchemy import update

from console_world import ConsoleWorld
from model_packages import first
from monitor_world import DAY_S, Reporters
from rollout_world import ANN, HALF
from service_fleet import ManualClock
from umbel_proto.histogram import CONFIDENCE, INPUT, LATENCY_US, Histogram
from umbel_proto.ids import ModelName
from umbel_server.access.actor import local_actor
from umbel_server.monitor.confidences import confidences
from umbel_server.rollouts.state import Advance, RollBack, Start
from umbel_server.store.rollouts import Rollouts
from umbel_server.store.tables import devices
from umbel_server.store.waivers import Gap

MODEL, COUNT, DAYS, WINDOWS = "digits", 40, 10, 4
GAP = Gap(MODEL, None, 3, "north", "selection rate")


def watch(world: ConsoleWorld, *, publish: bool = True, version: int = 1, kind: str = "device") -> Reporters:
    """Let forty devices report for ten days: since three of them the inputs are others, and the north sees more threes."""
    store, rng = world.store, np.random.default_rng(7)
    if publish:
        world.fleet.package(b"\1" * 32).write_bytes(first())
        store.releases.publish(ModelName(MODEL), 1, sha256=b"\1" * 32, size=len(first()))
    reporters = Reporters(store, world.clock, count=COUNT, kind=kind)
    reporters.tag("north", reporters.names[:15])
    reporters.tag("attic", reporters.names[15:18])
    with store.database.write() as connection:
        for number, name in enumerate(reporters.names):
            arch = "aarch64" if number % 3 else "x86_64"
            facts = f'{{"arch":"{arch}","memory_mib":4000,"engine":"onnx"}}'
            connection.execute(update(devices).where(devices.c.id == name).values(facts=facts))
    sure = confidences()[12:]
    for day in range(2 * DAYS):
        for number, device in enumerate(reporters.names):
            threes = 45 if number < 15 else 25
            said = rng.choice(sure, 30)
            right = rng.random(30) < np.clip(said - 0.08, 0, 1)
            mean = 6.0 if day < 3 else 2.0
            reporters.tell(
                device,
                Histogram.empty("confidence", CONFIDENCE).observe(rng.choice(sure, 100)),
                Histogram.empty("latency_us", LATENCY_US).observe(rng.lognormal(6 + number % 3, 0.3, 100)),
                Histogram.empty("input_mean", INPUT).observe(rng.normal(mean, 1, 40)),
                Histogram.empty("feedback.right", CONFIDENCE).observe(said[right]),
                Histogram.empty("feedback.wrong", CONFIDENCE).observe(said[~right]),
                ago_s=day * DAY_S + 3600,
                version=version,
                windows=WINDOWS,
                counters={
                    "predictions": 100,
                    "label.3": threes,
                    "label.1": 100 - threes,
                    "errors": 2,
                    "contract.pixel.above": 1,
                    "feedback": 30,
                    "feedback.agreed": int(right.sum()),
                    "feedback.from.user": 20,
                    "feedback.from.expert": 10,
                    "feedback.compared": 6,
                    "feedback.alike": 5,
                },
            )
            reporters.tell(
                device,
                ago_s=day * DAY_S + 3600,
                model="",
                counters={
                    "energy_rapl_uj": 9_000_000,
                    "report.bytes": 2000,
                    "delivery.bytes": 9000,
                    "delivery.saved_bytes": 30_000,
                    "spool.waiting": day % 4,
                },
            )
    reporters.arrive()
    return reporters


def rolled_out(world: ConsoleWorld) -> None:
    """Digits 2 began five days ago, was taken back on the next day, and began again on the one after it."""
    past = ManualClock(world.clock() - 5 * DAY_S)
    rollouts = Rollouts(world.store.database, world.store.audit, past)
    for name, ends in (
        ("digits-2", (RollBack("it was slow in the attic"),)),
        ("digits-2-again", (Advance(), Advance())),
    ):
        rollouts.create(name, ModelName(MODEL), (1, 2), HALF, actor=ANN)
        for event in (Start(), *ends):
            rollouts.happen(name, event, actor=ANN)
            past.advance(DAY_S)


def joined(world: ConsoleWorld) -> None:
    """Watch digits 2 in a world that has it, with devices of its own."""
    rolled_out(world)
    watch(world, publish=False, version=2, kind="porch")
    waived(world)


def waived(world: ConsoleWorld) -> None:
    world.store.waivers.waive(GAP, days=14, reason="the north sees more threes, agreed", actor=local_actor())
