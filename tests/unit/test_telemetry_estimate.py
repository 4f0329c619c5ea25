"""Of randomized reports a fleet sees estimates with intervals, summed over devices; never the noise as if it were counts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from service_fleet import PlainDevice, batch, make_fleet, window
from umbel._telemetry.columns import Columns, Watched
from umbel._telemetry.scope import Scope
from umbel._telemetry.window import PredictionWindow
from umbel_proto.errors import UsageError
from umbel_proto.histogram import LATENCY_US, Histogram
from umbel_proto.prg import Keystream
from umbel_proto.privacy.response import Response
from umbel_server.cli import fleet as app
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.estimate import cells, quantile
from umbel_server.monitor.opener import Opener
from umbel_server.monitor.report import telemetry, together
from umbel_server.store.batches import Arrival
from umbel_server.store.store import Store

DEVICES, EACH = 12, 2000
SCOPE = Scope(10, {"labels": 2.0, "latency_us": 4.0})
TRUTH = np.array([0, 30, 0, 10, 10, 0, 40, 0, 0, 10]) * EACH // 100


def stream(seed: int) -> Keystream:
    return Keystream(hashlib.sha256(b"%d" % seed).digest(), mode="ctr")


def hidden(histogram: Histogram, epsilon: float, seed: int = 1) -> Histogram:
    counts = Response(len(histogram.counts), epsilon).randomize(histogram.counts, stream(seed))
    return Histogram(histogram.name, histogram.edges, counts, epsilon=epsilon)


class Fleet:
    """A fleet whose devices report what they are told to."""

    def __init__(self, path: Path) -> None:
        self.directory: FleetDir = make_fleet(path)
        self.store: Store = self.directory.open_store()
        self.sent = 0

    def device(self, name: str) -> PlainDevice:
        device = PlainDevice()
        device.admit(self.directory, self.store, name=name)
        return device

    def report(self, device: PlainDevice, *windows: object) -> None:
        sealed = device.sealed(self.directory, plaintext=batch(*windows))
        self.sent += 1
        key_id = self.directory.telemetry_public().key_id
        arrival = Arrival(self.sent.to_bytes(16, "big"), key_id, sealed.header, sealed.ciphertext)
        self.store.batches.append(device.id, [arrival])
        Opener(self.store, self.directory.telemetry_private()).run_once()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path / "garden")
    yield fleet
    fleet.store.close()


@pytest.fixture
def reported(fleet: Fleet) -> Fleet:
    for number in range(DEVICES):
        told = PredictionWindow(model="digits", version=1, variant="fp32", engine="onnx", now_s=7200.0)
        told.mind(SCOPE)
        labels = np.repeat(np.arange(10), TRUTH).tolist()
        told.observe_batch(100_500, labels, [0.9] * EACH, np.ones((1, 4)))
        fleet.report(fleet.device(f"d{number}"), told.take(7260.0))
    return fleet


def test_sums_over_devices_are_estimated_without_bias_and_said_with_an_interval(reported: Fleet) -> None:
    [line] = together(reported.store)
    assert (line.predictions, line.labels) == (DEVICES * EACH, {})
    assert set(line.randomized) == {"label", "latency_us"}
    found = cells(line.randomized["label"])
    response = Response(10, 2.0)
    inside, outside = response.keep / 2**64, response.other / 2**64
    for truth, each in zip(TRUTH * DEVICES, found, strict=True):
        spread = truth * inside * (1 - inside) + (DEVICES * EACH - truth) * outside * (1 - outside)
        deviation = math.sqrt(spread) / (inside - outside)
        # Noise is from the operating system: 10 labels at 5.5 deviations, a false alarm in 2.6 million runs.
        assert abs(each.value - truth) < 5.5 * deviation
        assert 1.5 * deviation < each.high - each.low < 4.5 * deviation
    # A cell of the latency is 33 % wide.
    median = quantile(line.randomized["latency_us"], 0.5)
    assert median.low is not None
    assert median.high is not None
    assert median.value is not None
    assert median.low <= 100.5 <= median.high
    assert median.low <= median.value <= median.high


def test_the_command_shows_estimates_to_people_and_to_programs(reported: Fleet) -> None:
    def run(*arguments: str) -> str:
        where = ["telemetry", "--fleet", str(reported.directory.path), *arguments]
        ran = CliRunner().invoke(app, where, env={"COLUMNS": "200"}, catch_exceptions=False)
        assert ran.exit_code == 0
        return ran.output

    [model] = json.loads(run("--sum", "--json"))
    assert (model["labels"], model["predictions"]) == ({}, DEVICES * EACH)
    label = model["randomized"]["label"]
    assert (label["epsilon"], label["count"], len(label["cells"])) == (2.0, DEVICES * EACH, 10)
    assert label["cells"][6]["low"] < label["cells"][6]["value"] < label["cells"][6]["high"]
    low, high = model["latency_us"]["p50_interval"]
    assert low <= 100.5 <= high
    by_device = json.loads(run("--json"))
    assert [each["models"][0]["randomized"]["label"]["count"] for each in by_device] == [EACH] * DEVICES
    text = run("--sum")
    assert "95 % interval" in text
    assert "2" in text
    assert ".." in run()


def test_only_histograms_of_equal_epsilon_are_added(fleet: Fleet) -> None:
    latency = Histogram.empty("latency_us", LATENCY_US).observe([90.0] * 50)
    device = fleet.device("rose")
    fleet.report(device, window(histograms=[hidden(latency, 1.0).to_wire()]))
    fleet.report(device, window(histograms=[hidden(latency, 1.0, 2).to_wire()]))
    fleet.report(device, window(histograms=[hidden(latency, 2.0).to_wire()]))
    fleet.report(device, window(histograms=[latency.to_wire()]))
    [line] = telemetry(fleet.store, fleet.store.devices.all())
    assert (line.opened, line.rejected) == (2, 2)
    known = line.models[0].latency_us
    assert known is not None
    assert (known.epsilon, known.count) == (1.0, 100)


def test_hours_of_different_epsilons_are_not_added_either(fleet: Fleet) -> None:
    latency = Histogram.empty("latency_us", LATENCY_US).observe([90.0] * 50)
    device = fleet.device("rose")
    for hour, told in enumerate((latency, hidden(latency, 1.0), hidden(latency, 1.0, 2))):
        fleet.report(device, window(start_s=7200 * (1 + hour), histograms=[told.to_wire()]))
    [line] = telemetry(fleet.store, fleet.store.devices.all())
    assert line.opened == 3
    known = line.models[0].latency_us
    assert known is not None
    assert (known.epsilon, known.count) == (1.0, 100)


def test_what_is_not_randomized_is_told_as_it_was(fleet: Fleet) -> None:
    fleet.report(fleet.device("rose"), window())
    fleet.report(fleet.device("lily"), window())
    [line] = together(fleet.store)
    assert (line.labels, line.randomized) == ({"3": 2, "7": 2}, {})
    assert line.latency_us is not None
    assert [each.value for each in cells(line.latency_us)] == list(line.latency_us.counts)
    found = quantile(line.latency_us, 0.5)
    assert (found.value, found.low, found.high) == (line.latency_us.quantile(0.5), None, None)


def test_columns_are_summed_over_devices_and_shown_by_name(fleet: Fleet) -> None:
    watched = tuple(Watched(place, f"column.c{place}", (1.0, 2.0, 3.0)) for place in range(8))
    scope, reported = Scope(10, {}, Columns(watched, 200)), [f"c{place}" for place in range(8)]
    for number in range(2):
        device = fleet.device(f"d{number}")
        told = PredictionWindow(model="m", version=1, variant="fp32", engine="onnx", now_s=7200.0)
        told.mind(scope)
        for _ in scope.columns.groups:
            told.observe(1000, 0, 1.0, np.arange(8) / 2 + number)
            fleet.report(device, told.take(7260.0))
    [line] = together(fleet.store)
    assert sorted(line.columns) == reported
    for place, name in enumerate(reported):
        expected = Histogram.empty(f"column.{name}", (1.0, 2.0, 3.0)).observe([place / 2, place / 2 + 1])
        assert line.columns[name] == expected
    where = ["telemetry", "--fleet", str(fleet.directory.path), "--sum"]
    [model] = json.loads(CliRunner().invoke(app, [*where, "--json"]).output)
    assert model["columns"]["c4"] == {
        "count": 2, "mean": 2.5, "edges": [1.0, 2.0, 3.0], "counts": [0, 0, 1, 1], "p50": 3.0, "p90": 3.0,
    }  # fmt: skip
    text = CliRunner().invoke(app, where, env={"COLUMNS": "200"}).output
    assert all(f"column.{name}" in text for name in reported)
    for part in (["--limit", "1"], ["--after", "d1"]):
        refused = CliRunner().invoke(app, [*where, *part])
        assert isinstance(refused.exception, UsageError)
        assert "--sum is of all devices" in str(refused.exception)


@settings(deadline=None, max_examples=200)
@given(
    counts=st.lists(st.integers(0, 60), min_size=2, max_size=12),
    epsilon=st.floats(0.05, 10),
    q=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_a_quantile_is_never_told_better_than_it_can_be_known(
    counts: list[int], epsilon: float, q: float, seed: int
) -> None:
    edges = tuple(float(number) for number in range(1, len(counts)))
    told = hidden(Histogram("x", edges, tuple(counts)), epsilon, seed)
    found = quantile(told, q)
    if not sum(counts):
        assert found.value is None
        return
    assert found.value is not None
    # Whole cells, or no end.
    assert found.low is None or found.low in edges
    assert found.high is None or found.high in edges
    assert found.low is None or found.high is None or found.low < found.high


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_interval_of_a_quantile_holds_the_truth_as_often_as_it_says(epsilon: float) -> None:
    # Each end is left out at most one time in 40; 380 of 400 at least: with more than 95 % true, a false alarm is
    # less than 1 in 50; with these seeds there is none.
    truth = Histogram("x", (1.0, 2.0, 3.0, 4.0, 5.0), (10, 40, 100, 200, 40, 10))
    held = 0
    for seed in range(400):
        found = quantile(hidden(truth, epsilon, seed), 0.5)
        held += (found.low or -math.inf) <= 3.5 <= (found.high or math.inf)
    assert held >= 380
