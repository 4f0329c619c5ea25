"""Rollouts, experiments, runs and alerts with a life behind them, for the console's browser tests."""

from __future__ import annotations

from dataclasses import replace

from console_world import ConsoleWorld
from experiment_world import PLAN, Shop
from rollout_world import ANN, admit
from run_world import PLAN as RUN
from run_world import schedule, trained
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.learning.plan import Metrics
from umbel_server.monitor.alerts.evaluate import rules_path
from umbel_server.monitor.alerts.state import Timing
from umbel_server.rollouts.plan import RolloutPlan, Step
from umbel_server.rollouts.state import RollBack
from umbel_server.store.alerts import Reading, Telling, fingerprint

SCENT, TASTE = ModelName("scent"), ModelName("taste")
STEPS = RolloutPlan(steps=(Step("tenth", 10), Step("half", 50), Step("all", 100)), least_devices=3)
RULES = """
[[channel]]
name = "oncall"
kind = "webhook"
url = "https://hooks.test/umbel"

[[rule]]
name = "scent-drifts"
what = "drift"
model = "scent"
threshold = 1
severity = "critical"
runbook = "https://runbooks.test/drift"

[[rule]]
name = "slow"
what = "latency_ms"
threshold = 40.0
"""
NOBODY = Telling({}, lambda kind, alerts: {})
AGE = {"model": "scent", "feature": "age"}
DRIFTED = fingerprint("scent-drifts", AGE)
"""The alert that fires."""


def rollouts(world: ConsoleWorld) -> None:
    """One that was rolled back, and one under way, which failed on a device."""
    names = [DeviceId(f"site-{number:03d}") for number in range(120)]
    admit(world.store, names)
    made = Shop(world.store, world.clock, devices=0, model=SCENT)
    made.names = names
    for version in (1, 2):
        made.release(version)
    made.check()
    made.hold(2)
    made.release(3)
    bad = made.start(3, STEPS)
    made.check()
    world.clock.advance(7200)
    world.store.rollouts.happen(bad.id, RollBack("it was slow on old phones"), actor=ANN)
    made.check()
    made.release(4)
    made.release(5)
    made.start(4, STEPS)
    for device in made.names:
        made.check(device)
        world.clock.advance(11)
    broken = min(made.with_version(4))
    made.failed[broken] = {4}
    made.check(broken)
    made.report({4: 1.02})
    world.store.placements.pin(made.names[-1], SCENT, 1, actor=ANN, reason="a study")


def experiments(world: ConsoleWorld) -> None:
    """One that has told something."""
    made = Shop(world.store, world.clock, devices=0, model=TASTE)
    made.names = [each for each in made.names if each.startswith("site-")]
    for version in (1, 2):
        made.release(version)
    made.check()
    made.hold(2)
    made.release(3)
    made.begin(name="taste-3-ab", plan=PLAN)
    made.check()
    for hour in range(4):
        made.sell({2: 0.30, 3: 0.36 + 0.01 * hour})


def runs(world: ConsoleWorld) -> None:
    """One that is masking in its fourth round, one that was stopped, and a schedule."""
    old = trained(world.store, "spring", at_s=world.clock() - 90_000, rounds=2)
    world.store.runs.finish(old, "stopped", "the data was wrong", actor=ANN)
    measured = replace(RUN, metrics=Metrics(norms=True))
    run = trained(world.store, "autumn", at_s=world.clock() - 600, plan=measured)
    world.store.runs.begin_round(run, 4, 1)
    world.store.runs.enter_phase(run, 4, 1, "mask")
    schedule(world.store, "weekly", now_s=world.clock())


def alerts(world: ConsoleWorld) -> None:
    """One that fires, one that is acknowledged, and a run that is proposed."""
    rules_path(world.fleet).write_text(RULES)
    for rule, severity, labels, value, why in (
        (
            "scent-drifts",
            "critical",
            AGE,
            3.0,
            "3 features of scent drifted, 1 is allowed",
        ),
        (
            "slow",
            "warning",
            {"model": "scent", "version": "2"},
            52.0,
            "p90 is 52 ms, 40 are allowed, of 118 devices",
        ),
    ):
        world.store.alerts.look(
            rule, severity, [Reading(labels, True, value, why)], Timing(), telling=NOBODY, act=lambda *_: ()
        )
    (slow,) = world.store.alerts.all(rule="slow")
    (drifted,) = world.store.alerts.all(rule="scent-drifts")
    world.store.alerts.acknowledge(slow.fingerprint, actor=ANN, reason="I look at it")
    with world.store.database.write() as connection:
        world.store.proposed_runs.propose_within(
            connection,
            ANN,
            rule="scent-drifts",
            fingerprint=drifted.fingerprint,
            model=SCENT,
            plan={"model": "scent", "rounds": 4, "devices": 8},
            why="3 features of scent drifted",
            rest_s=0.0,
            accepted=False,
        )


def operations(world: ConsoleWorld) -> None:
    """All of it."""
    for each in (rollouts, experiments, runs, alerts):
        each(world)
