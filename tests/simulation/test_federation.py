"""Law: rounds over real devices, training and protocol give the model that plain averaging gives, lose nothing
when devices or the server are lost, and record why.

Only the carrier of messages is in memory (``simulation/federation.py``).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulation.federation import QUICK, TRAINING, Federation, MemoryLink, lenient_policy
from umbel._data.examples import read_examples
from umbel._rounds.ledger import Ledger
from umbel.train import TrainPlan
from umbel.train.local import federated_averaging, score_on
from umbel.train.onnx import OnnxTrainer
from umbel_proto.errors import BudgetError, RefusedError, UmbelError
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.plan import plan
from umbel_proto.secagg.engine import TRAIN
from umbel_proto.secagg.pairwise import CONFIRM, MASK, SHARE, UNMASK
from umbel_server.learning.fleet_ledger import COST
from umbel_server.learning.plan import RunPlan
from umbel_server.learning.run import run_to_end

IMPATIENT = replace(QUICK, phase_timeout_s=0.5)
"""For rounds in which too few answer: nothing but the deadline ends such a phase."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Eight devices; tests give each run a name of its own."""
    return Federation(tmp_path_factory.mktemp("federation"), 8)


def link_to(federation: Federation) -> MemoryLink:
    return MemoryLink(federation.participants())


def test_the_secure_path_without_noise_learns_what_plain_federated_averaging_learns(
    shared: Federation,
) -> None:
    training = replace(TRAINING, epochs=8, learning_rate=0.05)
    wanted = replace(shared.plan(rounds=10, clip=20.0), training=training)
    record, rounds = shared.run(link_to(shared), wanted, "plain")
    assert record.state == "finished"
    secure = [r.figures["accuracy"] for r in rounds]

    settings = TrainPlan(
        training.epochs, training.batch_size, training.learning_rate, training.momentum, training.seed
    )
    shards = {DeviceId(f"dev-{i}"): read_examples(path) for i, path in enumerate(shared.data)}
    judge = score_on(shared.package, read_examples(shared.heldout))
    trainer = OnnxTrainer(shared.package)
    steps = federated_averaging(trainer, shared.package.parameters(), shards, rounds=10, plan=settings)
    plain = [judge(parameters) for parameters in steps]

    assert secure[-1] >= 0.93
    # One of the 359 held-out digits is 0.3 points: the last three rounds tell more than the last.
    assert np.mean(secure[-3:]) == pytest.approx(np.mean(plain[-3:]), abs=0.005)


@pytest.mark.parametrize(
    ("kind", "outcome", "summed"),
    [
        (TRAIN, "dropped", 7),
        (SHARE, "dropped", 7),
        (MASK, "charged", 7),
        (CONFIRM, "summed", 8),
        (UNMASK, "summed", 8),
    ],
)
def test_a_device_lost_in_any_phase_costs_at_most_its_own_share(
    shared: Federation, kind: str, outcome: str, summed: int
) -> None:
    link = link_to(shared)
    link.vanish.add((shared.node(3), kind))
    run = f"lost-{kind.removeprefix('query.')}"
    record, (only,) = shared.run(link, shared.plan(rounds=1), run)
    assert record.state == "finished"
    outcomes = {part.device: part.outcome for part in only.participations}
    assert list(outcomes.values()).count("summed") == summed
    assert outcomes[DeviceId("dev-3")] == outcome


def test_a_round_with_too_few_survivors_is_given_up_with_the_reason(shared: Federation) -> None:
    link = link_to(shared)
    for number in range(3):
        link.vanish.add((shared.node(number), MASK))
    with pytest.raises(UmbelError):
        shared.run(link, replace(shared.plan(rounds=1), attempts=1, timing=IMPATIENT), "few")
    record, (only,) = shared.record("few")
    assert (record.state, only.state) == ("failed", "aborted")
    assert "5 devices sent an update, and 6 are needed" in record.reason


def test_an_aborted_round_is_tried_again_with_those_who_are_left(shared: Federation) -> None:
    link = link_to(shared)
    for number in range(3):
        link.vanish.add((shared.node(number), MASK))
    record, rounds = shared.run(link, replace(shared.plan(rounds=1), timing=IMPATIENT), "again")
    assert record.state == "finished"
    assert [(r.attempt, r.state) for r in rounds] == [(1, "aborted"), (2, "opened")]


def test_a_run_whose_server_died_goes_on_after_the_last_recorded_round(shared: Federation) -> None:
    class PowerCut(BaseException):
        pass

    class Dying(MemoryLink):
        def send(self, kind, group, payloads, *, ttl_s):  # type: ignore[no-untyped-def]
            if group == "3" and kind == MASK:
                raise PowerCut
            return super().send(kind, group, payloads, ttl_s=ttl_s)

    whole = shared.plan(rounds=4)
    run = shared.create(whole, "cut")
    with pytest.raises(PowerCut):
        run_to_end(shared.fleet, run, Dying(shared.participants()))
    assert shared.record("cut")[0].state == "running"
    run_to_end(shared.fleet, run, link_to(shared))
    record, rounds = shared.record("cut")
    assert record.state == "finished"
    assert [r.round for r in rounds if r.state == "opened"] == [1, 2, 3, 4]


def test_the_ledger_is_charged_once_a_round_before_anything_leaves(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    seen: list[tuple[str, int]] = []

    class Watching(MemoryLink):
        def answer(self, node, kind, payload):  # type: ignore[no-untyped-def]
            answer = super().answer(node, kind, payload)
            with Ledger(federation.homes[0].ledger) as ledger:
                if node == federation.node(0):
                    seen.append((kind, len(ledger.charges())))
            return answer

    federation.run(Watching(federation.participants()), federation.plan(rounds=2))
    assert seen == [
        (TRAIN, 0), (SHARE, 0), (MASK, 1), (CONFIRM, 1), (UNMASK, 1),
        (TRAIN, 1), (SHARE, 1), (MASK, 2), (CONFIRM, 2), (UNMASK, 2),
    ]  # fmt: skip


def test_devices_whose_budget_is_spent_refuse_and_the_record_says_why(tmp_path: Path) -> None:
    """The fleet has lost its records of two runs; the devices' own ledgers still know that three are too many."""

    def cost(rounds: int) -> float:
        settings = {
            "dim": 13706,
            "clip": 2.0,
            "devices": 5,
            "honest": 2,
            "delta": 1e-5,
            "noise_multiplier": 0.5,
        }
        return plan(participations=rounds, **settings).epsilon_server

    policy = replace(lenient_policy(), budget_epsilon=(cost(2) + cost(3)) / 2)
    federation = Federation(tmp_path, 5, policy=policy)
    single = replace(federation.plan(rounds=1, clip=2.0, noise_multiplier=0.5), attempts=1)
    for run in ("first", "second"):
        assert federation.run(link_to(federation), single, run)[0].state == "finished"
        (federation.fleet.runs / run / COST).unlink()
    with pytest.raises(RefusedError):
        federation.run(link_to(federation), single, "third")
    record, (only,) = federation.record("third")
    assert record.state == "failed"
    assert all("budget_epsilon" in part.reason for part in only.participations)


def test_a_run_that_would_exceed_the_budget_is_refused_before_it_starts(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3, policy=replace(lenient_policy(), budget_epsilon=5.0))
    link = link_to(federation)
    with pytest.raises(BudgetError, match="plan no round of this kind"):
        federation.run(link, federation.plan(rounds=10, clip=2.0, noise_multiplier=0.5))
    assert link.sent == []
    assert federation.record()[0].state == "failed"


def test_a_plan_below_the_policys_noise_floor_is_refused_before_it_starts(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3, policy=replace(lenient_policy(), noise_floor=0.5))
    link = link_to(federation)
    with pytest.raises(RefusedError, match="below the fleet's floor"):
        federation.run(link, federation.plan(rounds=1, clip=2.0, noise_multiplier=0.4))
    assert link.sent == []


def test_a_device_without_the_plans_package_stays_out(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 4)
    shutil.rmtree(federation.homes[2].shelf)
    federation.homes[2].make()
    record, (only,) = federation.run(link_to(federation), federation.plan(rounds=1))
    assert record.state == "finished"
    lost = {part.device: part.reason for part in only.participations if part.outcome == "dropped"}
    assert "has no package digits 1" in lost[DeviceId("dev-2")]


def test_noise_reaches_the_sum_at_the_planned_size(shared: Federation) -> None:
    """Two runs from the same seeds differ by the noise alone, and by as much of it as planned."""
    quiet = replace(shared.plan(rounds=1, clip=2.0), training=TRAINING)
    loud = replace(shared.plan(rounds=1, clip=2.0, noise_multiplier=0.2), training=TRAINING)
    shared.run(link_to(shared), quiet, "quiet")
    shared.run(link_to(shared), loud, "loud")
    noise = shared.trained("loud") - shared.trained("quiet")
    policy = lenient_policy()
    per_device = 0.2**2 * 2.0**2 / policy.honest(policy.min_cohort)
    expected = np.sqrt(8 * per_device) / 8
    assert noise.std() == pytest.approx(expected, rel=0.05)


def test_a_plan_survives_its_json_and_refuses_what_it_does_not_know(shared: Federation) -> None:
    made = shared.plan(rounds=3, noise_multiplier=0.5)
    assert RunPlan.from_json(made.to_json()) == made
    with pytest.raises(UmbelError, match="unknown field 'colour'"):
        RunPlan.from_json(made.to_json().replace('"rounds"', '"colour": 1, "rounds"'))
