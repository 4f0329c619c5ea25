"""How often a model is right, how it treats cohorts, how devices run it: against scipy, fairlearn, and raw rows."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from model_packages import first
from monitor_world import DAY_S, Reporters
from rollout_world import DIGITS
from service_fleet import ManualClock, make_fleet
from umbel_proto.errors import UsageError
from umbel_proto.histogram import CONFIDENCE, LATENCY_US, MAX_COUNT, Histogram
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.response import Response
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.commands import app
from umbel_server.monitor.fairness import fairness
from umbel_server.monitor.operations import Ending, operations, quantiles, training
from umbel_server.monitor.performance import BLIND, estimated, performance
from umbel_server.monitor.rates import Rate, gap, rate, wilson
from umbel_server.monitor.suppress import shown
from umbel_server.store.reports import Report


def report(
    number: int, counters: dict[str, int], *histograms: Histogram, tags: frozenset[str] = frozenset()
) -> Report:
    return Report(DeviceId(f"device-{number:03d}"), counters, {each.name: each for each in histograms}, tags)


def binary(value: float, n: int) -> Rate:
    return Rate(value, *wilson(value, n), n, n, 1)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (56, 70), (999, 1000), (12, 12)])
def test_the_interval_of_a_rate_is_scipys_wilson(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_the_interval_of_a_gap_is_that_of_newcombes_table_2(
    a: tuple[int, int], b: tuple[int, int], low: float, high: float
) -> None:
    found = gap(binary(a[0] / a[1], a[1]), binary(b[0] / b[1], b[1]))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_a_rate_over_devices_that_differ_is_less_sure_and_still_right() -> None:
    chance = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        own = chance.beta(8, 2, 60)
        found = rate((int(chance.binomial(100, each)), 100) for each in own)
        assert found is not None
        held += found.low <= 0.8 <= found.high
    assert held >= stats.binom.ppf(1e-4, 300, 0.93)
    assert found.worth < found.counted / 3


def test_who_tells_of_more_hits_than_values_or_of_huge_counts_is_not_the_rate() -> None:
    honest = [(90, 100)] * 50
    liars = [(MAX_COUNT, 1), (-5, 10), (0, 0), (0, MAX_COUNT)]
    found = rate([*honest, *liars])
    assert found is not None
    assert found.value == pytest.approx(0.9 * 50 / 55)
    assert rate(liars[:3]) is None


def test_accuracy_without_labels_is_what_cbpe_makes_of_the_confidences_themselves() -> None:
    """NannyML's CBPE: of each row, the chance that its label is right is its calibrated probability."""
    chance = np.random.default_rng(2)
    told, rows, right = [], [], []
    for _ in range(40):
        confidence = np.clip(chance.beta(6, 1.2, 500), 0.1, 0.999)
        rows.append(confidence)
        right.append(chance.random(500) < confidence)
        told.append(Histogram.empty("confidence", CONFIDENCE).observe(confidence))
    found = estimated(told)
    assert found is not None
    assert found.value == pytest.approx(float(np.mean(rows)), abs=0.002)
    assert found.low < float(np.mean(right)) < found.high or abs(found.value - np.mean(right)) < 0.01
    assert estimated([]) is None
    assert estimated([Histogram.empty("confidence", CONFIDENCE)]) is None


def test_randomized_confidences_promise_the_same_less_surely() -> None:
    chance = np.random.default_rng(3)
    shares = (
        np.bincount(np.searchsorted(CONFIDENCE, chance.beta(6, 1.2, 100_000), side="right"), minlength=24)
        / 1e5
    )
    noise = Response(24, 2.0).other / 2**64
    plain = [
        Histogram("confidence", CONFIDENCE, tuple(map(int, chance.multinomial(500, shares))))
        for _ in range(60)
    ]
    hidden = [
        Histogram(
            "confidence",
            CONFIDENCE,
            tuple(map(int, chance.multinomial(500, noise + (1 - 24 * noise) * shares))),
            0.0,
            2.0,
        )
        for _ in range(60)
    ]
    before, after = estimated(plain), estimated(hidden)
    assert before is not None
    assert after is not None
    assert after.low <= before.value <= after.high
    assert after.high - after.low > 2 * (before.high - before.low)


def test_a_model_that_became_unsure_promises_less_than_when_it_was_made() -> None:
    sure = Histogram.empty("confidence", CONFIDENCE).observe(np.full(5000, 0.95))
    reports = [
        report(
            number,
            {"feedback": 20, "feedback.agreed": 16, "review.resolved": 10, "review.changed": 4},
            Histogram.empty("confidence", CONFIDENCE).observe(np.full(100, 0.85)),
        )
        for number in range(20)
    ]
    found = performance(reports, sure)
    assert found.change is not None
    assert found.change.high < -0.05
    assert found.realized is not None
    assert (found.realized.value, found.realized.devices) == (pytest.approx(0.8), 20)
    assert found.people is not None
    assert found.people.value == pytest.approx(0.6)
    assert found.calibration is not None
    assert BLIND in found.blind
    nothing = performance([])
    assert (nothing.realized, nothing.estimated, nothing.blind) == (None, None, ())


# Cohorts.


def cohort_rows(seed: int) -> tuple[list[Report], list[Report], np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Devices of two cohorts with binary answers, as reports and as the raw rows they are of."""
    chance = np.random.default_rng(seed)
    models, own, truth, said, of = [], [], [], [], []
    for number in range(60):
        cohort = "north" if number < 25 else "south"
        right = chance.random(80) < 0.5
        given = np.where(chance.random(80) < (0.75 if cohort == "north" else 0.95), right, ~right)
        counts = {f"label.{each}": int((given == each).sum()) for each in (0, 1)}
        agreed = int((given == right).sum())
        pairs = {
            f"app.truth.{t}.{p}": int(((right == t) & (given == p)).sum()) for t in (0, 1) for p in (0, 1)
        }
        tags = frozenset({cohort})
        models.append(report(number, {**counts, "feedback": 80, "feedback.agreed": agreed}, tags=tags))
        own.append(report(number, pairs, tags=tags))
        truth.append(right)
        said.append(given)
        of.append(np.full(80, cohort))
    return models, own, np.concatenate(truth), np.concatenate(said), np.concatenate(of)


def test_the_rates_of_cohorts_are_those_of_fairlearn() -> None:
    models, own, truth, said, of = cohort_rows(1)
    found = fairness(models, own, labels=2, label=1, least=10, matters=0.03)
    frame = MetricFrame(
        metrics={
            "selection rate": selection_rate,
            "true positive rate": true_positive_rate,
            "false positive rate": false_positive_rate,
        },
        y_true=truth,
        y_pred=said,
        sensitive_features=of,
    )
    lines = {(line.cohort, line.metric): line for line in found.lines}
    for metric in ("selection rate", "true positive rate", "false positive rate"):
        north, south = lines["north", metric], lines["south", metric]
        assert north.own == south.others == pytest.approx(frame.by_group[metric]["north"])
        assert south.own == north.others == pytest.approx(frame.by_group[metric]["south"])
    findings = {line.metric for line in found.lines if line.finding}
    assert findings == {"accuracy", "true positive rate", "false positive rate"}
    assert found.hidden == 0


def test_a_cohort_that_is_everybody_is_compared_with_nobody_and_said_to_be() -> None:
    models, own, *_ = cohort_rows(1)
    everywhere = [replace(each, tags=each.tags | {"all"}) for each in models]
    found = fairness(everywhere, own, labels=2, label=1, least=10, matters=0.03)
    assert {line.cohort for line in found.lines} == {"north", "south"}
    assert found.lines == fairness(models, own, labels=2, label=1, least=10, matters=0.03).lines
    assert found.hidden == 0
    assert any("Cohort all is every device" in each for each in found.blind)


def test_cohorts_that_are_treated_alike_are_rarely_a_finding() -> None:
    chance = np.random.default_rng(5)
    false = 0
    for _ in range(150):
        reports = [
            report(
                number,
                {"label.0": (hits := int(chance.binomial(50, 0.3))), "label.1": 50 - hits},
                tags=frozenset({f"c{number % 5}"}),
            )
            for number in range(100)
        ]
        found = fairness(reports, [], labels=2, label=1, least=10, matters=0.0)
        false += any(line.finding for line in found.lines)
    assert false <= stats.binom.isf(1e-4, 150, 0.05)


def test_of_randomized_labels_no_selection_rate_is_made() -> None:
    hidden = Histogram("label", (0.5,), (50, 50), 0.0, 0.5)
    reports = [report(number, {}, hidden, tags=frozenset({f"c{number % 2}"})) for number in range(40)]
    found = fairness(reports, [], labels=2, label=1, least=10, matters=0.03)
    assert all(line.own is None for line in found.lines)


class Counted(dict[str, int]):
    """Counters that count how often they are read."""

    reads = 0

    def get(self, key: str, default: int = 0) -> int:  # type: ignore[override]
        Counted.reads += 1
        return super().get(key, default)


def test_what_a_device_told_is_read_once_however_many_cohorts_there_are() -> None:
    def reads(cohorts: int) -> int:
        rows = [
            Report(
                DeviceId(f"d{number}"),
                Counted({"label.0": 40, "label.1": 60, "feedback": 9, "feedback.agreed": 8}),
                {},
                frozenset({f"c{number % cohorts}"}),
            )
            for number in range(120)
        ]
        Counted.reads = 0
        assert fairness(rows, [], labels=2, label=1, least=10, matters=0.03).lines
        return Counted.reads

    assert reads(2) == reads(8) > 0


def test_confidences_that_are_randomized_differently_are_no_calibration() -> None:
    rows = [
        Report(
            DeviceId(f"d{number}"),
            {},
            {"confidence": Histogram("confidence", CONFIDENCE, (5,) * 24, epsilon=1.0 + number % 2)},
            frozenset({"c"} if number < 30 else ()),
        )
        for number in range(60)
    ]
    with pytest.raises(UsageError, match="different epsilons"):
        fairness(rows, [], labels=2, label=1, least=10, matters=0.03)


def test_a_label_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="labels 0 to 1"):
        fairness([], [], labels=2, label=2, least=10, matters=0.03)


def test_a_cohort_of_one_is_hidden_and_so_is_what_would_give_it_away() -> None:
    everybody = frozenset(map(str, range(40)))
    cohorts = {
        "one": frozenset({"0"}),
        "half": frozenset(map(str, range(1, 20))),
        "rest": frozenset(map(str, range(20, 40))),
    }
    # The two halves, taken off everybody, are the one device.
    assert shown(cohorts, everybody, 5) == {"rest"}
    assert shown({"nearly all": everybody - {"7"}}, everybody, 5) == frozenset()
    assert shown(
        {"a": frozenset(map(str, range(12))), "b": frozenset(map(str, range(14)))}, everybody, 5
    ) == {"b"}
    assert shown({"half": frozenset(map(str, range(20)))}, everybody, 5) == {"half"}
    # Everybody less the larger is one device, although both together are everybody.
    both = {"nearly all": everybody - {"7"}, "few": frozenset(map(str, range(10)))}
    assert shown(both, everybody, 5) == {"few"}


@given(
    st.lists(st.sets(st.integers(0, 29), max_size=30), max_size=6),
    st.integers(2, 8),
)
@settings(max_examples=150, deadline=None)
def test_nothing_shown_and_no_difference_of_two_is_of_few_devices(groups: list[set[int]], least: int) -> None:
    everybody = frozenset(map(str, range(30)))
    cohorts = {f"c{i}": frozenset(map(str, group)) for i, group in enumerate(groups)}
    open_ = shown(cohorts, everybody, least)
    sets = [everybody, *(cohorts[name] for name in open_)]
    assert all(len(each) >= least for each in sets)
    assert all(not 0 < len(a - b) < least for a in sets for b in sets if b < a)
    rest = everybody.difference(*(cohorts[name] for name in open_)) if open_ else everybody
    assert not 0 < len(rest) < least


# Operations.


def slow(number: int, us: float) -> Report:
    times = us * (1 + np.arange(100) / 1000)
    return report(
        number,
        {"predictions": 100, "errors": 1},
        Histogram.empty("latency_us", LATENCY_US).observe(times),
    )


def test_the_quantiles_of_latency_are_those_of_all_devices_together() -> None:
    chance = np.random.default_rng(1)
    values = [chance.lognormal(6, 0.5, 400) for _ in range(20)]
    reports = [
        report(number, {}, Histogram.empty("latency_us", LATENCY_US).observe(each))
        for number, each in enumerate(values)
    ]
    found = quantiles(reports, "latency_us")
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        # A cell is 33 % wide.
        assert found[name] == pytest.approx(np.quantile(np.concatenate(values), q), rel=0.17)
    assert quantiles([], "latency_us") == {}


def test_a_device_that_tells_nonsense_is_named_and_changes_no_figure() -> None:
    honest = [slow(number, 300) for number in range(30)]
    energy = [report(number, {"energy_rapl_uj": 5_000_000}) for number in range(30)]
    huge = (*(0,) * (len(LATENCY_US)), MAX_COUNT)
    liar = report(
        30, {"predictions": MAX_COUNT, "errors": MAX_COUNT}, Histogram("latency_us", LATENCY_US, huge, 1e300)
    )
    wild = report(29, {"energy_rapl_uj": MAX_COUNT, "delivery.bytes": MAX_COUNT})
    more = {
        "devices": [],
        "waiting": 0,
        "rejected": 0,
        "endings": [Ending("b", 9.0), Ending("a", 5.0)],
        "now_s": 0.0,
    }
    good = operations(honest, energy, **more)  # type: ignore[arg-type]
    bad = operations([*honest, liar], [*energy, wild], **more)  # type: ignore[arg-type]
    assert bad.odd == ("device-029", "device-030")
    assert good.latency_us == pytest.approx(bad.latency_us)
    assert bad.predictions == good.predictions - 100
    assert bad.delivered_bytes == 0
    assert good.errors is not None
    assert good.errors.value == pytest.approx(1 / 101)
    assert good.energy is not None
    assert good.energy.joules == pytest.approx(50.0)
    assert "RAPL" in good.energy.method
    assert [each.what for each in good.endings] == ["a", "b"]


def test_the_energy_of_a_training_is_the_median_devices_own_mean() -> None:
    def told(number: int, uj: int, trainings: int) -> Report:
        return report(number, {"round.energy_rapl_uj": uj, "round.trainings": trainings})

    own = [told(number, 2_000_000 * (number + 1), number + 1) for number in range(4)]
    own += [told(4, 90_000_000, 1), told(5, MAX_COUNT, 1), told(6, 5, 0), report(7, {"energy_rapl_uj": 5})]
    found = training(own)
    assert found is not None
    assert (found.joules, found.devices, found.trainings) == (pytest.approx(2.0), 5, 11)
    assert "RAPL" in found.method
    assert training(own[-2:]) is None


def test_without_energy_counters_no_cost_is_made_up() -> None:
    found = operations([slow(1, 300)], [], devices=[], waiting=2, rejected=1, endings=[], now_s=0.0)
    assert (found.energy, found.waiting, found.rejected, found.gave_up) == (None, 2, 1, ())
    assert operations(
        [report(1, {"model.fell_back": 1})], [], devices=[], waiting=0, rejected=0, endings=[], now_s=0.0
    ).gave_up == ("device-001",)


# The commands.


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    made = make_fleet(tmp_path / "garden")
    made.package(b"\1" * 32).write_bytes(first())
    with made.open_store() as store:
        store.releases.publish(DIGITS, 1, sha256=b"\1" * 32, size=len(first()))
        world = Reporters(store, ManualClock(time.time()), count=40)
        world.tag("north", world.names[:18])
        world.tag("lone", world.names[:1])
        for number, device in enumerate(world.names):
            for ago_s in (2 * DAY_S, 9 * DAY_S):
                hits = 30 if number < 18 else 10
                world.tell(
                    device,
                    Histogram.empty("confidence", CONFIDENCE).observe(np.full(100, 0.9)),
                    Histogram.empty("latency_us", LATENCY_US).observe(np.full(100, 500.0)),
                    ago_s=ago_s,
                    counters={
                        "predictions": 100,
                        "label.3": hits,
                        "label.1": 100 - hits,
                        "feedback": 10,
                        "feedback.agreed": 9,
                    },
                )
        world.arrive()
    return made


def told(fleet: FleetDir, *words: str) -> tuple[str, dict[str, object]]:
    outs = []
    for more in ((), ("--json",)):
        run = CliRunner().invoke(app, [*words, "--fleet", str(fleet.path), *more], catch_exceptions=False)
        assert run.exit_code == 0, run.output
        outs.append(run.output)
    return outs[0], json.loads(outs[1])


def test_the_commands_tell_the_same_to_people_and_programs(fleet: FleetDir) -> None:
    text, body = told(fleet, "performance", DIGITS)
    assert "90.0%" in text
    assert BLIND in text
    assert body["now"]["realized"]["value"] == pytest.approx(0.9)  # type: ignore[index]
    text, body = told(fleet, "fairness", DIGITS, "--label", "3")
    found = {(line["cohort"], line["metric"]): line for line in body["now"]["lines"]}  # type: ignore[index]
    assert {cohort for cohort, _ in found} == {"north"}
    assert found["north", "selection rate"]["own"] == pytest.approx(0.3)
    assert found["north", "selection rate"]["finding"]
    assert "FINDING" in text
    assert "1 cohorts are hidden" in text
    text, body = told(fleet, "operations", DIGITS)
    assert "timestamp ends" in text or "server ends" in text
    assert body["now"]["predictions"] == 4000  # type: ignore[index]


def test_a_label_that_the_model_does_not_have_is_refused_in_a_sentence(fleet: FleetDir) -> None:
    with pytest.raises(UsageError, match="no label 'cat'; it has 0, 1, 2"):
        CliRunner().invoke(
            app, ["fairness", DIGITS, "--label", "cat", "--fleet", str(fleet.path)], catch_exceptions=False
        )
