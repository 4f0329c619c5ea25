"""Experiments over a store: who is in which arm, what they say, who decided, and what follows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL

from experiment_world import HOUR_S, PLAN, Shop, shop
from rollout_world import ANN, DIGITS, HALF
from service_fleet import ManualClock
from umbel_proto.errors import RefusedError, UsageError
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.experiments import evidence
from umbel_server.experiments.begin import begin, design, draw
from umbel_server.experiments.decision import decide, see, status_of
from umbel_server.experiments.plan import ExperimentPlan
from umbel_server.experiments.reading import Outcome
from umbel_server.experiments.shown import shown_json
from umbel_server.rollouts.begin import propose
from umbel_server.rollouts.decider import Decider
from umbel_server.rollouts.plan import Step
from umbel_server.rollouts.state import Pause, Resume, RollBack
from umbel_server.store.rollouts import OutdatedError
from umbel_server.store.rollups import Rollup
from umbel_server.store.store import open_store

NOW_S = 1_800_000_600.0  # Ten minutes past an hour.
NAME = "digits-3-ab"
BETTER = {2: 0.30, 3: 0.45}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_S)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[DeviceId, int]]:
    """A fleet before its experiment, made once: each test has a copy."""
    path = tmp_path_factory.mktemp("ready") / "store.db"
    with open_store(path, clock=ManualClock(NOW_S)) as store:
        made = shop(store, ManualClock(NOW_S))
    return path, made.has


@pytest.fixture
def world(tmp_path: Path, clock: ManualClock, ready: tuple[Path, dict[DeviceId, int]]) -> Iterator[Shop]:
    path, has = ready
    shutil.copy(path, tmp_path / "store.db")
    with open_store(tmp_path / "store.db", clock=clock) as store:
        made = Shop(store, clock, devices=0, releases=(), has=dict(has))
        made.names = sorted(has)
        yield made


@pytest.fixture
def everywhere(place: Path | URL, clock: ManualClock) -> Iterator[Shop]:
    """The same on every database."""
    with open_store(place, clock=clock) as store:
        yield shop(store, clock)


def arms(world: Shop, plan: ExperimentPlan = PLAN) -> tuple[set[DeviceId], set[DeviceId]]:
    drawn = draw(world.store, design(world.store, DIGITS, 3, plan, name=NAME))
    return set(drawn.treatment), set(drawn.control)


def drawn(world: Shop) -> tuple[set[DeviceId], set[DeviceId]]:
    rollout = world.store.rollouts.get(NAME)
    members = {each.device for each in world.store.placements.members(rollout)}
    return members, set(world.store.experiments.kept(NAME))


def status(world: Shop) -> str:
    return status_of(world.store.experiments.get(NAME), world.store.rollouts.get(NAME))


def test_from_its_draw_to_the_rollout_that_follows_no_device_flips_back(everywhere: Shop) -> None:
    world = everywhere
    expected = arms(world)
    world.begin()
    world.check()
    assert drawn(world) == expected
    assert world.with_version(3) == expected[0]
    decider = Decider(world.store)
    for _ in range(3):
        world.sell(BETTER)
        assert decider.run_once() == 0  # However good it looks, it goes on only when somebody decides so.
    reading = see(world.store, NAME).reading
    assert reading.outcome is Outcome.BETTER
    assert reading.difference is not None
    assert reading.difference.low < 0.15 < reading.difference.high
    assert reading.treatment.mean == pytest.approx(0.45, abs=0.01)
    assert (reading.treatment.compared, reading.control.compared) == tuple(map(len, expected))

    decided = decide(world.store, NAME, "ship", actor=ANN, comment="people buy more")
    frozen = decided.decisions[-1]
    assert (frozen.actor, frozen.at_s, frozen.comment) == ("ann", world.clock(), "people buy more")
    assert frozen.figures["difference"]["estimate"] == reading.difference.estimate
    assert (status(world), world.store.rollouts.get(NAME).status) == ("shipped", "running")
    world.check()
    assert world.with_version(3) > expected[0]
    world.sell(BETTER)
    world.clock.advance(HOUR_S)
    while decider.run_once():
        world.check()
        assert world.with_version(3) > expected[0]
    assert set(world.has.values()) == {3}
    # What was seen then is what is shown for good, whatever devices say later.
    world.sell({3: 0.1})
    assert shown_json(world.store, NAME)["figures"] == json.loads(json.dumps(frozen.figures))
    actions = [(each.action, each.actor) for each in world.store.audit.all() if each.object.endswith(NAME)]
    assert ("experiment.create", "ann") in actions
    assert ("experiment.ship", "ann") in actions


def test_stopping_takes_the_candidate_back(world: Shop) -> None:
    world.begin()
    world.check()
    decide(world.store, NAME, "stop", actor=ANN, comment="not worth it")
    assert set(world.check().values()) == {2}
    assert (status(world), world.store.rollouts.get(NAME).status) == ("stopped", "rolled-back")
    with pytest.raises(RefusedError, match="ann decided about experiment digits-3-ab already: to stop"):
        decide(world.store, NAME, "extend", actor=ANN, comment="wait", days=2)
    # Whoever looked before somebody else decided comes too late as well.
    with pytest.raises(RefusedError, match="already: to stop"):
        world.store.experiments.decide(NAME, "ship", actor=ANN, comment="late", figures={})


def test_extending_changes_only_when_to_decide(world: Shop) -> None:
    before = world.begin()
    world.clock.advance(13 * 86400)
    after = decide(world.store, NAME, "extend", actor=ANN, comment="a holiday", days=7)
    assert (after.ends_s - before.ends_s, status(world)) == (6 * 86400, "running")
    for days in (0.0, float("nan"), 90.0, None):
        with pytest.raises(UsageError, match="days"):
            decide(world.store, NAME, "extend", actor=ANN, comment="more", days=days)
    with pytest.raises(UsageError, match="Say why"):
        decide(world.store, NAME, "stop", actor=ANN, comment="  ")


def test_whoever_had_not_seen_the_last_decision_is_told_so_and_decides_nothing(world: Shop) -> None:
    first = world.begin()
    after = decide(world.store, NAME, "extend", actor=ANN, comment="a holiday", days=15, known=0)
    assert after.ends_s > first.ends_s
    for decision, days in (("extend", 3.0), ("stop", None)):
        with pytest.raises(
            OutdatedError, match="Somebody else decided something about experiment digits-3-ab"
        ):
            decide(world.store, NAME, decision, actor=ANN, comment="I too", days=days, known=0)
    assert world.store.experiments.get(NAME) == after
    assert decide(world.store, NAME, "stop", actor=ANN, comment="enough", known=1).final is not None


def test_a_guardrail_that_fails_takes_the_treatment_back(world: Shop) -> None:
    world.begin()
    world.check()
    world.sell(BETTER, errors={3: 0.4})
    assert Decider(world.store).run_once() == 1
    assert status(world) == "rolled-back"
    assert set(world.check().values()) == {2}
    assert "gate errors" in shown_json(world.store, NAME)["reason"]
    with pytest.raises(RefusedError, match="has ended"):
        decide(world.store, NAME, "ship", actor=ANN, comment="but people buy more")
    decide(world.store, NAME, "stop", actor=ANN, comment="errors")
    assert status(world) == "stopped"


def test_guardrails_that_compare_weeks_are_not_read_every_few_seconds(world: Shop) -> None:
    made, decider = world.begin(), Decider(world.store)
    world.check()
    world.clock.advance(10 * 86400)
    world.sell(BETTER)
    assert decider.run_once() == 0
    world.sell(BETTER, errors={3: 0.9})
    world.clock.advance(-3540)  # A minute after the last look.
    assert decider.run_once() == 0
    assert world.store.rollouts.get(made.id).status == "running"
    world.clock.advance(3540)
    assert decider.run_once() == 1


def test_nothing_is_told_of_few_devices_and_nothing_ships_by_it(world: Shop) -> None:
    world.begin(plan=replace(PLAN, least_samples=150))
    world.check()
    world.sell(BETTER)
    told = shown_json(world.store, NAME)["figures"]
    assert (told["outcome"], told["difference"], told["course"]) == ("too little yet", None, [])
    assert (told["treatment"]["compared"], told["treatment"]["mean"]) == (0, None)
    with pytest.raises(RefusedError, match="nothing to ship digits-3-ab by"):
        decide(world.store, NAME, "ship", actor=ANN, comment="I feel it")
    world.sell(BETTER)
    assert see(world.store, NAME).reading.outcome is Outcome.BETTER


def test_arms_that_do_not_match_are_called_so_and_tell_nothing(world: Shop) -> None:
    world.begin()
    world.check()
    treatment, _ = drawn(world)
    world.sell(BETTER, silent=sorted(treatment)[1:])
    seen = see(world.store, NAME).reading
    assert (seen.outcome, seen.difference) == (Outcome.MISMATCH, None)
    assert "find out why devices of one arm say less" in seen.why
    with pytest.raises(RefusedError, match="not alike"):
        decide(world.store, NAME, "ship", actor=ANN, comment="still")


def test_a_device_stays_in_its_arm_whatever_becomes_of_the_candidate_there(world: Shop) -> None:
    world.begin()
    treatment, control = arms(world)
    unlucky = sorted(treatment)[0]
    world.ask(unlucky)
    world.failed[unlucky] = {3}
    world.check()
    assert world.has[unlucky] == 2
    world.sell(BETTER)
    assert drawn(world) == (treatment, control)
    assert see(world.store, NAME).reading.treatment.compared == len(treatment)


def test_where_the_candidate_failed_before_neither_arm_takes_the_device(world: Shop) -> None:
    treatment, control = arms(world)
    some = {sorted(treatment)[0], sorted(control)[0]}
    for device in some:
        world.failed[device] = {3}
    world.begin()
    world.check()
    assert drawn(world) == (treatment - some, control - some)


def test_pinned_and_revoked_devices_are_left_out_and_counted(world: Shop) -> None:
    world.begin()
    world.check()
    treatment, control = drawn(world)
    world.store.placements.pin(sorted(treatment)[0], DIGITS, 2, actor=ANN)
    world.store.devices.revoke(sorted(control)[0], reason="lost")
    world.sell(BETTER)
    seen = see(world.store, NAME).reading
    assert (seen.treatment.pinned, seen.treatment.drawn) == (1, len(treatment))
    assert seen.treatment.compared == len(treatment) - 1
    assert (seen.control.gone, seen.control.compared) == (1, len(control) - 1)


def test_what_a_device_did_before_it_was_drawn_does_not_count(world: Shop) -> None:
    world.begin()
    late = sorted(arms(world)[0])[0]
    world.check(*(name for name in world.names if name != late))
    world.sell(BETTER)
    assert late not in drawn(world)[0]
    world.check(late)
    assert see(world.store, NAME).reading.treatment.compared == len(arms(world)[0]) - 1
    world.sell(BETTER)
    assert see(world.store, NAME).reading.treatment.compared == len(arms(world)[0])


def test_while_it_is_paused_neither_arm_grows(world: Shop) -> None:
    world.begin()
    running = world.store.rollouts.get(NAME)
    world.store.rollouts.happen(NAME, Pause("lunch"), actor=ANN)
    world.check()
    # One that asked just before is not drawn after it either.
    world.store.placements.keep(running, sorted(arms(world)[1])[0])
    assert drawn(world) == (set(), set())
    world.store.rollouts.happen(NAME, Resume(), actor=ANN)
    world.check()
    assert drawn(world) == arms(world)
    # An emergency at the rollout needs no decision first.
    world.store.rollouts.happen(NAME, RollBack("smoke"), actor=ANN)
    assert set(world.check().values()) == {2}
    assert status(world) == "rolled-back"


def test_only_its_audience_is_drawn_and_small_shares_leave_the_rest_alone(world: Shop) -> None:
    for device in world.names[:50]:
        world.store.placements.tag(device, {"north"}, actor=ANN)
    plan = replace(PLAN, treatment=45, control=45, tags=frozenset({"north"}), least_devices=20)
    treatment, control = arms(world, plan)
    assert treatment | control < set(world.names[:50])
    world.begin(plan=plan)
    world.check()
    assert drawn(world) == (treatment, control)
    # A device that loses its tag stays where it is.
    one = sorted(treatment)[0]
    world.store.placements.tag(one, (), actor=ANN)
    assert world.check(one)[one] == 3


def test_a_model_has_one_experiment_or_rollout_at_a_time(world: Shop) -> None:
    world.begin()
    with pytest.raises(RefusedError, match="one rollout or experiment at a time"):
        world.begin(name="another")
    assert [each.id for each in world.store.experiments.all()] == [NAME]
    with pytest.raises(RefusedError, match="under way"):
        world.start(3, HALF)


def test_a_rollout_cannot_be_an_experiment_without_its_record(world: Shop) -> None:
    plan = replace(HALF, steps=(Step("half", 50, control=50), *HALF.steps[1:]))
    with pytest.raises(UsageError, match="umbel experiment start"):
        propose(world.store, DIGITS, 3, plan)


def test_what_could_never_tell_anything_does_not_begin(world: Shop) -> None:
    small = replace(PLAN, treatment=10, control=50)
    with pytest.raises(UsageError, match="The treatment draws"):
        begin(world.store, design(world.store, DIGITS, 3, small), small, actor=ANN)
    with pytest.raises(UsageError, match="kept for 3"):
        design(world.store, DIGITS, 3, PLAN, kept_days=3)


def test_a_metric_that_is_told_with_noise_is_refused(world: Shop) -> None:
    plan = replace(PLAN, metric="confidence", least_effect=0.01)
    world.begin(plan=plan)
    world.check()
    world.sell(BETTER, epsilon=1.0)
    assert see(world.store, NAME).reading.outcome is Outcome.RANDOMIZED
    decide(world.store, NAME, "stop", actor=ANN, comment="choose another metric")
    with pytest.raises(RefusedError, match="only with noise"):
        design(world.store, DIGITS, 3, plan)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("app.sales/predictions", 0.15),
        ("app.sales/day", 30.0),
        ("app.spent", 15.0),
        ("errors", 0.1 / 1.1),
        ("confidence", 0.15),
    ],
)
def test_every_metric_is_a_devices_own_mean(world: Shop, metric: str, expected: float) -> None:
    world.begin(plan=replace(PLAN, metric=metric, least_effect=0.02 * expected, gates=()))
    world.check()
    if metric.endswith("day"):
        world.clock.advance(22 * HOUR_S)
    for _ in range(2):
        world.sell(BETTER, errors={3: 0.1}, amounts=True)
    shown = see(world.store, NAME).reading
    treatment, control = evidence.gather(
        world.store,
        world.store.rollouts.get(NAME),
        world.store.experiments.get(NAME).plan,
        now_s=world.clock(),
    )
    measured = world.store.experiments.get(NAME).plan.measured
    until_s = world.clock() + HOUR_S
    means = [arm.values(measured, until_s=until_s, least=20).mean() for arm in (treatment, control)]
    assert means[0] - means[1] == pytest.approx(expected, rel=0.12)
    if metric in ("errors", "confidence"):
        # All devices of an arm say the same: that is not knowing it exactly.
        assert shown.outcome in (Outcome.WAITING, Outcome.BETTER, Outcome.OPEN)


def test_a_fleet_too_large_to_compare_whole_is_thinned_by_the_draw(
    world: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.begin()
    world.check()
    world.sell(BETTER)
    monkeypatch.setattr(evidence, "SAMPLE", 15)
    seen = see(world.store, NAME).reading
    everybody = arms(world)
    assert (seen.treatment.drawn, seen.control.drawn) == tuple(map(len, everybody))
    assert 0 < seen.treatment.compared < len(everybody[0])
    assert 0 < seen.control.compared < len(everybody[1])


def test_one_device_that_counts_absurdly_much_makes_nothing_sure(world: Shop) -> None:
    world.begin()
    world.check()
    world.sell(BETTER)
    liar = sorted(drawn(world)[0])[0]
    hour_s = int(world.clock()) // HOUR_S * HOUR_S
    of = (liar, ModelName(""), 0, "", "", hour_s)
    world.absorb([Rollup(*of, 1, hour_s + 60, {"app.sales": 2**62}, {})])
    assert see(world.store, NAME).reading.outcome is Outcome.OPEN
    decide(world.store, NAME, "stop", actor=ANN, comment="a liar")
    world.check()
    world.clock.advance(1)
    again = world.begin(plan=replace(PLAN, cap=0.5), name="again")
    world.check()
    world.sell(BETTER)
    world.absorb(
        [Rollup(liar, ModelName(""), 0, "", "", hour_s + HOUR_S, 1, hour_s + 60, {"app.sales": 2**62}, {})]
    )
    assert see(world.store, again.id).reading.outcome is Outcome.BETTER


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"metric": "speed/app.visits"}, "No device reports 'speed'"),
        ({"metric": "app.a/app.b/app.c"}, "metric"),
        ({"metric": "day/app.visits"}, "'day'|counts days"),
        ({"least_effect": 0}, "least effect"),
        ({"least_effect": float("nan")}, "least effect"),
        ({"treatment": 60, "control": 50}, "100 together"),
        ({"treatment": 0}, "treatment"),
        ({"days": 61}, "up to 60"),
        ({"error": 0.7}, "error level"),
        ({"least_devices": 5}, "fewer than 20"),
        ({"least_samples": 0}, "least_samples"),
        ({"cap": -1}, "cap"),
        ({"question": "a\nb"}, "one line"),
        ({"tags": [1]}, "words"),
        ({"speed": 1}, "no setting"),
        ({"days": True}, "wrong type"),
        ({"step": [{"name": "some", "percent": 30}]}, "must reach every device"),
        (
            {"step": [{"name": "a", "percent": 5, "control": 5}, {"name": "all", "percent": 100}]},
            "has a control",
        ),
        ({"metric": None}, "wrong type"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        ExperimentPlan.from_dict(PLAN.to_dict() | change)


def test_a_plan_comes_back_as_it_was_written() -> None:
    for plan in (PLAN, replace(PLAN, tags=frozenset({"lab"}), steps=(), cap=3.0)):
        again = ExperimentPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
        assert again.to_rollout() == plan.to_rollout()
        assert again == replace(plan, steps=plan.following)
    short = ExperimentPlan.from_toml('metric = "errors"\nleast_effect = 0.01')
    assert [step.name for step in short.to_rollout().steps] == ["experiment", "half", "all"]
    assert [gate.name for gate in short.gates] == [
        "failed", "errors", "violations", "latency p95", "estimated_accuracy", "confidence",
    ]  # fmt: skip
