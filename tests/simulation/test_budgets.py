"""Law: a run that the devices' budgets do not cover is refused before it starts; within it, nobody is asked for more than
was planned, and both epsilons are on record.

Only the carrier of messages is in memory (``simulation/federation.py``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from simulation.federation import Federation, MemoryLink, lenient_policy
from umbel._rounds.ledger import Ledger
from umbel_proto.credentials import FleetPolicy, sign_policy
from umbel_proto.errors import BudgetError, RefusedError
from umbel_proto.ids import DeviceId, RunId
from umbel_proto.privacy.accounting import epsilon
from umbel_server.learning.budget import plan_privacy
from umbel_server.learning.fleet_ledger import Cost, FleetLedger
from umbel_server.learning.plan import Privacy, RunPlan

DIM = 13_706


def link_to(federation: Federation) -> MemoryLink:
    return MemoryLink(federation.participants())


def noisy(federation: Federation, rounds: int, **changes: object) -> RunPlan:
    made = federation.plan(rounds=rounds, clip=2.0, noise_multiplier=0.5)
    return replace(made, attempts=1, **changes)  # type: ignore[arg-type]


def cost(federation: Federation, rounds: int) -> float:
    """What so many rounds cost a device."""
    return plan_privacy(noisy(federation, rounds), lenient_policy(), DIM, 2).epsilon_server


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path, 5)


def with_policy(federation: Federation, policy: FleetPolicy) -> None:
    """Give the server another policy. Enrolled devices keep theirs."""
    signed = sign_policy(federation.fleet.authority_signer(), policy)
    federation.fleet.policy_bin.write_bytes(signed)


def with_budget(federation: Federation, rounds: int) -> None:
    with_policy(federation, replace(lenient_policy(), budget_epsilon=cost(federation, rounds) * 1.0001))


def test_a_second_run_is_refused_with_the_rounds_that_still_fit(federation: Federation) -> None:
    with_budget(federation, 3)
    federation.run(link_to(federation), noisy(federation, 2), "first")
    link = link_to(federation)
    with pytest.raises(BudgetError, match=r"0 of 5 devices can pay for 2 rounds, .*: plan at most 1 round,"):
        federation.run(link, noisy(federation, 2), "second")
    assert link.sent == []
    assert federation.record("second")[0].state == "failed"
    assert federation.run(link_to(federation), noisy(federation, 1), "third")[0].state == "finished"


def test_devices_that_cannot_pay_are_not_asked(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 6)
    with_budget(federation, 3)
    few = link_to(federation)
    few.gone |= {federation.node(number) for number in (3, 4, 5)}
    federation.run(few, noisy(federation, 2), "first")
    link = link_to(federation)
    record, rounds = federation.run(link, noisy(federation, 2), "second")
    assert record.state == "finished"
    assert {node for _, node in link.sent} == {federation.node(number) for number in (3, 4, 5)}
    assert [len(each.participations) for each in rounds] == [3, 3]


def test_the_fleets_ledger_is_that_of_the_devices(federation: Federation) -> None:
    federation.run(link_to(federation), noisy(federation, 2), "first")
    other = noisy(federation, 1, privacy=Privacy(clip=1.0, noise_multiplier=0.8))
    federation.run(link_to(federation), other, "second")
    with federation.fleet.open_store() as store:
        known = FleetLedger.of(store, federation.fleet.runs)
    for number, home in enumerate(federation.homes):
        with Ledger(home.ledger) as own:
            assert known.spent(DeviceId(f"dev-{number}"), 1e-5) == pytest.approx(own.spent(1e-5), rel=1e-12)


def test_a_run_may_demand_a_larger_cohort_and_its_devices_count_more_noise(federation: Federation) -> None:
    record, (only,) = federation.run(link_to(federation), noisy(federation, 1, min_cohort=5))
    assert record.state == "finished"
    policy = replace(lenient_policy(), min_cohort=5)
    expected = plan_privacy(noisy(federation, 1), policy, DIM, 2)
    for home in federation.homes:
        with Ledger(home.ledger) as own:
            assert own.spent(1e-5) == pytest.approx(expected.epsilon_server, rel=1e-12)
            assert own.charges()[0].variance == 4 * expected.encoding.noise
    assert only.figures["epsilon_server"] == pytest.approx(expected.epsilon_server, rel=1e-12)


def test_nobody_takes_part_more_often_than_planned(federation: Federation) -> None:
    privacy = Privacy(clip=2.0, noise_multiplier=0.5, participations=1)
    with pytest.raises(BudgetError, match="have taken part 1 times, as planned"):
        federation.run(link_to(federation), noisy(federation, 2, privacy=privacy))
    _, rounds = federation.record()
    assert [record.state for record in rounds] == ["opened"]
    for home in federation.homes:
        with Ledger(home.ledger) as own:
            assert len(own.charges()) == 1


def test_a_server_that_asks_for_more_than_it_planned_is_refused_by_the_devices(tmp_path: Path) -> None:
    """The server's own check is gone: the devices' ledgers are what holds."""
    plain = Federation(tmp_path / "plain", 3)
    policy = replace(lenient_policy(), budget_epsilon=cost(plain, 2) * 1.0001)
    federation = Federation(tmp_path / "strict", 3, policy=policy)
    with_policy(federation, lenient_policy())
    with pytest.raises(RefusedError):
        federation.run(link_to(federation), noisy(federation, 4))
    _, rounds = federation.record()
    assert [record.state for record in rounds] == ["opened", "opened", "aborted"]
    refused = rounds[-1].participations
    assert len(refused) == 3
    assert all("would bring this device's epsilon from" in part.reason for part in refused)
    for home in federation.homes:
        with Ledger(home.ledger) as own:
            assert len(own.charges()) == 2


def test_a_sampled_runs_figures_tell_what_outsiders_learn_apart_from_what_the_server_does(
    tmp_path: Path,
) -> None:
    federation = Federation(tmp_path, 14)
    rate = 0.9
    privacy = Privacy(clip=2.0, noise_multiplier=0.5, sampling_rate=rate)
    plan = replace(federation.plan(rounds=2), devices=13, attempts=3, privacy=privacy)
    run = "sampled"
    record, rounds = federation.run(link_to(federation), plan, run)
    assert record.state == "finished"
    with federation.fleet.open_store() as store:
        found = FleetLedger.of(store, federation.fleet.runs)
    of_run: Cost = found.costs[RunId(run)]
    charged: Counter[DeviceId] = Counter()
    opened = 0
    for each in rounds:
        charged.update(part.device for part in each.participations if part.outcome != "dropped")
        most = max(charged.values())
        opened += each.state == "opened"
        server = epsilon(of_run.bound_sq, of_run.coordinates, float(of_run.variance), 1e-5, most)
        release = epsilon(of_run.bound_sq, of_run.coordinates, float(of_run.variance), 1e-5, each.round, rate)
        assert each.figures["epsilon_server"] == pytest.approx(server, rel=1e-12)
        assert each.figures["epsilon_release"] == pytest.approx(min(server, release), rel=1e-12)
        assert each.figures["epsilon_release"] < each.figures["epsilon_server"]
    assert opened == 2
