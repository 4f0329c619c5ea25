"""Shadow steps over a store: the candidate is asked beside what answers, answers nobody, and agreement decides."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from sqlalchemy import URL

from rollout_world import ANN, DIGITS, World, sha256
from service_fleet import ManualClock
from umbel_proto.errors import UsageError
from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.response import Response
from umbel_server.rollouts.begin import preview, propose
from umbel_server.rollouts.classes import check_pattern, class_of, fits
from umbel_server.rollouts.decider import Decider, look
from umbel_server.rollouts.gates import AGREEMENT, Evidence, Outcome, Reported, judge
from umbel_server.rollouts.offers import Offer, Offers, Said
from umbel_server.rollouts.plan import DEFAULT_STEPS, Gate, Kind, RolloutPlan, Step
from umbel_server.rollouts.shown import status_json
from umbel_server.rollouts.state import Pause
from umbel_server.store.batches import Arrival
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.store import open_store

NOW_S = 1_800_000_000.0
GATES = (Gate(Kind.FAILED, 0.05), Gate(Kind.LATENCY, 0.1), Gate(Kind.AGREEMENT, 0.05, within=0.2))
PLAN = RolloutPlan(
    steps=(
        Step("beside", 50, least_s=60.0, shadow=True, one_in=7),
        Step("half", 50, least_s=60.0),
        Step("all", 100),
    ),
    gates=GATES,
    least_devices=3,
)
HERE = Said(able=True, shadows={sha256(3): ""})


@pytest.fixture
def world(place: Path | URL) -> Iterator[World]:
    """Forty devices that have digits 2, of which 3 is released and held back; on every database."""
    clock = ManualClock(NOW_S)
    with open_store(place, clock=clock) as opened:
        found = World.with_candidate(opened, clock)
        yield found


def asks(world: World, device: DeviceId, said: Said = HERE, failed: bool = False) -> list[Offer]:
    offers = Offers(world.store.releases, world.store.placements)
    hashes = {sha256(3)} if failed else set()
    return list(offers.for_device(device, {"digits": world.has[device]}, hashes, said))


def shadows(world: World, said: Said = HERE) -> set[DeviceId]:
    """Let every device ask; whom the candidate is to be run on, beside what answers."""
    return {
        device
        for device in world.names
        if any(offer.one_in is not None for offer in asks(world, device, said))
    }


def compare(world: World, agreed: Mapping[DeviceId, int]) -> None:
    """Let devices report 100 comparisons of digits 3, of which so many agreed."""
    hour_s = int(world.clock.now_s) // 3600 * 3600
    rollups = tuple(
        Rollup(device, DIGITS, 3, "fp32", "onnx", hour_s, 1, hour_s + 60, counters, {})
        for device, share in agreed.items()
        for counters in [{"shadow.compared": 100, "shadow.agreed": share}]
    )
    world.store.batches.append(world.names[0], [Arrival(secrets.token_bytes(16), "key", b"h", b"sealed")])
    world.store.rollups.absorb([Verdict(world.store.batches.sealed(limit=1)[0].id, rollups)])


def test_in_a_shadow_step_devices_go_on_with_what_they_have_and_ask_the_candidate_beside(
    world: World,
) -> None:
    expected = preview(world.store, propose(world.store, DIGITS, 3, PLAN))
    made = world.start(3, PLAN)
    beside = shadows(world)
    assert beside == set(expected["beside"])
    assert 8 <= len(beside) <= 32
    [answers, candidate] = asks(world, min(beside))
    assert (answers.release.version, answers.one_in) == (2, None)
    assert (candidate.release.version, candidate.one_in, candidate.within) == (3, 7, 0.2)
    assert set(world.check().values()) == {2}
    assert world.store.placements.members(made) == ()


def test_a_candidate_that_agrees_goes_on_to_the_devices_that_the_dry_run_named(world: World) -> None:
    expected = preview(world.store, propose(world.store, DIGITS, 3, PLAN))
    made, decider = world.start(3, PLAN), Decider(world.store)
    beside = shadows(world)
    shadows(world)
    compare(world, dict.fromkeys(beside, 100))
    assert decider.run_once() == 0  # The step has not lasted long enough.
    world.clock.advance(61)
    assert decider.run_once() == 1
    world.check()
    assert world.with_version(3) == set(expected["half"])
    assert shadows(world) == set()  # Whom nothing answers by it any more has nothing to compare.
    assert world.store.rollouts.events(made.id)[-1].reason == "step beside passed 2 gates"
    # There agreement says nothing, plainly, and holds nothing up.
    verdicts = look(world.store, world.store.rollouts.get(made.id), now_s=world.clock()).verdicts
    told = {verdict.gate: verdict for verdict in verdicts}["agreement"]
    assert told.outcome is Outcome.UNDEFINED
    assert "judged in shadow steps" in told.why


def test_a_candidate_that_disagrees_is_stopped_and_was_never_offered_to_answer(world: World) -> None:
    made = world.start(3, PLAN)
    beside = shadows(world)
    shadows(world)
    compare(world, dict.fromkeys(beside, 60))
    assert Decider(world.store).run_once() == 1
    after = world.store.rollouts.get(made.id)
    assert after.status == "rolled-back"
    assert "gate agreement: agrees with the active version in 60 %" in after.state.reason  # type: ignore[union-attr]
    assert shadows(world) == set()
    assert set(world.check().values()) == {2}
    assert world.store.placements.members(made) == ()


def test_who_cannot_hold_two_versions_is_counted_and_holds_nothing_up(world: World) -> None:
    made, decider = world.start(3, PLAN), Decider(world.store)
    first, second, *rest = sorted(shadows(world))
    asks(world, first, Said(able=True, shadows={sha256(3): "would take 900 MiB"}))
    assert len(asks(world, second, Said())) == 1  # An older umbel, which knows nothing of it.
    for device in rest:
        asks(world, device)
    compare(world, dict.fromkeys(rest, 99))
    world.clock.advance(61)
    assert decider.run_once() == 1
    assert world.store.rollouts.get(made.id).state.step == 1  # type: ignore[union-attr]
    told = status_json(world.store, made, now_s=world.clock())
    assert told["shadows"] == {"asked": len(rest) + 2, "running": len(rest), "unavailable": 2, "failed": 0}
    assert world.store.placements.shadows.of(made.id, first).why == "would take 900 MiB"  # type: ignore[union-attr]


def test_a_candidate_that_fails_where_it_is_only_asked_is_taken_back(world: World) -> None:
    made = world.start(3, PLAN)
    for device in shadows(world):
        assert [offer.release.version for offer in asks(world, device, failed=True)] == [2]
    Decider(world.store).run_once()
    assert "gate failed: it failed on" in world.store.rollouts.get(made.id).state.reason  # type: ignore[union-attr]


def test_a_pause_asks_nobody_new_and_leaves_those_that_were(world: World) -> None:
    made = world.start(3, PLAN)
    first = next(device for device in world.names if len(asks(world, device)) == 2)
    world.store.rollouts.happen(made.id, Pause("lunch"), actor=ANN)
    assert shadows(world) == {first}
    assert not world.store.placements.shadows.ask(made, world.names[-1])


def test_who_has_another_version_than_the_others_is_not_compared(world: World) -> None:
    world.has = dict.fromkeys(world.names, 1)
    made = world.start(3, PLAN)
    assert shadows(world) == set()
    assert world.store.placements.shadows.all(made.id) == ()


def judged(*agreed: int, of: int = 100, errors: int = 0, least: int = 20) -> tuple[Outcome, float | None]:
    counters = [
        {"shadow.compared": of, "shadow.agreed": each, **({"shadow.errors": errors} if errors else {})}
        for each in agreed
    ]
    plan = RolloutPlan(steps=PLAN.steps, gates=GATES[2:], least_devices=3, least_predictions=least)
    [verdict] = judge(plan, Evidence([Reported(each) for each in counters], (), shadow=True))
    return verdict.outcome, verdict.estimate


def test_agreement_waits_for_enough_devices_and_answers() -> None:
    assert judged(100, 100) == (Outcome.OPEN, None)
    assert judged(19, 19, 19, of=19) == (Outcome.OPEN, None)
    assert judged(*[1000] * 9, of=1000) == (Outcome.PASS, 0.0)


def test_an_answer_that_the_candidate_cannot_give_is_no_agreement() -> None:
    assert judged(*[100] * 9, errors=100) == (Outcome.FAIL, 0.5)


def test_what_lies_about_the_minimum_is_not_decided() -> None:
    assert judged(96, 94, 95, 97, 93)[0] is Outcome.OPEN


def test_where_labels_are_hidden_agreement_is_estimated_without_bias() -> None:
    response = Response(2, 1.0)
    other = response.other / 2**64
    told = [round(100_000 * ((1 - other) * share + other * (1 - share))) for share in (0.9, 0.1)]
    shown = Histogram(AGREEMENT, (0.5,), (told[1], told[0]), epsilon=1.0)
    plan = RolloutPlan(steps=PLAN.steps, gates=GATES[2:], least_devices=3)
    devices = [Reported({"shadow.compared": 100_000}, {AGREEMENT: shown})] * 3
    [verdict] = judge(plan, Evidence(devices, (), shadow=True))
    assert verdict.estimate == pytest.approx(0.1, abs=1e-4)


def shadow(**fields: object) -> Step:
    return Step("beside", 10, shadow=True, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: RolloutPlan(steps=(Step("all", 100, shadow=True),), gates=GATES), "no shadow"),
        (lambda: RolloutPlan(steps=(Step("one", 1), shadow(), Step("all", 100)), gates=GATES), "come first"),
        (lambda: RolloutPlan(steps=(shadow(), Step("all", 100))), "judged by agreement"),
        (lambda: RolloutPlan(gates=GATES), "judged by agreement"),
        (lambda: shadow(one_in=0), "asks one in 0"),
        (lambda: Gate(Kind.AGREEMENT, 1.0), "minimum 0"),
        (
            lambda: RolloutPlan.from_toml('[[gate]]\nkind = "errors"\nminimum = 0.9'),
            "Only the gate agreement",
        ),
        (lambda: RolloutPlan.from_toml('[[gate]]\nkind = "agreement"\ntolerance = 0.1'), "has a  minimum"),
        (lambda: check_pattern("arm64"), "no class of devices"),
        (lambda: Step("pi", 5, classes=frozenset({"A B"})), "no class of devices"),
    ],
)
def test_a_plan_that_could_prove_nothing_is_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        make()


def test_a_plan_is_as_it_was_written() -> None:
    text = """
[[step]]
name = "beside"
percent = 10
shadow = true
one_in = 5
classes = ["aarch64-*"]

[[step]]
name = "all"
percent = 100
"""
    plan = RolloutPlan.from_toml(text)
    assert plan.gates[-1] == Gate(Kind.AGREEMENT, 0.03)
    assert RolloutPlan.from_dict(plan.to_dict()) == plan
    assert RolloutPlan.from_dict(PLAN.to_dict()) == PLAN


def test_the_error_level_is_shared_by_what_can_speak_only() -> None:
    # In the shadow: failed and agreement. In the step that answers: failed and latency.
    assert PLAN.gate_error == PLAN.error / 4
    assert RolloutPlan().gate_error == RolloutPlan().error / (6 * (len(DEFAULT_STEPS) - 1))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"arch": "aarch64", "memory_mib": 3792, "engine": "onnx"}, "aarch64-4g-onnx"),
        ({"arch": "x86_64", "memory_mib": 490, "engine": "onnx+tflite"}, "x86_64-512m-onnx+tflite"),
        ({"arch": "odd arch-1", "memory_mib": 0}, "odd_arch_1-unknown-unknown"),
        ({}, "unknown-unknown-unknown"),
    ],
)
def test_a_class_is_what_a_device_says_it_is_in_one_word(facts: dict[str, str | int], expected: str) -> None:
    assert class_of(facts) == expected
    assert fits(expected, ["*-*-*"])
    assert not fits(expected, ["mips-*", "*-9g-*"])


def test_a_step_reaches_the_classes_it_asks_for_and_reports_tell_them_apart(world: World) -> None:
    small, large = '{"arch":"armv7l","memory_mib":512}', '{"arch":"aarch64","memory_mib":4000}'
    for number, device in enumerate(world.names):
        world.store.placements.state_facts(device, large if number % 2 else small)
    steps = (Step("large", 100, classes=frozenset({"aarch64-*"})), Step("all", 100))
    plan = RolloutPlan(steps=steps, least_devices=3)
    expected = preview(world.store, propose(world.store, DIGITS, 3, plan))
    made = world.start(3, plan)
    world.check()
    assert world.with_version(3) == set(expected["large"]) == set(world.names[1::2])
    # What a device becomes later does not take back what it has.
    world.store.placements.state_facts(world.names[1], small)
    assert world.check()[world.names[1]] == 3
    classes = status_json(world.store, made, now_s=world.clock())["classes"]
    assert {each["class"]: each["devices"]["running"] for each in classes} == {
        "aarch64-4g-unknown": 19,
        "armv7l-512m-unknown": 1,
    }
