"""Budgets before a run: refused with the numbers that would do, after all that earlier runs were charged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import BudgetError, RefusedError, StorageError, UsageError
from umbel_proto.ids import DeviceId, FleetId, ModelName, RunId
from umbel_proto.privacy.accounting import SKELLAM_ORDERS, epsilon
from umbel_proto.privacy.ledger import Charge
from umbel_proto.privacy.ledger import spent as spent_by_device
from umbel_proto.privacy.plan import Plan
from umbel_server.cli import fleet as fleet_app
from umbel_server.clock import system_clock
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.layout import FleetDir
from umbel_server.learning.budget import held, plan_privacy, policy_for, released, spent, unable
from umbel_server.learning.fleet_ledger import COST, Cost, FleetLedger, room
from umbel_server.learning.plan import Privacy, RunPlan, Training
from umbel_server.store.runs import Participation, RoundRecord
from umbel_server.store.store import Store, open_store

POLICY = FleetPolicy(FleetId("meadow"), 0.1, 0.2, True, 4, 0.1, 8.0, 1e-6)
EARLIER = RunId("earlier")
DIM = 1000


def run_plan(rounds: int = 10, *, privacy: Privacy | None = None, **changes: object) -> RunPlan:
    plain = RunPlan(
        model=ModelName("digits"),
        version=1,
        package_sha256="0" * 64,
        rounds=rounds,
        devices=8,
        training=Training(),
        privacy=privacy or Privacy(clip=1.0, noise_multiplier=2.0, delta=1e-6),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def names(count: int) -> list[DeviceId]:
    return [DeviceId(f"dev-{number}") for number in range(count)]


def ledger(charged: dict[int, int], cost: Cost, *, devices: int = 8) -> FleetLedger:
    """A fleet whose device ``i`` was charged ``charged[i]`` times in an earlier run."""
    past = {DeviceId(f"dev-{number}"): {EARLIER: times} for number, times in charged.items()}
    return FleetLedger(frozenset(names(devices)), past, {EARLIER: cost})


def refusal(plan: RunPlan, policy: FleetPolicy = POLICY, of: FleetLedger | None = None) -> str:
    with pytest.raises(BudgetError) as caught:
        plan_privacy(plan, policy, DIM, ledger=of)
    return str(caught.value)


def within(budget: float) -> FleetPolicy:
    return replace(POLICY, budget_epsilon=budget)


UNLIMITED = within(math.inf)


def planned(rounds: int = 10) -> Plan:
    return plan_privacy(run_plan(rounds), UNLIMITED, DIM)


def test_a_run_within_the_budget_is_planned_with_its_own_rounds_released() -> None:
    made = plan_privacy(run_plan(3), POLICY, DIM)
    assert made.epsilon_server <= 8
    assert (made.participations, made.honest) == (3, POLICY.honest(4))


def test_the_refusal_names_the_largest_number_of_rounds_that_fits() -> None:
    sentence = refusal(run_plan(100))
    named = re.search(
        r"^100 rounds would cost a device epsilon [\d.]+ at delta 1e-06, .* plan at most (\d+) rounds",
        sentence,
    )
    assert named is not None, sentence
    most = int(named[1])
    assert plan_privacy(run_plan(most), POLICY, DIM).epsilon_server <= 8
    refusal(run_plan(most + 1))


def test_the_refusal_names_a_noise_multiplier_that_does() -> None:
    named = re.search(r"a noise_multiplier of ([\d.]+) or more", refusal(run_plan(100)))
    assert named is not None
    enough = float(named[1])
    made = plan_privacy(run_plan(100, privacy=Privacy(1.0, enough, 1e-6)), POLICY, DIM)
    assert 7.9 < made.epsilon_server <= 8
    refusal(run_plan(100, privacy=Privacy(1.0, enough * 0.997, 1e-6)))


def test_where_not_even_one_round_fits_the_refusal_says_so() -> None:
    assert "not even one fits" in refusal(run_plan(3), within(0.5))


def test_with_a_cap_participations_are_what_must_fit() -> None:
    capped = Privacy(1.0, 2.0, 1e-6, participations=50)
    sentence = refusal(run_plan(100, privacy=capped))
    named = re.search(r"^50 participations would .* plan at most (\d+) participations", sentence)
    assert named is not None, sentence
    fitting = replace(capped, participations=int(named[1]))
    assert plan_privacy(run_plan(100, privacy=fitting), POLICY, DIM).epsilon_server <= 8


def test_the_budgets_delta_decides_and_not_the_runs() -> None:
    lax = Privacy(1.0, 2.0, 1e-3)
    most = plan_privacy(run_plan(10, privacy=lax), UNLIMITED, DIM)
    assert "at delta 1e-06" in refusal(run_plan(10, privacy=lax), within(most.epsilon_server * 1.05))


def test_what_earlier_runs_were_charged_counts_at_every_order() -> None:
    cost = Cost.of(planned())
    past = ledger({0: 7}, cost)
    charges = [
        Charge(EARLIER, number, 1, bytes([number]) * 32, cost.bound_sq, cost.coordinates, cost.variance, 0.0)
        for number in range(7)
    ]
    assert past.spent(DeviceId("dev-0"), 1e-6) == pytest.approx(spent_by_device(charges, 1e-6), rel=1e-12)
    assert past.spent(DeviceId("dev-1"), 1e-6) == 0
    total = past.curve(DeviceId("dev-0")) + 3 * cost.curve()
    assert total == pytest.approx(10 * cost.curve(), rel=1e-12)


def test_a_run_that_too_few_devices_can_still_pay_for_is_refused_with_the_rounds_that_fit() -> None:
    whole = planned(20).epsilon_server
    policy, cost = within(whole), Cost.of(planned())
    past = ledger({0: 19, 1: 18, 2: 13, 3: 12, 4: 11}, cost)
    sentence = refusal(run_plan(10), policy, past)
    assert sentence.startswith(
        "After earlier runs 3 of 8 devices can pay for 10 rounds, and a round needs 4: plan at most 9 rounds"
    )
    plan_privacy(run_plan(9), policy, DIM, ledger=past)


def test_a_few_devices_that_cannot_pay_are_left_out_and_the_run_goes_on() -> None:
    policy, cost = within(planned(20).epsilon_server), Cost.of(planned())
    past = ledger({0: 13, 1: 10, 2: 11, 3: 1}, cost)
    made = plan_privacy(run_plan(10), policy, DIM, ledger=past)
    assert unable(made, policy, past) == {DeviceId("dev-0"), DeviceId("dev-2")}


def test_a_fleet_that_is_still_too_small_is_no_matter_of_budgets() -> None:
    plan_privacy(run_plan(3), POLICY, DIM, ledger=ledger({}, Cost.of(planned()), devices=2))


def test_a_device_that_was_charged_without_noise_can_pay_for_nothing() -> None:
    made = planned(1)
    past = ledger({2: 1}, Cost(100, 10, Fraction(0)))
    assert unable(made, POLICY, past) == {DeviceId("dev-2")}


@pytest.mark.parametrize("times", [1, 2, 9, 40])
def test_room_is_the_largest_number_that_fits(times: int) -> None:
    cost = Cost.of(planned())
    nothing = np.zeros(SKELLAM_ORDERS.shape)
    budget = epsilon(cost.bound_sq, cost.coordinates, float(cost.variance), 1e-6, times)
    assert room(nothing, cost, 1000, budget, 1e-6) == times
    assert room(nothing, cost, times, budget, 1e-6) == times
    assert room(nothing, cost, 1000, math.nextafter(budget, 0), 1e-6) == times - 1


def test_a_smaller_cohort_than_the_policys_is_refused_and_a_larger_one_counts_more_noise() -> None:
    with pytest.raises(RefusedError, match="min_cohort is 3, below the 4 of the fleet's policy: raise it"):
        plan_privacy(run_plan(3, min_cohort=3), POLICY, DIM)
    assert policy_for(run_plan(3), POLICY) == POLICY
    larger = plan_privacy(run_plan(3, min_cohort=8), POLICY, DIM)
    assert larger.honest == POLICY.honest(8) == 7
    assert larger.encoding.noise < plan_privacy(run_plan(3), POLICY, DIM).encoding.noise


def test_more_devices_in_a_sum_than_in_a_round_are_refused() -> None:
    with pytest.raises(UsageError, match="min_cohort is 9, and a round has 8 devices: lower it"):
        run_plan(3, min_cohort=9)


def test_no_noise_under_a_finite_budget_is_refused_and_names_the_number() -> None:
    silent = run_plan(1, privacy=Privacy(1.0, 0.0, 1e-6))
    sentence = refusal(silent, replace(POLICY, noise_floor=0.0))
    assert "noise_multiplier is 0" in sentence
    assert "noise_multiplier above 0" in sentence
    assert plan_privacy(silent, replace(UNLIMITED, noise_floor=0.0), DIM).epsilon_server == math.inf


@pytest.mark.parametrize(("delta", "rate"), [(1 / 30, 1.0), (0.02, 0.1), (1 / 300, 0.1)])
def test_a_delta_that_could_give_a_device_away_whole_is_refused(delta: float, rate: float) -> None:
    loose = Privacy(1.0, 2.0, delta, sampling_rate=rate)
    with pytest.raises(UsageError, match=r"delta is .* choose a delta below that"):
        plan_privacy(run_plan(1, privacy=loose, devices=30), UNLIMITED, DIM)
    plan_privacy(run_plan(1, privacy=replace(loose, delta=0.012 * rate), devices=30), UNLIMITED, DIM)


def test_release_counts_the_rounds_held_and_never_exceeds_the_server() -> None:
    sampled = Privacy(1.0, 2.0, 1e-6, participations=10, sampling_rate=0.1)
    made = plan_privacy(run_plan(50, privacy=sampled, devices=40), UNLIMITED, DIM)
    figures = [released(made, 3, rounds) for rounds in (1, 10, 50)]
    assert figures == sorted(figures)
    assert figures[-1] <= spent(made, 3)
    assert made.epsilon_release == released(made, 10, 50) < made.epsilon_server
    assert released(made, 0, 50) == 0
    whole = planned(5)
    assert released(whole, 5, 5) == whole.epsilon_release == whole.epsilon_server


# What the store knows


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    return create_fleet(tmp_path / "fleet", name=FleetId("meadow"), policy=POLICY)


@pytest.fixture
def store(fleet: FleetDir) -> Iterator[Store]:
    with open_store(fleet.path / "store.db", clock=system_clock) as opened:
        yield opened


def hold(store: Store, fleet: FleetDir, run: str, cost: Cost | None, *rounds: dict[str, str]) -> None:
    """Put a run's rounds on record, each with its devices' outcomes."""
    name = RunId(run)
    store.runs.create(name, ModelName("digits"), "{}")
    (fleet.runs / run).mkdir()
    if cost is not None:
        cost.save(fleet.runs / run)
    for number, outcomes in enumerate(rounds, 1):
        parts = tuple(Participation(DeviceId(device), outcome) for device, outcome in outcomes.items())  # type: ignore[arg-type]
        store.runs.begin_round(name, number, 1)
        store.runs.end_round(RoundRecord(name, number, 1, "opened", 1.0, 2.0, participations=parts))
    store.runs.finish(name, "finished", "")


def test_the_ledger_of_the_store_counts_sums_and_charges_and_not_the_dropped(
    fleet: FleetDir, store: Store
) -> None:
    cost, other = Cost.of(planned()), Cost(10**6, 1000, Fraction(7, 2) * 10**6)
    hold(
        store, fleet, "one", cost, {"rose": "summed", "oak": "dropped"}, {"rose": "charged", "oak": "summed"}
    )
    hold(store, fleet, "two", other, {"rose": "summed"})
    hold(store, fleet, "lost", None, {"oak": "summed"})
    found = FleetLedger.of(store, fleet.runs)
    assert found.charged == {"rose": {"one": 2, "two": 1}, "oak": {"one": 1, "lost": 1}}
    assert found.costs == {"one": cost, "two": other}
    assert found.curve(DeviceId("rose")) == pytest.approx(2 * cost.curve() + other.curve(), rel=1e-12)
    assert FleetLedger.of(store, fleet.runs, but=RunId("one")).charged == {
        "rose": {"two": 1},
        "oak": {"lost": 1},
    }


def test_a_run_under_way_keeps_what_it_may_still_ask_for_until_it_ends(fleet: FleetDir, store: Store) -> None:
    """Law: of two runs at once, the second is granted only what the first leaves, and never the reverse."""
    first, second = run_plan(3), run_plan(3)
    cost = Cost.of(planned(3))
    for device in ("rose", "oak"):
        hold(store, fleet, f"past-{device}", cost, {device: "summed"})
    for run, plan in (("first", first), ("second", second)):
        store.runs.create(RunId(run), plan.model, plan.to_json())
        (fleet.runs / run).mkdir()
        cost.save(fleet.runs / run)
    everyone = frozenset(map(DeviceId, ("rose", "oak")))
    budget = {"most": 10**6, "budget_epsilon": 8.0, "budget_delta": 1e-6}

    def rooms(but: str | None) -> dict[DeviceId, int]:
        ledger = FleetLedger.of(store, fleet.runs, but=None if but is None else RunId(but))
        return replace(ledger, active=everyone).rooms(cost, **budget)  # type: ignore[arg-type]

    alone = room(np.zeros(SKELLAM_ORDERS.shape), cost, **budget)  # type: ignore[arg-type]
    assert alone > 7
    assert set(rooms("first").values()) == {alone - 1}
    assert set(rooms("second").values()) == {alone - 1 - 3}
    assert set(rooms(None).values()) == {alone - 1 - 6}
    store.runs.finish(RunId("first"), "stopped", "")
    assert set(rooms("second").values()) == {alone - 1}


def test_a_damaged_cost_is_said_and_not_counted_as_nothing(fleet: FleetDir, store: Store) -> None:
    hold(store, fleet, "one", None, {"rose": "summed"})
    (fleet.runs / "one" / COST).write_text('{"bound_sq": 1')
    with pytest.raises(StorageError, match=r"cost\.json is damaged"):
        FleetLedger.of(store, fleet.runs)


def test_the_operator_sees_what_each_device_spent_in_each_run(fleet: FleetDir, store: Store) -> None:
    cost = Cost.of(planned())
    hold(store, fleet, "one", cost, {"rose": "summed"}, {"rose": "charged", "oak": "summed"})
    hold(store, fleet, "two", cost, {"rose": "summed"})
    hold(store, fleet, "lost", None, {"oak": "summed"})
    shown = CliRunner().invoke(fleet_app, ["privacy", "--fleet", str(fleet.path), "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["budget"] == {"epsilon": 8.0, "delta": 1e-6}

    def of(times: int) -> float:
        return pytest.approx(epsilon(cost.bound_sq, cost.coordinates, float(cost.variance), 1e-6, times))  # type: ignore[no-any-return]

    assert found["devices"] == [
        {
            "device": "oak",
            "epsilon": of(1),
            "runs": [
                {"run": "lost", "participations": 1, "epsilon": None, "known": False},
                {"run": "one", "participations": 1, "epsilon": of(1), "known": True},
            ],
        },
        {
            "device": "rose",
            "epsilon": of(3),
            "runs": [
                {"run": "one", "participations": 2, "epsilon": of(2), "known": True},
                {"run": "two", "participations": 1, "epsilon": of(1), "known": True},
            ],
        },
    ]
    table = CliRunner().invoke(fleet_app, ["privacy", "--fleet", str(fleet.path)])
    assert "unknown" in table.stdout
    assert "in all, of 8" in table.stdout


def test_an_attempt_that_was_looked_at_and_refused_counts_as_held() -> None:
    """What is released was chosen by what the refused sums said: the release covers them, too."""
    summed, charged, dropped = (
        Participation(DeviceId("dev-1"), "summed", ""),
        Participation(DeviceId("dev-1"), "charged", ""),
        Participation(DeviceId("dev-1"), "dropped", ""),
    )
    assert held([[summed], [charged, dropped], [dropped], []]) == 2


@pytest.mark.parametrize(("devices", "fits"), [(8, False), (27, False), (28, True), (200, True)])
def test_a_cohort_that_would_often_be_drawn_too_small_is_refused(devices: int, fits: bool) -> None:
    """From 278 devices on, nine attempts come under the gap of ``learning/draw.py`` with room to spare: 27.8 drawn."""
    sampled = run_plan(3, privacy=Privacy(1.0, 2.0, 1e-6, sampling_rate=0.1), devices=devices)
    if fits:
        assert plan_privacy(sampled, UNLIMITED, DIM).sampling_rate == 0.1
        return
    with pytest.raises(RefusedError, match="plan it for at least 28 devices"):
        plan_privacy(sampled, UNLIMITED, DIM)
