"""The gates of a plan that names none: false alarms as stated, and a regression of five points found in two windows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_server.rollouts.gates import Evidence, Outcome, Reported, judge
from umbel_server.rollouts.plan import SHADOW_GATES, Gate, Kind, RolloutPlan, Step

PREDICTIONS = 100
"""Of a device in a window."""
SPREAD = 0.02
"""By how much the accuracy that a device's confidences promise differs between devices: a standard deviation."""
STEPS = (Step("half", 50), Step("all", 100))
USUAL = RolloutPlan(steps=STEPS)


@dataclass(eq=False)
class Side:
    """Devices that report window after window, each with an accuracy, a speed and an error rate of its own."""

    chance: np.random.Generator
    count: int
    lower: float = 0.0
    spread: float = SPREAD

    def __post_init__(self) -> None:
        self.sure = self.chance.normal(0.90 - self.lower, self.spread, self.count).clip(0.55, 0.985)
        self.speed = self.chance.lognormal(np.log(3000), 0.1, self.count)
        self.wrong = self.chance.beta(1, 200, self.count)
        self.told = [
            Reported(
                {"predictions": 0, "errors": 0, "contract.x": 0},
                {
                    "confidence": Histogram.empty("confidence", CONFIDENCE),
                    "latency_us": Histogram.empty("latency_us", LATENCY_US),
                },
            )
            for _ in range(self.count)
        ]

    def window(self) -> list[Reported]:
        """Return what the devices have reported up to now, with one window more."""
        n, size = PREDICTIONS, (self.count, PREDICTIONS)
        sure = self.chance.beta(20 * self.sure[:, None], 20 * (1 - self.sure[:, None]), size)
        times = self.chance.lognormal(np.log(self.speed)[:, None], 0.3, size)
        errors, broken = (self.chance.binomial(n, self.wrong) for _ in range(2))
        self.told = [
            Reported(
                {
                    "predictions": each.counters["predictions"] + n,
                    "errors": each.counters["errors"] + int(errors[i]),
                    "contract.x": each.counters["contract.x"] + int(broken[i]),
                },
                {
                    "confidence": each.histograms["confidence"].observe(sure[i].clip(1e-6, 1 - 1e-6)),
                    "latency_us": each.histograms["latency_us"].observe(times[i]),
                },
            )
            for i, each in enumerate(self.told)
        ]
        return self.told


def is_stopped(
    plan: RolloutPlan, seed: int, *, devices: int, lower: float, windows: int, spread: float
) -> bool:
    """Whether a candidate is stopped in one of the first windows."""
    chance = np.random.default_rng(seed)
    candidate, control = Side(chance, devices, lower, spread), Side(chance, devices, 0.0, spread)
    for _ in range(windows):
        evidence = Evidence(candidate.window(), control.window(), admitted=devices)
        if any(verdict.outcome is Outcome.FAIL for verdict in judge(plan, evidence)):
            return True
    return False


def alarms(
    plan: RolloutPlan,
    simulations: int,
    *,
    devices: int,
    lower: float,
    windows: int,
    spread: float = SPREAD,
) -> int:
    return sum(
        is_stopped(plan, seed, devices=devices, lower=lower, windows=windows, spread=spread)
        for seed in range(simulations)
    )


def without_tolerance(plan: RolloutPlan) -> RolloutPlan:
    """The hardest case: gates that tolerate nothing, so that only chance is between them and an alarm."""
    return replace(plan, gates=tuple(replace(gate, tolerance=0.0) for gate in plan.gates))


@pytest.mark.parametrize(
    ("plan", "devices"),
    [(USUAL, 5), (without_tolerance(USUAL), 5), (without_tolerance(USUAL), 20)],
    ids=["as they are", "without a tolerance, 5 devices", "without a tolerance, 20 devices"],
)
def test_an_unchanged_model_is_stopped_no_more_often_than_the_plan_states(
    plan: RolloutPlan, devices: int
) -> None:
    """Of 100 rollouts, six windows each; at the stated 5 %, more alarms than the bound have chance 1e-3."""
    simulations = 100
    bound = int(stats.binom.ppf(0.999, simulations, plan.error))
    assert alarms(plan, simulations, devices=devices, lower=0.0, windows=6) <= bound


@pytest.mark.parametrize("kind", [Kind.ESTIMATED, Kind.CONFIDENCE])
def test_a_model_that_is_worse_by_what_is_tolerated_is_stopped_no_more_often_than_its_gate_states(
    kind: Kind,
) -> None:
    simulations, tolerance = 200, 0.02
    plan = RolloutPlan(steps=STEPS, gates=(Gate(kind, tolerance),))
    bound = int(stats.binom.ppf(0.999, simulations, plan.gate_error))
    assert alarms(plan, simulations, devices=10, lower=tolerance, windows=6) <= bound


@pytest.mark.parametrize(("spread", "devices"), [(0.02, 40), (0.03, 80), (0.05, 200)])
def test_five_points_of_estimated_accuracy_are_found_within_two_windows(spread: float, devices: int) -> None:
    """By the usual gates of the usual steps; were less than nine in ten found, so few would be with chance 1e-3."""
    simulations, plan = 60, RolloutPlan()
    found = alarms(plan, simulations, devices=devices, lower=0.05, windows=2, spread=spread)
    assert found >= stats.binom.ppf(0.001, simulations, 0.9)


def shadowed(chance: np.random.Generator, *, apart: float, windows: int) -> bool:
    """Whether twenty devices that ask a candidate beside what answers stop it; so many of its answers are others."""
    plan = RolloutPlan(steps=(Step("beside", 10, shadow=True), *STEPS), gates=SHADOW_GATES)
    shares = chance.beta(50 * apart, 50 * (1 - apart), 20)
    agreed = np.zeros(20, int)
    for window in range(1, windows + 1):
        agreed += chance.binomial(PREDICTIONS, 1 - shares)
        told = [
            Reported({"shadow.compared": window * PREDICTIONS, "shadow.agreed": int(each)}) for each in agreed
        ]
        found = judge(plan, Evidence(told, (), admitted=20, shadow=True))
        if any(verdict.outcome is Outcome.FAIL for verdict in found):
            return True
    return False


def test_answers_that_differ_as_often_as_is_tolerated_are_stopped_no_more_often_than_stated() -> None:
    simulations, chance = 400, np.random.default_rng(7)
    found = sum(shadowed(chance, apart=0.03, windows=6) for _ in range(simulations))
    assert found <= stats.binom.ppf(0.999, simulations, 0.05)
