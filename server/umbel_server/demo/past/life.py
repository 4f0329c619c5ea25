"""What happened in the past that is made up, day by day: releases, a rollout taken back, drift, an experiment, alerts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from umbel_proto.ids import DeviceId, ModelName
from umbel_proto.package import Package
from umbel_proto.wire import telemetry_pb2 as pb
from umbel_server.access.actor import Actor, local_actor
from umbel_server.clock import ManualClock
from umbel_server.demo.past.counts import Habit, of_application, of_model
from umbel_server.demo.past.packages import renamed
from umbel_server.demo.past.people import JONAS, LENA, MIRA, PIPELINE, employ
from umbel_server.demo.past.vans import GENERATED, Vans
from umbel_server.experiments.begin import begin as begin_experiment
from umbel_server.experiments.begin import design
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.monitor.alerts.evaluate import Evaluator, rules_path
from umbel_server.monitor.baseline import read_baseline
from umbel_server.registry.approval import Verdict
from umbel_server.registry.asking import decide, request
from umbel_server.registry.versions import add, comment, describe
from umbel_server.rollouts.begin import begin, propose
from umbel_server.rollouts.decider import Decider
from umbel_server.rollouts.plan import Gate, Kind, RolloutPlan, Step
from umbel_server.store.registry import Line
from umbel_server.store.store import Store

DAYS, DAY_S, HOUR_S = 16, 86400, 3600
VANS = 48
WINDOWS_H = (4, 12, 20)
"""Hours of a day at which devices count."""
GROUPS = {"north": slice(0, 18), "night": slice(12, 30)}
"""Devices of the first see more of a label, those of the second miss it."""
SILENT, ODD = slice(45, 47), 41
"""Devices that were lost three days ago, and the one that is quarantined."""
PARCELS, STAMPS = ModelName("parcels"), ModelName("stamps")
SEED = 11
DRIFTS, LOST, TRIAL = 3, 3, 5
"""So many days ago inputs began to drift, devices fell silent, and the experiment began."""
SLOWER = 1.6
"""How long version 3 of parcels takes, as a share of what the one before does."""
ACCEPTS = {1: 0.30, 2: 0.36}
"""How often drivers accept what a version of stamps proposes."""
VANS_ONLY = frozenset({GENERATED})
"""The real devices ask all the while, by the real time: what was under way only then is not for them."""
ROLLOUT = RolloutPlan(
    steps=(
        Step("canary", 30, VANS_ONLY, least_s=12 * HOUR_S, longest_s=40 * HOUR_S),
        Step("half", 60, VANS_ONLY, least_s=12 * HOUR_S, longest_s=40 * HOUR_S),
        Step("all", 100, least_s=12 * HOUR_S),
    )
)
CANARY = RolloutPlan(steps=(Step("canary", 30, least_s=72 * HOUR_S), Step("half", 60), Step("all", 100)))
EXPERIMENT = ExperimentPlan(
    metric="app.accepted/app.proposed",
    least_effect=0.03,
    question="Do drivers accept more of what the new version proposes?",
    treatment=50,
    control=50,
    tags=VANS_ONLY,
    least_devices=20,
    gates=(Gate(Kind.FAILED, 0.05),),
    steps=(Step("all", 100),),
)
RULES = """\
# Written by umbel demo --keep.

[[rule]]
name = "parcels-drift"
what = "drift"
model = "parcels"
threshold = 0.15
window = "3d"
severity = "critical"

[[rule]]
name = "parcels-slow"
what = "latency_ms"
model = "parcels"
percentile = 90
threshold = 0.35
window = "1d"

[[rule]]
name = "parcels-fairness"
what = "fairness_gap"
model = "parcels"
label = "0"
threshold = 0.03
window = "7d"
"""
NOTE = "made up by umbel demo --keep"


def live(fleet: FleetDir, trained: Package, *, now_s: float) -> None:
    """Make up a past of sixteen days that ends now.

    Args:
        fleet: The fleet; it asks for two approvals.
        trained: The package that it has trained: the models of the past are this one under other names.
        now_s: The time, Unix seconds.
    """
    clock = ManualClock(now_s - DAYS * DAY_S)
    with fleet.open_store(clock=clock) as store:
        life = _Life(fleet, store, clock, trained)
        store.audit.record(
            local_actor(), action="demo.past", object="fleet:demo", reason=f"what follows is {NOTE}"
        )
        life.begin()
        for day in range(DAYS, 0, -1):
            clock.now_s = now_s - day * DAY_S
            life.day(day)
        clock.now_s = now_s
        life.end()
        store.audit.record(
            local_actor(), action="demo.present", object="fleet:demo", reason=f"what came before is {NOTE}"
        )


@dataclass(eq=False)
class _Life:
    fleet: FleetDir
    store: Store
    clock: ManualClock
    trained: Package

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(SEED)
        self.vans = Vans(self.fleet, self.store, frozenset({PARCELS, STAMPS}))
        self.decider = Decider(self.store)
        self.baseline = read_baseline(self.trained)
        self.spools: dict[DeviceId, list[pb.Window]] = {}
        self.moved = True

    def begin(self) -> None:
        employ(self.store)
        for line in (
            Line(PARCELS, "mira, parcels", f"Reads the house numbers on parcels; {NOTE}.", "limited"),
            Line(STAMPS, "mira, letters", f"Reads the value of stamps; {NOTE}.", "minimal"),
        ):
            describe(self.store, line, MIRA, reason=NOTE)
        self.vans.enroll(VANS, GROUPS, actor=MIRA)
        for model in (PARCELS, STAMPS):
            self._release(model, 1)
            self.store.rollouts.hold(model, 1, actor=MIRA, reason="new versions come by rollouts")

    def day(self, ago: int) -> None:
        """Let a day pass that began so many days ago: what people do, what devices ask for and report, what follows."""
        morning_s = self.clock()
        happens: dict[int, Callable[[], None]] = {
            13: self._second,
            7: self._third,
            TRIAL: self._try_out,
            LOST: self._look_after_devices,
            1: self._fourth,
        }
        happens.get(ago, lambda: None)()
        self.clock.advance(HOUR_S)
        lost = set(self.vans.names[SILENT]) if ago <= LOST else set[DeviceId]()
        awake = [name for name in self.vans.names if name not in lost]
        if ago in happens or self.moved:
            self.vans.ask(awake)
        for name in awake:
            self.spools.setdefault(name, []).extend(self._report(name, int(morning_s), ago))
        self.clock.now_s = morning_s + (WINDOWS_H[-1] + 2) * HOUR_S
        # Devices that are on the way send when they are back; while a rollout watches them, each evening.
        if ago <= LOST or any(each.model == PARCELS for each in self.store.rollouts.running()):
            self.vans.send(self.spools)
            self.spools = {}
        self.moved = self.decider.run_once() > 0

    def end(self) -> None:
        """What happened lately: somebody waits for an approval, and rules find something."""
        now_s = self.clock()
        self.clock.now_s = now_s - 5 * HOUR_S
        self._add(PARCELS, 5)
        self._approve(PARCELS, 5, LENA)
        self.clock.now_s = now_s - HOUR_S
        comment(self.store, PARCELS, 5, LENA, "Read the cohorts' figures before you approve: see Fairness.")
        self.clock.now_s = now_s - HOUR_S / 2
        self.vans.heard(name for name in self.vans.names if name not in set(self.vans.names[SILENT]))
        rules_path(self.fleet).write_text(RULES, "utf-8")
        looks = iter((False, True))
        Evaluator(self.fleet, self.store).run(lambda _: next(looks))
        for slow in self.store.alerts.all(rule="parcels-slow"):
            self.clock.now_s = now_s - HOUR_S / 4
            self.store.alerts.acknowledge(slow.fingerprint, actor=MIRA, reason="I look at the oldest vans")
        self.clock.now_s = now_s

    # What people did

    def _second(self) -> None:
        """Parcels 2 came step by step, and reached everybody."""
        self._release(PARCELS, 2)
        begin(self.store, propose(self.store, PARCELS, 2, ROLLOUT), actor=MIRA, reason=NOTE)

    def _third(self) -> None:
        """Parcels 3 is slow; what devices report takes it back."""
        self._release(PARCELS, 3)
        begin(self.store, propose(self.store, PARCELS, 3, ROLLOUT), actor=MIRA, reason=NOTE)

    def _fourth(self) -> None:
        """Parcels 4 is a canary, and stays one for three days."""
        self._release(PARCELS, 4)
        begin(self.store, propose(self.store, PARCELS, 4, CANARY), actor=MIRA, reason=NOTE)

    def _try_out(self) -> None:
        self._release(STAMPS, 2)
        begin_experiment(
            self.store, design(self.store, STAMPS, 2, EXPERIMENT), EXPERIMENT, actor=MIRA, reason=NOTE
        )

    def _look_after_devices(self) -> None:
        """Two devices are heard of for the last time, and one is kept apart."""
        self.vans.heard(self.vans.names[SILENT])
        self.store.devices.quarantine(self.vans.names[ODD], reason="its lens is scratched", actor=MIRA)

    def _release(self, model: ModelName, version: int) -> None:
        data = self._add(model, version)
        self._approve(model, version, JONAS, LENA)
        publish(self.fleet, self.store, data, actor=MIRA)

    def _add(self, model: ModelName, version: int) -> bytes:
        data = renamed(self.trained, model, version, key=self.fleet.release_signer())
        add(self.fleet, self.store, data, PIPELINE)
        return data

    def _approve(self, model: ModelName, version: int, *who: Actor) -> None:
        why = f"the trained digits under another name; what it is asked for is {NOTE}"
        request(self.fleet, self.store, model, version, MIRA, comment=why)
        for each in who:
            decide(self.fleet, self.store, model, version, each, Verdict.APPROVE, comment="I read its card")

    # What devices counted

    def _report(self, name: DeviceId, morning_s: int, ago: int) -> list[pb.Window]:
        number, has = self.vans.names.index(name), self.vans.has[name]
        parcels = has[PARCELS]
        habit = Habit(
            speed=(0.8 + number % 7 / 10) * (SLOWER if parcels == 3 else 1.0),
            more=number in range(VANS)[GROUPS["north"]],
            misses=number in range(VANS)[GROUPS["night"]],
            drifted=ago <= DRIFTS,
        )
        labels = len(self.baseline.labels)
        accepts = ACCEPTS[has[STAMPS]] + (number * 7 % 13 - 6) / 100
        return [
            window
            for start_s in (morning_s + hour * HOUR_S for hour in WINDOWS_H)
            for window in (
                of_model(self.rng, self.baseline, habit, model=PARCELS, version=parcels, start_s=start_s),
                of_application(self.rng, labels, habit, accepts=accepts, start_s=start_s),
            )
        ]
