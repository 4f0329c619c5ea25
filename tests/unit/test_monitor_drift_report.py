"""Drift of a fleet: what devices report against their package's baseline and the week before, hostile ones among them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from model_packages import RELEASE, first, opened, resigned
from monitor_world import DAY_S, Reporters
from rollout_world import DIGITS
from service_fleet import ManualClock, make_fleet
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.histogram import CONFIDENCE, MAX_COUNT, Histogram, whole_edges
from umbel_proto.manifest import BASELINE
from umbel_proto.package import read_package
from umbel_proto.privacy.response import Response
from umbel_server.access.actor import local_actor
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.baseline import Baseline, coarser, read_baseline
from umbel_server.monitor.commands import app
from umbel_server.monitor.drift_report import Drift, examined, usual_version
from umbel_server.monitor.features import WANTED
from umbel_server.store.store import open_store

NOW_S = 1_800_000_000.0
TWENTIETHS = tuple(float(edge) for edge in range(1, 20))
EIGHTHS = tuple(float(edge) for edge in (2, 5, 8, 10, 12, 15, 18))


def column(name: str, values: NDArray[np.float64], edges: tuple[float, ...] = EIGHTHS) -> Histogram:
    return Histogram.empty(f"column.{name}", edges).observe(values)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Reporters]:
    clock = ManualClock(NOW_S)
    with open_store(tmp_path / "store.db", clock=clock) as store:
        yield Reporters(store, clock)


@pytest.fixture
def baseline() -> Baseline:
    values = np.random.default_rng(0).uniform(0, 20, 10_000)
    seen = {
        f"column.{name}": Histogram.empty("feature", TWENTIETHS).observe(values) for name in ("age", "size")
    }
    label = Histogram("label", whole_edges(3), (5000, 3000, 2000))
    return Baseline({**seen, "label": label}, ("a", "b", "c"))


def look(world: Reporters, baseline: Baseline) -> Drift:
    until_s = world.clock.now_s
    since_s = until_s - 7 * DAY_S
    now = world.store.reports.of(DIGITS, 1, since_s=since_s, until_s=until_s, wanted=WANTED)
    before = world.store.reports.of(DIGITS, 1, since_s=since_s - 7 * DAY_S, until_s=since_s, wanted=WANTED)
    return examined(baseline, now, before, of=(DIGITS, 1, since_s, until_s))


def tell_weeks(world: Reporters, *, moved: float, seed: int = 1) -> None:
    """Let all devices report two weeks alike, but for ages, which are higher in the second."""
    chance = np.random.default_rng(seed)
    for ago_s, shift in ((3 * DAY_S, moved), (10 * DAY_S, 0.0)):
        for device in world.names:
            counts = chance.multinomial(200, [0.5, 0.3, 0.2])
            world.tell(
                device,
                column("age", chance.uniform(0, 20, 200) + shift),
                column("size", chance.uniform(0, 20, 200)),
                ago_s=ago_s,
                counters={f"label.{number}": int(count) for number, count in enumerate(counts)},
            )
    world.arrive()


def test_the_column_that_moved_is_found_against_both_and_no_other(
    world: Reporters, baseline: Baseline
) -> None:
    tell_weeks(world, moved=1.0)
    found = look(world, baseline)
    assert {(line.against, line.finding.feature) for line in found.lines} == {
        (against, name)
        for against in ("baseline", "before")
        for name in ("column.age", "column.size", "label")
    }
    assert {(line.against, line.finding.feature) for line in found.drifted} == {
        ("baseline", "column.age"),
        ("before", "column.age"),
    }
    line = found.drifted[0]
    assert (line.counted, line.devices, line.limited) == (4000, 20, 0)
    json.dumps(found.to_json(), allow_nan=False)


def test_where_nothing_moved_nothing_is_found(world: Reporters, baseline: Baseline) -> None:
    tell_weeks(world, moved=0.0)
    assert look(world, baseline).drifted == ()


def test_what_one_hostile_device_tells_changes_no_verdict(world: Reporters, baseline: Baseline) -> None:
    """It tells huge counts, other edges, labels that there are not, an epsilon of its own, and of next year."""
    tell_weeks(world, moved=0.0)
    told = look(world, baseline)
    liar = world.names[7]
    huge = tuple(MAX_COUNT // 2 if cell == 0 else 0 for cell in range(8))
    world.tell(
        liar,
        Histogram("column.age", EIGHTHS, huge, 1e307),
        Histogram("column.size", (1e9,), (MAX_COUNT, 0)),
        Histogram("label", whole_edges(3), (0, 0, MAX_COUNT), 0.0, 0.01),
        Histogram("column.unheard-of", EIGHTHS, huge, 0.0),
        ago_s=2 * DAY_S,
        counters={"label.0": 0, "label.2": MAX_COUNT, "label.77": MAX_COUNT, "label.-1": 5, "label.x": 9},
    )
    world.tell(liar, Histogram("column.age", EIGHTHS, huge, 1e307), ago_s=4 * DAY_S)
    world.tell(liar, column("age", np.full(500, 19.0)), ago_s=-400 * DAY_S)
    world.arrive()
    found = look(world, baseline)
    assert found.drifted == ()
    line = next(each for each in found.lines if each.finding.feature == "column.age")
    assert (line.devices, line.limited) == (20, 1)
    assert {each.finding.feature for each in told.lines} <= {each.finding.feature for each in found.lines}
    json.dumps(found.to_json(), allow_nan=False)


def test_a_device_that_is_quarantined_counts_no_more(world: Reporters, baseline: Baseline) -> None:
    tell_weeks(world, moved=0.0)
    world.store.devices.quarantine(world.names[3], reason="odd", actor=local_actor())
    found = look(world, baseline)
    assert {line.devices for line in found.lines} == {19}
    assert (found.asked, found.trusted) == (19, 19)


def test_of_a_large_fleet_some_devices_are_read_and_that_is_said(
    world: Reporters, baseline: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umbel_server.store.reports._CHUNK", 5)
    tell_weeks(world, moved=0.0)
    until_s = world.clock.now_s
    some = world.store.reports.of(DIGITS, 1, since_s=until_s - 7 * DAY_S, until_s=until_s, rows=8)
    assert (len(some.devices), some.asked, some.trusted) == (10, 10, 20)
    told = examined(baseline, some, some, of=(DIGITS, 1, 0.0, until_s))
    assert any("10 of 20 devices" in note for note in told.notes)


def test_randomized_labels_are_compared_with_the_noise_they_have(
    world: Reporters, baseline: Baseline
) -> None:
    chance = np.random.default_rng(4)
    noise = Response(3, 1.0).other / 2**64
    shares = noise + (1 - 3 * noise) * np.array([0.5, 0.3, 0.2])
    for device in world.names:
        counts = tuple(map(int, chance.multinomial(200, shares)))
        world.tell(device, Histogram("label", whole_edges(3), counts, 0.0, 1.0), ago_s=DAY_S)
    world.arrive()
    found = look(world, baseline)
    (line,) = found.lines
    assert (line.finding.feature, line.epsilon, line.finding.drifted) == ("label", 1.0, False)
    assert line.finding.comparison is not None
    assert line.finding.comparison.moved < 0.1


def test_a_baseline_with_finer_cells_is_joined_to_those_of_the_devices() -> None:
    fine = Histogram("x", (1.0, 2.0, 3.0, 4.0), (1, 2, 3, 4, 5), 7.0)
    assert coarser(fine, (2.0, 4.0)) == Histogram("x", (2.0, 4.0), (3, 7, 5), 7.0)
    assert coarser(fine, fine.edges) == fine
    assert coarser(fine, (2.5,)) is None


def test_a_package_tells_its_baseline_by_telemetrys_names() -> None:
    told = read_baseline(opened(first()))
    assert set(told.histograms) == {"input", "input_mean", "confidence", "label"}
    assert told.histograms["confidence"].edges == CONFIDENCE
    assert len(told.histograms["label"].counts) == len(told.labels) == 10
    assert sum(each.count for each in told.confidence_of.values()) == told.histograms["label"].count


@pytest.mark.parametrize("body", [b"{", b'{"histograms": [{"name": "input"}]}', b'{"histograms": 3}'])
def test_a_baseline_that_cannot_be_read_is_refused_in_a_sentence(body: bytes) -> None:
    name = opened(first()).manifest.documents[BASELINE]
    broken = resigned(first(), lambda manifest: None, **{name: body})
    with pytest.raises(PackageError, match="cannot be read"):
        read_baseline(read_package(broken, release_key=RELEASE.public))


def test_the_version_that_is_looked_at_is_the_one_that_most_was_told_of(world: Reporters) -> None:
    for number, device in enumerate(world.names):
        world.tell(device, version=2 if number < 3 else 1, counters={"predictions": 1})
    world.arrive()
    span = {"since_s": NOW_S - DAY_S, "until_s": NOW_S}
    assert usual_version(world.store, DIGITS, **span) == 1
    with pytest.raises(UsageError, match="No device has reported of model 'roses'"):
        usual_version(world.store, "roses", **span)


def test_the_command_says_what_drifted_and_what_it_could_not_compare(tmp_path: Path) -> None:
    made = make_fleet(tmp_path / "garden")
    _tell(made)
    run = CliRunner().invoke(app, ["drift", DIGITS, "--fleet", str(made.path)], catch_exceptions=False)
    assert run.exit_code == 0
    assert "digits 1, 7 days: column.age drifted." in run.output
    assert "No version 1 of digits is released" in run.output
    as_json = CliRunner().invoke(
        app, ["drift", DIGITS, "--fleet", str(made.path), "--json"], catch_exceptions=False
    )
    assert json.loads(as_json.output)["drifted"] == ["column.age"]


def _tell(made: FleetDir) -> None:
    # The command goes by the time of the machine.
    with made.open_store() as store:
        tell_weeks(Reporters(store, ManualClock(time.time())), moved=2.0)
