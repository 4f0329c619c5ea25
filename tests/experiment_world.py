"""A world of rollouts whose applications sell something, more or less often by the version that they have."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rollout_world import ANN, World
from service_fleet import ManualClock
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.experiments.begin import begin, design
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.rollouts.plan import Gate, Kind, Step
from umbel_server.store.batches import Arrival
from umbel_server.store.experiments import Experiment
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.store import Store

PLAN = ExperimentPlan(
    metric="app.sales/app.visits",
    least_effect=0.02,
    question="Do people buy more?",
    treatment=50,
    control=50,
    least_devices=20,
    gates=(Gate(Kind.ERRORS, 0.05),),
    steps=(Step("most", 80, least_s=0.0), Step("all", 100, least_s=0.0)),
)
HOUR_S = 3600


@dataclass(eq=False)
class Shop(World):
    """Devices that ask, install, sell and report. Without a number of devices: those that its store has."""

    def __post_init__(self) -> None:
        if self.devices:
            super().__post_init__()
        else:
            self.names = self.store.placements.eligible()

    def begin(self, version: int = 3, plan: ExperimentPlan = PLAN, name: str | None = None) -> Experiment:
        proposal = design(self.store, self.model, version, plan, name=name)
        return begin(self.store, proposal, plan, actor=ANN)[0]

    def sell(
        self,
        rates: Mapping[int, float],
        *,
        errors: Mapping[int, float] | None = None,
        silent: Collection[DeviceId] = (),
        amounts: bool = False,
        epsilon: float | None = None,
    ) -> None:
        """Let an hour pass in which every device has 100 visits and predictions, and sells by its version's rate."""
        self.clock.advance(HOUR_S)
        hour_s = int(self.clock.now_s) // HOUR_S * HOUR_S
        rollups = []
        for number, device in enumerate(self.names):
            version = self.has.get(device)
            if version is None or device in silent:
                continue
            # Devices differ: by 6 points at most, and always in the same way.
            sales = round(100 * rates.get(version, 0.3)) + number * 7 % 13 - 6
            wrong = round(100 * (errors or {}).get(version, 0.0))
            counters = {"predictions": 100, "errors": wrong}
            seen = Histogram.empty("confidence", CONFIDENCE).observe([rates.get(version, 0.3)] * 100)
            if epsilon is not None:
                seen = Histogram("confidence", seen.edges, seen.counts, 0.0, epsilon)
            spent = {"app.spent": Histogram.empty("app.spent", LATENCY_US).observe([float(sales)] * 100)}
            rollups += [
                Rollup(
                    device,
                    self.model,
                    version,
                    "fp32",
                    "onnx",
                    hour_s,
                    1,
                    hour_s + 60,
                    counters,
                    {"confidence": seen},
                ),
                Rollup(
                    device,
                    ModelName(""),
                    0,
                    "",
                    "",
                    hour_s,
                    1,
                    hour_s + 60,
                    {"app.visits": 100, "app.sales": sales},
                    spent if amounts else {},
                ),
            ]
        self.absorb(rollups)

    def absorb(self, rollups: list[Rollup]) -> None:
        """Write what was opened."""
        self.store.batches.append(self.names[0], [Arrival(secrets.token_bytes(16), "key", b"h", b"sealed")])
        batch = self.store.batches.sealed(limit=1)[0]
        self.store.rollups.absorb([Verdict(batch.id, tuple(rollups))])


def shop(store: Store, clock: ManualClock, devices: int = 60) -> Shop:
    """Devices that have digits 2, of which 3 is released and held back."""
    made = Shop(store, clock, devices=devices, releases=(1, 2))
    made.check()
    made.hold(2)
    made.release(3)
    return made
