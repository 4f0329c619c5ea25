"""A canary that is worse is taken back within two telemetry windows, by the rollout's gates or by the default rules."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rollout_world import DIGITS, HALF, World, sha256
from service_fleet import ManualClock, make_fleet
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, Histogram
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.alerts.defaults import DEFAULT_TOML
from umbel_server.monitor.alerts.evaluate import Evaluator, rules_path
from umbel_server.rollouts.decider import Decider
from umbel_server.rollouts.offers import Offers, Said
from umbel_server.rollouts.plan import DEFAULT_GATES, SHADOW_GATES, Kind, RolloutPlan, Step
from umbel_server.store.batches import Arrival
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.store import Store, open_store

NOW_S = 1_800_000_000.0
WINDOW_S = 900
PREDICTIONS = 100
WINDOWS = 2
PLAN = replace(
    HALF, steps=(Step("half", 50, least_s=3600.0), Step("all", 100, least_s=3600.0)), gates=DEFAULT_GATES
)
"""The gates of a plan that names none, over twenty devices of each side."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> FleetDir:
    made = make_fleet(tmp_path_factory.mktemp("canary"))
    rules_path(made).write_text(DEFAULT_TOML)
    return made


@pytest.fixture
def world(tmp_path: Path, directory: FleetDir) -> Iterator[World]:
    clock = ManualClock(NOW_S)
    with open_store(tmp_path / "store.db", clock=clock) as store:
        found = World.with_candidate(store, clock)
        yield found


def window(
    world: World, seed: int, *, slower: float = 0.0, worse: float = 0.0, wrong: float | None = None
) -> None:
    """Let every device report a window of its version, and the canary's be worse; then the window is over."""
    rng = np.random.default_rng(seed)
    hour_s = int(world.clock.now_s) // 3600 * 3600
    told = []
    for number, device in enumerate(world.names):
        version = world.has[device]
        canary = version == 3
        speed = 3000 * (1 + number % 7 / 50) * (1 + slower * canary)
        sure = 0.90 + 0.01 * (number % 5 - 2) - worse * canary
        shapes = [
            Histogram.empty("latency_us", LATENCY_US).observe(rng.lognormal(np.log(speed), 0.2, PREDICTIONS)),
            Histogram.empty("confidence", CONFIDENCE).observe(
                np.clip(rng.beta(20 * sure, 20 * (1 - sure), PREDICTIONS), 1e-6, 1 - 1e-6)
            ),
        ]
        counters = {"predictions": PREDICTIONS}
        if wrong is not None:
            right = int(rng.binomial(PREDICTIONS, 0.90 - wrong * canary))
            counters |= {"feedback": PREDICTIONS, "feedback.agreed": right}
        of = (device, DIGITS, version, "fp32", "onnx")
        told.append(Rollup(*of, hour_s, 1, hour_s + 60, counters, {each.name: each for each in shapes}))
    arrive(world.store, world, told)
    world.clock.advance(WINDOW_S)


def arrive(store: Store, world: World, told: list[Rollup]) -> None:
    store.batches.append(world.names[0], [Arrival(secrets.token_bytes(16), "key", b"h", b"s")])
    assert store.rollups.absorb([Verdict(store.batches.sealed(limit=1)[0].id, tuple(told))]) == 1


def windows_until_rolled_back(
    world: World, directory: FleetDir, plan: RolloutPlan, seed: int, **injected: float
) -> tuple[int, str, str]:
    """Return after how many windows a canary was taken back, who did it, and the reason that is shown."""
    made = world.start(3, plan)
    world.check()
    decider, evaluator = Decider(world.store), Evaluator(directory, world.store)
    for count in range(1, WINDOWS + 2):
        window(world, seed + count, **injected)
        decider.run_once()
        evaluator.run_once()
        if world.store.rollouts.get(made.id).status == "rolled-back":
            last = world.store.rollouts.events(made.id)[-1]
            return count, last.actor, last.reason
    return WINDOWS + 2, "", ""


def without(*kinds: Kind) -> RolloutPlan:
    return replace(PLAN, gates=tuple(gate for gate in DEFAULT_GATES if gate.kind not in kinds))


NO_LATENCY, NO_ACCURACY = without(Kind.LATENCY), without(Kind.ESTIMATED, Kind.CONFIDENCE)


@pytest.mark.parametrize(
    ("plan", "injected", "actor", "words"),
    [
        (PLAN, {"slower": 0.3}, "service:rollouts", "gate latency p95: latency rose by"),
        (NO_LATENCY, {"slower": 0.3}, "alert:candidate-slower", "latency rose by"),
        (PLAN, {"worse": 0.05}, "service:rollouts", "gate estimated_accuracy: estimated accuracy fell by"),
        (NO_ACCURACY, {"worse": 0.05}, "alert:candidate-less-sure", "estimated accuracy fell by"),
        (PLAN, {"wrong": 0.05}, "alert:candidate-less-right", "agreement with labels fell"),
    ],
    ids=[
        "30 % slower",
        "30 % slower, no gate",
        "5 points by confidence",
        "5 points by confidence, no gate",
        "5 points by labels",
    ],
)
def test_an_injected_regression_is_taken_back_within_two_windows_with_its_reason(
    world: World, directory: FleetDir, plan: RolloutPlan, injected: dict[str, float], actor: str, words: str
) -> None:
    windows, by, reason = windows_until_rolled_back(world, directory, plan, 7, **injected)
    assert windows <= WINDOWS
    assert by == actor
    assert words in reason
    entry = world.store.audit.newest()
    assert entry is not None
    assert (entry.actor, entry.action, entry.reason) == (actor, "rollout.rollback", reason)


def test_a_canary_that_is_as_good_is_left_alone(world: World, directory: FleetDir) -> None:
    assert windows_until_rolled_back(world, directory, PLAN, 7, wrong=0.0) == (WINDOWS + 2, "", "")


def test_five_points_fewer_answers_that_agree_beside_what_answers_are_taken_back_within_two_windows(
    world: World,
) -> None:
    steps = (Step("beside", 50, least_s=3600.0, shadow=True), *PLAN.steps)
    made = world.start(3, RolloutPlan(steps=steps, gates=SHADOW_GATES))
    offers, said = (
        Offers(world.store.releases, world.store.placements),
        Said(able=True, shadows={sha256(3): ""}),
    )
    asked = [
        device
        for device in world.names
        for offer in offers.for_device(device, {"digits": 2}, set(), said)
        if offer.one_in is not None
    ]
    rng, decider, windows = np.random.default_rng(7), Decider(world.store), 0
    while world.store.rollouts.get(made.id).status == "running" and windows <= WINDOWS:
        windows += 1
        hour_s = int(world.clock.now_s) // 3600 * 3600
        told = []
        for device in asked:
            agreed = int(rng.binomial(PREDICTIONS, 0.95))
            counters = {"shadow.compared": PREDICTIONS, "shadow.agreed": agreed}
            told.append(Rollup(device, DIGITS, 3, "fp32", "onnx", hour_s, 1, hour_s + 60, counters, {}))
        arrive(world.store, world, told)
        world.clock.advance(WINDOW_S)
        decider.run_once()
    assert windows <= WINDOWS
    last = world.store.rollouts.events(made.id)[-1]
    assert (last.actor, last.event) == ("service:rollouts", "rollback")
    assert "gate agreement: agrees with the active version in 9" in last.reason
