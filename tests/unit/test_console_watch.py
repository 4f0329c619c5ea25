"""Screens that watch a model: the figures of the command line, hidden cells as such, waivers, and no page that waits."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console_world import ConsoleWorld, Visitor, console_world, text_of
from monitor_world import DAY_S, Reporters
from registry_seed import DECIDES, version
from run_world import begin
from service_fleet import make_fleet
from umbel_proto.ids import ModelName
from umbel_server.access.actor import Role
from umbel_server.console.range import Window
from umbel_server.console.screens.device import marks
from umbel_server.console.seen.drift import drifted
from umbel_server.console.seen.energy import spent
from umbel_server.console.seen.explanations import Lost, explained
from umbel_server.console.seen.fairness import scale, treated
from umbel_server.console.seen.marks import marks_of
from umbel_server.console.seen.performance import performed
from umbel_server.console.seen.watched import Watched
from umbel_server.console.seen.worker import Worker
from umbel_server.fleet.layout import FleetDir
from umbel_server.monitor.drift_report import drift
from umbel_server.monitor.looks import look_at_performance
from umbel_server.monitor.performance import Performance
from umbel_server.monitor.prices import Prices
from umbel_server.store.runs import Participation, RoundRecord
from watch_seed import MODEL, rolled_out, watch

SCREENS = ("/drift", "/performance", "/fairness", "/explanations", "/energy")
CHARTS = (
    "/drift/heat.json", "/drift/feature.json?feature=input_mean", "/performance/accuracy.json",
    "/performance/calibration.json", "/performance/latency.json", "/fairness/gaps.json?label=3",
    "/fairness/trend.json?label=3", "/explanations/importance.json", "/explanations/versions.json",
    "/energy/traffic.json", "/energy/days.json",
)  # fmt: skip
PATIENCE = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("watch")) as made:
        watch(made)
        rolled_out(made)
        yield made


@pytest.fixture(scope="module")
def reviewer(world: ConsoleWorld) -> Visitor:
    return world.signed_in(Role.REVIEWER)


@pytest.fixture(scope="module")
def viewer(world: ConsoleWorld) -> Visitor:
    return world.signed_in(Role.VIEWER)


def settled(visitor: Visitor, path: str) -> str:
    """Return what a screen says once its figures are made, as a browser that asks again sees it."""
    for _ in range(PATIENCE):
        answer = visitor.get(path)
        assert answer.status_code == 200, answer.text
        if "being computed" not in answer.text:
            return answer.text
        time.sleep(0.05)
    raise AssertionError(f"{path} is not made")


@pytest.mark.parametrize("path", SCREENS)
def test_every_screen_says_what_it_is_of_and_gives_its_table_as_a_file(viewer: Visitor, path: str) -> None:
    page = settled(viewer, path)
    assert f"{MODEL} 1" in text_of(page)
    assert "n = " in page or "devices looked at" in page or path == "/explanations"
    told = viewer.get(f"{path}?format=csv")
    assert told.headers["content-type"].startswith("text/csv")
    rows = list(csv.reader(io.StringIO(told.text)))
    assert len(viewer.get(f"{path}?format=json").json()) == len(rows) - 1


def test_figures_that_another_process_made_are_those_of_this_one(world: ConsoleWorld) -> None:
    until_s = world.clock()
    watched = Watched(((MODEL, 1),), MODEL, 1, Window("absolute", until_s - 7 * DAY_S, until_s), 7)
    of = world.fleet, world.store
    worker = Worker()
    try:
        assert worker.run(drifted, *of, watched) == drifted(*of, watched)
        assert worker.run(performed, *of, watched) == performed(*of, watched)
        assert worker.run(treated, *of, watched, "3") == treated(*of, watched, "3")
        assert worker.run(spent, *of, watched) == spent(*of, watched)
    finally:
        worker.stop()


@pytest.mark.parametrize("path", CHARTS)
def test_every_chart_has_numbers_or_says_why_not(viewer: Visitor, path: str) -> None:
    told = viewer.get(path).json()
    assert "NaN" not in json.dumps(told)
    if path.startswith("/explanations"):
        assert told["empty"]
    else:
        assert "empty" not in told
        assert told.get("series") or told.get("cells")


def test_drift_is_that_of_the_command_line_and_days_are_marked_when_the_inputs_changed(
    world: ConsoleWorld, viewer: Visitor
) -> None:
    known = drift(world.fleet, world.store, MODEL, 1)
    rows = viewer.get("/drift?format=json").json()
    assert [(row["against"], row["feature"], row["drifted"]) for row in rows] == [
        (line.against, line.finding.feature, line.finding.drifted) for line in known.lines
    ]
    told = viewer.get("/drift/heat.json").json()
    place = told["y"]["values"].index("input_mean")
    moved = [cell[2] for cell in told["cells"] if cell[1] == place]
    # The last three days the inputs are others: what moved is not as on the days before.
    assert max(moved[-3:]) < min(moved[:-3])
    text = text_of(settled(viewer, "/drift?feature=input_mean"))
    # They told of the hour before: in the first hour of a day nothing is of that day.
    assert re.search(r"pixel above (240|280) 1\.0 %", text)


def test_performance_is_that_of_the_command_line_with_its_calibration(
    world: ConsoleWorld, viewer: Visitor
) -> None:
    now = look_at_performance(world.fleet, world.store, MODEL, 1).now
    assert isinstance(now, Performance)
    assert now.curve is not None
    rows = {row["figure"]: row for row in viewer.get("/performance?format=json").json() if row["of"] == "now"}
    assert rows["realized"]["value"] == pytest.approx(now.realized and now.realized.value)
    assert rows["calibration error"]["value"] == pytest.approx(now.curve.error)
    plot = viewer.get("/performance/calibration.json").json()
    assert plot["series"][0]["values"] == pytest.approx([each.right for each in now.curve.cells])
    text = text_of(settled(viewer, "/performance"))
    for sentence in (*now.blind, "miscalibrated", "two people agree", "aarch64-4g-onnx"):
        assert sentence in text


def test_a_small_cohort_is_shown_as_hidden_and_never_by_its_figures(viewer: Visitor) -> None:
    page = settled(viewer, "/fairness?label=3")
    row = next(each for each in page.split("<tr>") if ">attic<" in each)
    assert "hidden for privacy (n &lt; 10" in row
    assert "%" not in text_of(row)
    told = [each for each in viewer.get("/fairness?label=3&format=json").json() if each["cohort"] == "attic"]
    assert [(each["hidden"], each["gap"], each["here"]) for each in told] == [(True, None, None)]
    assert "attic" not in viewer.get("/fairness/gaps.json?label=3").text


def test_a_gap_is_waived_shown_as_waived_and_opened_again(reviewer: Visitor, viewer: Visitor) -> None:
    path = "/fairness?label=3"
    page = settled(reviewer, path)
    link = re.search(r'href="(/fairness/waive\?[^"]*cohort=north[^"]*)"', page)
    assert link
    assert viewer.get("/fairness/waive").status_code == 403
    assert "/fairness/waive?" not in settled(viewer, path)
    form = {"model": MODEL, "version": "1", "label": "3", "cohort": "north", "metric": "selection rate"}
    for wrong, problem in (
        ({"days": "10", "reason": ""}, "needs a reason"),
        ({"days": "999", "reason": "x"}, "at most 180 days"),
        ({"days": "soon", "reason": "x"}, "give the days as a number"),
        ({"days": "10", "reason": "x", "cohort": "<b>"}, "Nothing was done"),
    ):
        refused = reviewer.post("/fairness/waive", **{**form, "scope": "this", **wrong})
        assert refused.status_code == 422
        assert problem in text_of(refused.text)
    assert "<b>" not in refused.text
    script = "<script>alert(1)</script> the north sees more threes"
    good = {**form, "scope": "this", "days": "10", "reason": script}
    done = reviewer.post("/fairness/waive", **good)
    assert done.status_code == 303
    shown = settled(viewer, path)
    assert "<script>alert" not in shown
    row = next(each for each in shown.split("<tr>") if "selection rate" in each and ">finding<" in each)
    assert all(word in row for word in (">waived<", "by a-reviewer", "+20.0"))  # Never hidden.
    again = reviewer.post("/fairness/waive", **good)
    assert again.status_code == 409
    assert "a-reviewer has waived this already" in text_of(again.text)
    assert "the north sees more threes" in again.text  # What was typed is not lost.
    waiver = re.search(r"/fairness/waivers/(waiver-[0-9a-f]+)/end", settled(reviewer, path))
    assert waiver
    end = f"/fairness/waivers/{waiver[1]}/end"
    assert reviewer.post(end, reason="").status_code == 422
    assert reviewer.post(end, reason="it is mended").status_code == 303
    assert reviewer.post(end, reason="it is mended").status_code == 409
    assert reviewer.get("/fairness/waivers/waiver-0000000000/end").status_code == 404
    assert "in force" not in text_of(settled(viewer, path))
    assert "ended" in text_of(settled(viewer, path))


def test_costs_name_their_method_and_what_nobody_measures_has_no_figure(viewer: Visitor) -> None:
    text = text_of(settled(viewer, "/energy"))
    assert "0.0900 J" in text
    assert "RAPL: the processor's own counters" in text
    assert re.search(r"Energy of a training in a round no data", text)
    rows = {row["figure"]: row for row in viewer.get("/energy?format=json").json()}
    # Of all devices and days: 2,000 bytes for each device's 100 predictions.
    assert rows["reports, of a thousand predictions"]["value"] == pytest.approx(20_000)
    assert all(row["method"] for row in rows.values())


def test_a_rounds_energy_is_the_median_devices_training_times_the_devices_and_costs_what_a_kwh_does(
    tmp_path: Path,
) -> None:
    with console_world(tmp_path) as world:
        reporters = Reporters(world.store, world.clock, count=8)
        for device in reporters.names:
            reporters.tell(device, counters={"predictions": 100})
        for device, (joules, trainings) in zip(
            reporters.names, ((180, 2), (540, 2), (1800, 1)), strict=False
        ):
            counters = {"round.energy_rapl_uj": joules * 10**6, "round.trainings": trainings}
            reporters.tell(device, model="", counters=counters)
        reporters.arrive()
        run, parts = (
            begin(world.store, "counted"),
            [Participation(each, "summed", "") for each in reporters.names],
        )
        world.store.runs.begin_round(run, 1, 1)
        world.store.runs.enter_phase(run, 1, 1, "mask", reporters.names)
        figures = {"bytes_up_per_device": 1e6, "bytes_down_per_device": 1e6}
        ended = RoundRecord(run, 1, 1, "opened", world.clock() - 60, world.clock(), "", figures, tuple(parts))
        world.store.runs.end_round(ended)
        fleet = FleetDir(world.fleet.path, replace(world.fleet.settings, prices=Prices(kwh=10.0)))
        window = Window("7d", world.clock() - 7 * DAY_S, world.clock())
        (cost,) = spent(fleet, world.store, Watched(((MODEL, 1),), MODEL, 1, window, 7)).rounds
        assert (cost.devices, cost.joules) == (8, pytest.approx(8 * 270))
        assert cost.price == pytest.approx(10 * 8 * 270 / 3.6e6)
        viewer = world.signed_in(Role.VIEWER)
        text = text_of(settled(viewer, "/energy"))
        assert "Energy of a training in a round 270 J 3 devices, n = 5" in text
        assert "0.600 Wh" in text
        rows = {row["figure"]: row for row in viewer.get("/energy?format=json").json()}
        assert rows["round 1, energy, all devices"]["value"] == pytest.approx(0.6)


def test_a_thousand_predictions_cost_their_energy_and_their_traffic_at_the_prices(
    world: ConsoleWorld,
) -> None:
    """Of each device and day: 100 predictions, 9 J, 2,000 bytes up, 9,000 bytes down and 30,000 that deltas saved."""
    window = Window("7d", world.clock() - 7 * DAY_S, world.clock())

    def cost(prices: Prices) -> float:
        fleet = FleetDir(world.fleet.path, replace(world.fleet.settings, prices=prices))
        return spent(fleet, world.store, Watched(((MODEL, 1),), MODEL, 1, window, 7)).cost_per_thousand

    energy, traffic = 1000 * 0.09 / 3.6e6, 1000 * (2000 + 9000) / 100 / 1e9
    assert cost(Prices(kwh=0.3)) == pytest.approx(0.3 * energy)
    assert cost(Prices(gb=5.0)) == pytest.approx(5 * traffic)
    assert cost(Prices(kwh=0.3, gb=5.0)) == pytest.approx(0.3 * energy + 5 * traffic)
    assert cost(Prices()) == 0


def test_explanations_say_what_is_not_reported_and_how_to_get_it(viewer: Visitor) -> None:
    text = text_of(settled(viewer, "/explanations"))
    assert "does not tell which inputs decide" in text
    assert "umbel model assess" in text
    assert "model.explain" in text
    assert "does not tell which inputs decide within a part of the data" in text


def test_what_decides_is_read_from_a_package_as_its_card_writes_it(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    with fleet.open_store() as store:
        raw, sha256 = version(1), b"\1" * 32
        fleet.package(sha256).write_bytes(raw)
        store.releases.publish(ModelName(MODEL), 1, sha256=sha256, size=len(raw))
        told = explained(fleet, store, MODEL, 1, None)
    assert {each.name: each.lost for each in told.inputs} == pytest.approx(DECIDES)
    first = told.inputs[0]
    assert (first.name, first.low, first.high) == ("input 28", pytest.approx(0.19), pytest.approx(0.23))
    assert told.slices == ()


def test_an_input_that_is_called_as_an_interval_ends_is_an_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"tide": 0.2, "tide low": 0.1, "neap high": 0.05}
    monkeypatch.setattr("registry_seed.DECIDES", named)
    monkeypatch.setattr("registry_seed.WITHIN", {"older": (86, range(len(named)))})
    version.cache_clear()
    fleet = make_fleet(tmp_path / "fleet")
    try:
        with fleet.open_store() as store:
            raw, sha256 = version(2), b"\3" * 32
            fleet.package(sha256).write_bytes(raw)
            store.releases.publish(ModelName(MODEL), 2, sha256=sha256, size=len(raw))
            told = explained(fleet, store, MODEL, 2, None)
    finally:
        version.cache_clear()
    assert {each.name for each in told.inputs} == set(told.slices[0].lost) == set(named)
    of = {each.name: each for each in told.inputs}
    # Where the low end of one would be, the other is: it is nobody's end.
    assert (of["tide"].low, of["tide"].high) == (None, pytest.approx(0.24))
    assert of["tide low"].lost == pytest.approx(0.096)
    assert (of["neap high"].low, of["neap high"].high) == (pytest.approx(0.026), pytest.approx(0.066))
    assert told.slices[0].lost["tide low"] == Lost(*map(pytest.approx, (0.1, 0.07, 0.13)))


def test_what_decides_within_a_part_is_read_as_the_card_writes_it_and_mixes_with_nothing_else(
    tmp_path: Path,
) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    with fleet.open_store() as store:
        raw, sha256 = version(2), b"\2" * 32
        fleet.package(sha256).write_bytes(raw)
        store.releases.publish(ModelName(MODEL), 2, sha256=sha256, size=len(raw))
        told = explained(fleet, store, MODEL, 2, None)
    assert {each.name for each in told.inputs} == set(DECIDES)
    assert [(each.name, each.examples) for each in told.slices] == [
        ("cohort younger", 212),
        ("cohort older", 86),
    ]
    older = told.slices[1].lost
    # Of the older the input decides most that is second overall, and the first is third.
    assert max(older, key=lambda name: older[name].value) == "input 36"
    assert older["input 28"] == Lost(*map(pytest.approx, (0.12, 0.09, 0.15)))
    assert told.inputs_of_slices == tuple(each.name for each in told.inputs)


def test_days_are_marked_on_which_a_rollout_of_the_version_began_or_was_taken_back(
    world: ConsoleWorld, viewer: Visitor
) -> None:
    ago = {days: int(world.clock() - days * DAY_S) // DAY_S * DAY_S for days in (5, 4, 3)}
    happened = [(5, "digits-2 began"), (4, "digits-2 was taken back"), (3, "digits-2-again began")]
    told = viewer.get("/performance/accuracy.json").json()
    assert [(mark["at"], mark["name"]) for mark in told["marks"]] == [
        (ago[day], name) for day, name in happened
    ]
    heat = viewer.get("/drift/heat.json").json()
    assert [mark["name"] for mark in heat["marks"]] == [name for _, name in happened]
    assert {mark["at"] for mark in heat["marks"]} <= set(heat["x"]["values"])
    for path in (
        "/fairness/trend.json?label=3",
        "/devices/device-000/latency.json?range=7d",
        "/energy/traffic.json",
        "/energy/days.json",
    ):
        assert viewer.get(path).json()["marks"] == told["marks"]
    for path in ("/performance", "/drift", "/fairness?label=3", "/energy"):
        assert "digits-2 was taken back" in text_of(settled(viewer, path))
    of_both = marks(world.store, {(MODEL, 1), (MODEL, 2)}, list(ago.values()))
    assert of_both == told["marks"]  # What is of both versions of a device is told once.
    assert marks_of(world.store, MODEL, 3, ago.values()) == ()
    assert marks_of(world.store, "scent", 2, ago.values()) == ()
    assert [each.day_s for each in marks_of(world.store, MODEL, 2, {ago[4]})] == [ago[4]]


def test_a_model_nobody_reported_of_and_days_too_many_are_said_in_a_sentence(viewer: Visitor) -> None:
    assert "No device has reported of model" in text_of(settled(viewer, "/drift?model=nothing&version=1"))
    assert "has no label" in text_of(settled(viewer, "/fairness?label=cat"))
    answer = viewer.get("/drift?from=2026-01-01&to=2026-03-01")
    assert answer.status_code == 422
    assert "At most 30 days" in answer.text


def test_without_any_report_each_screen_says_why_it_is_empty(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with console_world(tmp_path_factory.mktemp("empty")) as empty:
        visitor = empty.signed_in(Role.VIEWER)
        for path in SCREENS:
            answer = visitor.get(path)
            assert answer.status_code == 200
            assert "No device has reported of a model in this time." in text_of(answer.text)
            assert "umbel run" in answer.text


@given(st.lists(st.floats(-1, 1), min_size=1))
def test_an_axis_of_gaps_holds_them_all_and_begins_and_ends_with_one_of_few_lines(shown: list[float]) -> None:
    axis = scale(shown)
    assert axis["min"] <= min(shown) <= max(shown) <= axis["max"]
    lines = (axis["max"] - axis["min"]) / axis["interval"]
    assert lines == pytest.approx(round(lines))
    assert lines <= 8
