"""What gates say of a candidate: of one that is worse, of one that is not, and of one that too little is known of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from umbel_proto.errors import UsageError
from umbel_proto.histogram import AMOUNT, CONFIDENCE, LATENCY_US, Histogram
from umbel_proto.privacy.response import Response
from umbel_server.rollouts.gates import Evidence, Outcome, Reported, Verdict, check_metrics, judge
from umbel_server.rollouts.plan import Gate, Kind, OnFailure, RolloutPlan, Step

CHANCE = np.random.default_rng()


@pytest.fixture(autouse=True)
def _the_same_chance_whatever_ran_before() -> None:
    CHANCE.bit_generator.state = np.random.default_rng(7).bit_generator.state


def plan(*gates: Gate, **fields: object) -> RolloutPlan:
    return RolloutPlan(gates=gates, **fields)  # type: ignore[arg-type]


def only(found: Sequence[Verdict]) -> Verdict:
    (verdict,) = found
    return verdict


def fast(slower: float = 1.0, *, spread: float = 0.3, count: int = 200) -> list[Reported]:
    """Devices of all speeds that predict 100 times each, with a latency that varies."""
    found = []
    for speed in CHANCE.lognormal(np.log(300), spread, count):
        times = CHANCE.lognormal(np.log(speed * slower), 0.3, 100)
        histogram = Histogram.empty("latency_us", LATENCY_US).observe(times)
        found.append(Reported({"predictions": 100}, {"latency_us": histogram}))
    return found


def counted(rate: float, name: str, count: int, *, of: str = "predictions", n: int = 500) -> list[Reported]:
    return [Reported({of: n, name: int(CHANCE.binomial(n, rate))}) for _ in range(count)]


LATENCY = Gate(Kind.LATENCY, 0.10)


def test_a_candidate_that_is_30_percent_slower_fails() -> None:
    verdict = only(judge(plan(LATENCY), Evidence(fast(1.3), fast())))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.estimate == pytest.approx(0.3, abs=0.12)
    assert "latency rose by" in verdict.why


def test_a_candidate_that_is_as_fast_passes() -> None:
    candidate, control = fast(count=600), fast(count=600)
    assert only(judge(plan(LATENCY), Evidence(candidate, control))).outcome is Outcome.PASS


def test_a_candidate_that_is_faster_passes() -> None:
    assert only(judge(plan(LATENCY), Evidence(fast(0.5), fast()))).outcome is Outcome.PASS


def test_a_few_devices_do_not_tell_10_percent() -> None:
    verdict = only(judge(plan(LATENCY), Evidence(fast(count=6), fast(count=6))))
    assert verdict.outcome is Outcome.OPEN
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low < 0.1 < verdict.high


def test_feedback_that_agrees_5_points_less_fails() -> None:
    gate = Gate(Kind.METRIC, 0.02, metric="feedback.agreed/feedback")
    bad, good = (counted(rate, "feedback.agreed", 150, of="feedback") for rate in (0.9, 0.95))
    assert only(judge(plan(gate), Evidence(bad, good))).outcome is Outcome.FAIL
    assert only(judge(plan(gate), Evidence(good, bad))).outcome is Outcome.PASS


def test_a_metric_of_which_less_is_better_fails_when_there_is_more() -> None:
    gate = Gate(Kind.METRIC, 1.0, metric="app.wait_s", higher_is_better=False)
    slow, quick = (
        [
            Reported(
                histograms={
                    "app.wait_s": Histogram.empty("app.wait_s", AMOUNT).observe(CHANCE.gamma(9, s, 50))
                }
            )
            for _ in range(80)
        ]
        for s in (1.0, 0.5)
    )
    assert only(judge(plan(gate), Evidence(slow, quick))).outcome is Outcome.FAIL
    assert only(judge(plan(gate), Evidence(quick, slow))).outcome is Outcome.PASS


@pytest.mark.parametrize(("kind", "name"), [(Kind.ERRORS, "errors"), (Kind.VIOLATIONS, "contract.age.range")])
def test_more_errors_or_violations_fail(kind: Kind, name: str) -> None:
    gate = Gate(kind, 0.01)
    bad, good = counted(0.05, name, 50), counted(0.001, name, 50)
    assert only(judge(plan(gate), Evidence(bad, good))).outcome is Outcome.FAIL
    assert only(judge(plan(gate), Evidence(good, good))).outcome is Outcome.PASS


def test_no_error_at_all_on_few_predictions_is_no_proof() -> None:
    gate = Gate(Kind.ERRORS, 0.001)
    few, many = (counted(0.0, "errors", 5, n=n) for n in (20, 100_000))
    assert only(judge(plan(gate), Evidence(few, few))).outcome is Outcome.OPEN
    assert only(judge(plan(gate), Evidence(many, many))).outcome is Outcome.PASS


@pytest.mark.parametrize("moved", [0.6, 0.95])
def test_confidence_that_moves_either_way_fails(moved: float) -> None:
    gate = Gate(Kind.CONFIDENCE, 0.05)
    assert only(judge(plan(gate), Evidence(sure(moved), sure(0.8)))).outcome is Outcome.FAIL
    assert only(judge(plan(gate), Evidence(sure(0.8), sure(0.8)))).outcome is Outcome.PASS


def sure(center: float, *, count: int = 40, epsilon: float | None = None) -> list[Reported]:
    """Devices whose confidences lie around a center, each 100 times; randomized, if an epsilon is stated."""
    empty = Histogram.empty("confidence", CONFIDENCE)
    found = []
    for _ in range(count):
        told = empty.observe(CHANCE.normal(center, 0.02, 100).clip(0, 1))
        if epsilon is not None:
            # docs/spec/telemetry.md, section 5: a cell stays, or becomes any other one.
            other = Response(len(told.counts), epsilon).other / 2**64
            chances = np.full((len(told.counts),) * 2, other)
            np.fill_diagonal(chances, 1 - other * (len(told.counts) - 1))
            moved = sum(CHANCE.multinomial(n, row) for n, row in zip(told.counts, chances, strict=True))
            told = Histogram("confidence", CONFIDENCE, tuple(map(int, moved)), epsilon=epsilon)
        found.append(Reported({"predictions": 100}, {"confidence": told}))
    return found


ESTIMATED = Gate(Kind.ESTIMATED, 0.02)


def test_a_candidate_that_promises_5_points_less_accuracy_fails_and_one_that_promises_more_passes() -> None:
    verdict = only(judge(plan(ESTIMATED), Evidence(sure(0.85), sure(0.90))))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.estimate == pytest.approx(0.05, abs=0.01)
    assert "estimated accuracy fell by 5" in verdict.why
    assert "tolerance 2 points, on 40 devices against 40" in verdict.why
    assert only(judge(plan(ESTIMATED), Evidence(sure(0.95), sure(0.90)))).outcome is Outcome.PASS


def test_the_accuracy_that_randomized_confidences_promise_is_estimated_without_bias() -> None:
    verdict = only(
        judge(
            plan(ESTIMATED), Evidence(sure(0.80, count=600, epsilon=4.0), sure(0.90, count=600, epsilon=4.0))
        )
    )
    assert verdict.outcome is Outcome.FAIL
    assert verdict.estimate == pytest.approx(0.10, abs=0.02)
    # As they were told, noise and all, they would lie half as far apart.
    assert verdict.low is not None
    assert verdict.low > 0.05


def test_a_gate_of_confidences_holds_nothing_up_where_the_model_has_none() -> None:
    silent, gates = counted(0.0, "errors", 50), plan(ESTIMATED, Gate(Kind.CONFIDENCE, 0.1))
    said = judge(gates, Evidence(silent, silent))
    assert [verdict.outcome for verdict in said] == [Outcome.UNDEFINED] * 2
    assert "tells how sure it is" in said[0].why
    # A candidate that stopped telling what the version before tells is no such case, and few devices prove nothing.
    for evidence in (Evidence(silent, sure(0.9)), Evidence(silent[:4], silent)):
        assert {verdict.outcome for verdict in judge(gates, evidence)} == {Outcome.OPEN}


def test_a_plan_without_gates_has_those_that_see_accuracy() -> None:
    kinds = {gate.kind: gate.tolerance for gate in RolloutPlan().gates}
    assert (kinds[Kind.ESTIMATED], kinds[Kind.CONFIDENCE]) == (0.02, 0.10)
    shadow = RolloutPlan.from_toml(
        "[[step]]\nname = 'a'\npercent = 9\nshadow = true\n[[step]]\nname = 'b'\npercent = 100"
    )
    assert {gate.kind: gate.tolerance for gate in shadow.gates} == {**kinds, Kind.AGREEMENT: 0.03}


def test_devices_that_reported_too_little_do_not_count() -> None:
    control = counted(0.0, "errors", 50)
    candidate = counted(1.0, "errors", 50, n=9)  # 18 cases each, and 20 are asked for.
    verdict = only(judge(plan(Gate(Kind.ERRORS, 0.01)), Evidence(candidate, control)))
    assert (verdict.outcome, verdict.devices, verdict.control) == (Outcome.OPEN, 0, 50)
    assert "5 of each are needed" in verdict.why


def test_randomized_or_missing_histograms_leave_a_gate_open() -> None:
    silent = counted(0.0, "errors", 50)
    assert only(judge(plan(LATENCY), Evidence(silent, silent))).outcome is Outcome.OPEN


def test_a_candidate_that_fails_on_devices_fails() -> None:
    gate = Gate(Kind.FAILED, 0.05)

    def said(admitted: int, failed: int) -> Outcome:
        return only(judge(plan(gate), Evidence((), (), admitted, failed))).outcome

    assert said(4, 4) is Outcome.OPEN
    assert said(5, 5) is Outcome.FAIL
    assert said(10, 1) is Outcome.OPEN
    assert said(100, 3) is Outcome.PASS
    assert said(1000, 100) is Outcome.FAIL


def test_a_good_candidate_is_stopped_no_more_often_than_stated() -> None:
    """500 rollouts of a candidate like the version before, through four gates and six looks each: at most 5 % fail.

    More than 40 alarms at a true rate of 5 % have chance 1e-3.
    """
    gates = (Gate(Kind.ERRORS, 0.0), Gate(Kind.VIOLATIONS, 0.0))
    tried = RolloutPlan(steps=(Step("half", 50), Step("all", 100)), gates=gates)
    alarms = 0
    for _ in range(500):
        rates = CHANCE.beta(1, 30, 40)
        totals = np.zeros((2, 40), np.int64)
        for look in range(1, 7):
            totals += CHANCE.binomial(50, rates, (2, 40))
            said = [
                Reported({"predictions": 50 * look, "errors": int(e), "contract.x": int(v)})
                for e, v in totals.T
            ]
            found = judge(tried, Evidence(said[:20], said[20:]))
            if any(verdict.outcome is Outcome.FAIL for verdict in found):
                alarms += 1
                break
    assert alarms <= 40


def test_the_error_level_is_shared_by_all_gates_of_all_steps() -> None:
    tried = RolloutPlan()
    assert tried.gate_error * len(tried.gates) * (len(tried.steps) - 1) == pytest.approx(0.05)


def test_a_metric_that_no_device_reports_is_refused() -> None:
    with pytest.raises(UsageError, match="No device reports 'sales'"):
        check_metrics(plan(Gate(Kind.METRIC, 0, metric="sales")))


def test_a_plan_comes_back_as_it_was_written() -> None:
    tried = RolloutPlan(
        steps=(Step("lab", 100, frozenset({"lab", "b"}), 60.0, 7200.0), Step("all", 100)),
        gates=(LATENCY, Gate(Kind.METRIC, 0.5, metric="app.a/app.b", higher_is_better=False)),
        rate=7,
        error=0.01,
        on_failure=OnFailure.PAUSE,
    )
    assert RolloutPlan.from_dict(tried.to_dict()) == tried


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed = 1", "'speed' is no setting of a rollout"),
        ("rate = 0", "choose 1 or more"),
        ("rate = true", "wrong type"),
        ("rate = 1.5", "wrong type"),
        ("error = 0.9", "below 0.5"),
        ("least_devices = 1", "2 or more"),
        ('on_failure = "pray"', "choose one of roll-back, pause"),
        ("step = []", "choose 1 to 20"),
        ("step = [1]", "must be a table"),
        ("[[step]]\nname = 'a'", "a name and a percent"),
        ("[[step]]\nname = 'a'\npercent = 50", "must reach every device"),
        ("[[step]]\nname = 'a'\npercent = 0", "above 0, up to 100"),
        ("[[step]]\nname = 'a'\npercent = 100\ntags = [1]", "are words"),
        ("[[step]]\nname = 'A B'\npercent = 100", "is not a name"),
        ("[[step]]\nname = 'a'\npercent = 100\nhours = 2\nlongest_hours = 1", "ends before it may"),
        ("[[gate]]\nkind = 'mood'", "choose one of errors"),
        ("[[gate]]\nkind = 'errors'\ntolerance = -1", "choose 0 or more"),
        ("[[gate]]\nkind = 'errors'\n[[gate]]\nkind = 'errors'", "are not all different"),
        ("[[gate]]\nkind = 'metric'", "if it is of that kind"),
        ("[[gate]]\nkind = 'latency'\npercentile = 100", "between 0 and 100"),
        ("rate =", "is not TOML"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RolloutPlan.from_toml(text)
