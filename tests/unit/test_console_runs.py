"""The screens of federated runs: what they say of rounds on record, and how a run is stopped or begun."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import insert

from console_world import ConsoleWorld, Visitor, console_world, text_of
from rollout_world import ANN
from run_world import LATE, PLAN, begin, figures, hold_round, schedule, trained
from umbel_proto.ids import RunId
from umbel_server.access.actor import Role
from umbel_server.console.screens.rollouts import ROWS
from umbel_server.console.seen.run_charts import CHARTS
from umbel_server.console.seen.runs import POINTS, course_of, run_seen
from umbel_server.learning.lock import driving
from umbel_server.learning.norms import WORDS
from umbel_server.store.audit import Sought
from umbel_server.store.runs import RoundRecord
from umbel_server.store.tables import rounds as rounds_table


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("runs")) as made:
        empty = made.signed_in(Role.VIEWER)
        assert "umbel rounds start PLAN.toml --dry-run" in text_of(empty.get("/runs").text)
        assert "umbel rounds schedule add" in text_of(empty.get("/runs/-/schedules").text)
        yield made


@pytest.fixture(scope="module")
def operator(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.OPERATOR)


@pytest.fixture(scope="module")
def viewer(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.VIEWER)


@pytest.fixture(scope="module")
def autumn(console: ConsoleWorld) -> RunId:
    """A run with three rounds behind it, that is masking in the fourth."""
    run = trained(console.store, "autumn", at_s=console.clock())
    console.store.runs.begin_round(run, 4, 1)
    console.store.runs.enter_phase(run, 4, 1, "mask")
    return run


def test_the_list_says_how_far_each_run_is(console: ConsoleWorld, operator: Visitor, autumn: RunId) -> None:
    told = text_of(operator.get("/runs?state=").text)
    assert "3 of 6" in told
    assert "round 4, mask" in told
    assert "No run is like that." in text_of(operator.get("/runs?model=letters").text)
    rows = list(csv.DictReader(io.StringIO(operator.get("/runs?format=csv").text)))
    assert ("autumn", "3") in {(row["run"], row["rounds_done"]) for row in rows}


def test_a_run_tells_its_rounds_who_was_in_them_and_what_they_cost(
    console: ConsoleWorld, operator: Visitor, autumn: RunId
) -> None:
    told = text_of(operator.get("/runs/autumn").text)
    assert "3 of 6" in told
    assert "83.3" in told, "held-out accuracy of the last round"
    assert f"of a budget of {console.fleet.policy().budget_epsilon:g}"[:20] in told
    assert "3 devices sent updates, and 5 are needed" in told
    assert LATE in told
    assert "mask they send noised, masked updates" in told
    rows = list(csv.DictReader(io.StringIO(operator.get("/runs/autumn?format=csv").text)))
    assert [(row["round"], row["attempt"], row["state"]) for row in rows] == [
        ("1", "1", "opened"),
        ("2", "1", "aborted"),
        ("2", "2", "opened"),
        ("3", "1", "opened"),
    ]
    assert {(row["summed"], row["charged"], row["dropped"], row["silent"]) for row in rows} == {
        ("6", "1", "1", "1"),
        ("0", "7", "1", "1"),
    }


def test_charts_have_a_value_of_each_series_for_each_round(
    console: ConsoleWorld, operator: Visitor, autumn: RunId
) -> None:
    for name in CHARTS.keys() - {"norms"}:
        chart = operator.get(f"/runs/autumn/{name}.json").json()
        assert chart["series"], name
        for series in chart["series"]:
            assert len(series["values"]) == len(chart["x"]["values"]), (name, series["name"])
    turnout = operator.get("/runs/autumn/turnout.json").json()
    assert turnout["x"]["values"] == ["1", "2", "2.2", "3"]
    # What is stacked adds up to all that were asked.
    assert {sum(values) for values in zip(*(each["values"] for each in turnout["series"]), strict=True)} == {
        8
    }
    privacy = operator.get("/runs/autumn/privacy.json").json()
    assert privacy["bounds"][0]["value"] == console.fleet.policy().budget_epsilon
    assert privacy["series"][0]["values"] == sorted(privacy["series"][0]["values"])


def test_the_lengths_of_updates_are_shown_with_their_errors_and_how_many_were_in_the_sum(
    console: ConsoleWorld, operator: Visitor
) -> None:
    asked = replace(PLAN, metrics=replace(PLAN.metrics, norms=True))
    trained(console.store, "measured", at_s=console.clock(), plan=asked)
    shares = [-0.02, 0.27, 0.45, 0.25, 0.05, 0.0]
    chart = operator.get("/runs/measured/norms.json").json()
    assert (chart["kind"], chart["x"]["values"]) == ("heatmap", ["1", "2.2", "3"])
    assert chart["y"]["values"] == list(reversed(WORDS))
    drawn = {(x, y): (value, words) for x, y, value, words in chart["cells"]}
    assert len(drawn) == 3 * len(WORDS)
    for place, share in enumerate(shares):
        value, words = drawn[(1, len(WORDS) - 1 - place)]
        assert value == pytest.approx(share)
        error = 100 * 0.03 * (1 if place in (0, len(WORDS) - 1) else 2**0.5)
        assert words == f"± {error:.2f} %, n = 6"
    table = text_of(operator.get("/runs/measured").text)
    assert "Round Clip n up to 1/4 1/4 to 1/2 1/2 to 1 1 to 2 2 to 4 above 4" in table
    assert "norms = true" not in table
    row = "2 attempt 2 1.00 6 -2.0 % ± 3.0 % 27.0 % ± 4.2 % 45.0 % ± 4.2 % 25.0 % ± 4.2 % 5.0 % ± 4.2 % 0.0 % ± 3.0 %"
    assert row in table.replace("\N{NO-BREAK SPACE}", " ")
    (first, *_) = csv.DictReader(io.StringIO(operator.get("/runs/measured?format=csv").text))
    assert (first["within_half_clip"], first["within_clip"], first["within_error"]) == ("0.25", "0.7", "0.03")


def test_a_run_whose_plan_asks_for_no_lengths_says_which_line_does(
    operator: Visitor, autumn: RunId, console: ConsoleWorld
) -> None:
    assert "In its table [metrics]" in text_of(operator.get("/runs/autumn").text)
    assert "norms = true" in text_of(operator.get("/runs/autumn").text)
    assert operator.get("/runs/autumn/norms.json").json()["cells"] == []
    begin(console.store, "waits", replace(PLAN, metrics=replace(PLAN.metrics, norms=True)))
    assert "norms = true" not in text_of(operator.get("/runs/waits").text)
    assert operator.get("/runs/waits/norms.json").json()["empty"] == "No round was opened yet."


def test_a_long_run_is_shown_a_page_at_a_time_the_last_rounds_first(
    console: ConsoleWorld, operator: Visitor
) -> None:
    trained(console.store, "long", at_s=console.clock(), rounds=2 * ROWS)
    seen: list[str] = []
    here: str | None = "/runs/long"
    while here:
        page = operator.get(here).text
        told = text_of(page)
        # What the run came to is of all of it, whichever page is open.
        assert f"{2 * ROWS} of {2 * ROWS} {2 * ROWS + 1} attempts are over" in told
        assert "Last sum 6 devices" in told
        shown = re.findall(
            r"/runs/long/devices\?round=(\d+)&amp;attempt=(\d+)\"", page[page.index("<h2>Rounds</h2>") :]
        )
        assert 0 < len(shown) <= ROWS
        seen += [f"{number}.{attempt}" for number, attempt in shown]
        following = re.search(r'rel="next" href="([^"]+)"', page)
        here = html.unescape(following[1]) if following else None
    assert len(seen) == len(set(seen)) == 2 * ROWS + 1
    assert (seen[0], seen[-3:]) == (f"{2 * ROWS}.1", ["2.2", "2.1", "1.1"])
    assert len(list(csv.DictReader(io.StringIO(operator.get("/runs/long?format=csv").text)))) == 2 * ROWS + 1
    for odd in ("x", "1", "9999999999999999999999/1"):
        assert operator.get(f"/runs/long?cursor={odd}").status_code == 200


def test_a_chart_of_many_rounds_shows_every_so_many_th_and_the_last_and_says_so(
    console: ConsoleWorld, operator: Visitor, autumn: RunId
) -> None:
    rounds = 2 * POINTS + 1
    plan = replace(PLAN, rounds=rounds, metrics=replace(PLAN.metrics, norms=True))
    run = begin(console.store, "endless", plan)
    with console.store.database.write() as connection:
        connection.execute(
            insert(rounds_table),
            [
                {
                    "run_id": run,
                    "round": number,
                    "attempt": 1,
                    "state": "opened",
                    "phase": "unmask",
                    "reason": "",
                    "figures": json.dumps(figures(number, opened=True, norms=True)),
                    "started_s": 1.0,
                    "finished_s": 2.0,
                }
                for number in range(1, rounds + 1)
            ],
        )
    told = text_of(operator.get("/runs/endless").text)
    assert "the charts show every 3rd round, and the last" in told
    for name in CHARTS:
        chart = operator.get(f"/runs/endless/{name}.json").json()
        labels = [int(label) for label in chart["x"]["values"]]
        assert labels == [*range(3, rounds, 3), rounds]
        assert len(labels) <= POINTS + 1
        assert chart["x"]["name"] == "every 3rd round, and the last"
        assert all(len(each["values"]) == len(labels) for each in chart["series"])
    # What is left out is not averaged: each point is a round's own figure.
    learning = operator.get("/runs/endless/learning.json").json()["series"][0]["values"]
    assert learning[-1] == pytest.approx(1 - 0.5 / rounds)
    assert operator.get("/runs/autumn/learning.json").json()["x"]["name"] == "round"


def test_a_run_without_noise_is_infinite_and_not_a_number_that_looks_small(
    console: ConsoleWorld, operator: Visitor
) -> None:
    run = begin(console.store, "bare", replace(PLAN, privacy=replace(PLAN.privacy, noise_multiplier=0.0)))
    console.store.runs.begin_round(run, 1, 1)
    console.store.runs.enter_phase(run, 1, 1, "mask")
    told = {"epsilon_server": float("inf"), "epsilon_release": float("inf"), "guard": {}}
    console.store.runs.end_round(RoundRecord(run, 1, 1, "opened", 1.0, 2.0, figures=told))
    console.store.runs.finish(run, "finished", "")
    page = text_of(operator.get("/runs/bare").text)
    assert "Epsilon spent infinite" in page
    assert operator.get("/runs/bare/privacy.json").json()["series"][0]["values"] == [None]


def test_who_was_in_a_round_is_shown_to_those_who_may_see_privacy(
    console: ConsoleWorld, operator: Visitor, viewer: Visitor, autumn: RunId
) -> None:
    told = text_of(operator.get("/runs/autumn/devices?round=2&attempt=1&outcome=").text)
    assert told.count("device-") == 8
    rows = list(
        csv.DictReader(io.StringIO(operator.get("/runs/autumn/devices?outcome=dropped&format=csv").text))
    )
    assert {(row["device"], row["reason"]) for row in rows} == {("device-007", "the battery is low")}
    assert len(rows) == 4
    assert (
        text_of(operator.get("/runs/autumn/devices?device=device-001&round=&attempt=").text).count(
            "in the sum"
        )
        >= 3
    )
    # From anywhere, odd places in a list are its beginning and never an error.
    for cursor in ("x", "1", "1/2", "9999999999999999999999/1/a"):
        assert operator.get(f"/runs/autumn/devices?cursor={cursor}").status_code == 200


def test_a_run_is_stopped_by_its_typed_name_and_the_second_operator_is_told(
    console: ConsoleWorld, operator: Visitor, viewer: Visitor
) -> None:
    trained(console.store, "spring", at_s=console.clock(), rounds=1)
    asked = operator.get("/runs/spring/stop")
    fields = hidden(asked.text)
    assert viewer.post("/runs/spring/stop", typed="spring", reason="x").status_code == 403
    assert operator.post("/runs/spring/stop", **fields, typed="x", reason="y").status_code == 422
    assert operator.post("/runs/spring/stop", **fields, typed="spring", reason="").status_code == 422
    assert console.store.runs.get(RunId("spring")).state == "running"  # type: ignore[union-attr]
    assert operator.post("/runs/spring/stop", **fields, typed="spring", reason="bad data").status_code == 303
    stopped = console.store.runs.get(RunId("spring"))
    assert stopped is not None
    assert (stopped.state, stopped.reason) == ("stopped", "bad data")
    (entry,) = console.store.audit.all(Sought(object="run:spring", action="run.stop"))
    assert (entry.actor, entry.reason) == ("a-operator", "bad data")
    late = operator.post("/runs/spring/stop", **fields, typed="spring", reason="me too")
    assert late.status_code == 409
    assert "run spring is stopped already (bad data)" in text_of(late.text)
    assert "me too" in text_of(late.text)


def test_only_a_run_that_nobody_drives_is_resumed(
    console: ConsoleWorld, operator: Visitor, autumn: RunId
) -> None:
    directory = console.fleet.runs / autumn
    directory.mkdir(parents=True, exist_ok=True)
    assert "/runs/autumn/resume" in operator.get("/runs/autumn").text
    with driving(directory):
        assert "/runs/autumn/resume" not in operator.get("/runs/autumn").text
        answer = operator.get("/runs/autumn/resume")
        assert answer.status_code == 409
        assert "driven by a server process already" in text_of(answer.text)
        assert operator.post("/runs/autumn/resume", reason="go on").status_code == 409


def test_a_schedule_is_begun_now_paused_let_go_on_and_removed(
    console: ConsoleWorld, operator: Visitor
) -> None:
    schedule(console.store, "weekly", now_s=console.clock())
    here = "/runs/-/schedules"
    assert "7" in text_of(operator.get(here).text)

    def act(what: str, **fields: str) -> int:
        form = hidden(operator.get(f"{here}/weekly/{what}").text)
        return operator.post(f"{here}/weekly/{what}", **form, **fields).status_code

    def now() -> tuple[str, float]:
        (found,) = console.store.schedules.all()
        return found.state, found.next_s

    assert act("begin", reason="") == 422
    assert act("begin", reason="data is in") == 303
    assert now() == ("active", console.clock())
    form = hidden(operator.get(f"{here}/weekly/pause").text)
    assert act("pause", reason="holiday") == 303
    assert now()[0] == "paused"
    late = operator.post(f"{here}/weekly/pause", **form, reason="me too")
    assert late.status_code == 409
    assert "somebody changed weekly meanwhile, it is paused" in text_of(late.text)
    assert operator.post(f"{here}/weekly/begin", state="paused", reason="now").status_code == 409
    assert act("resume", reason="back") == 303
    assert act("remove", reason="done", typed="x") == 422
    assert act("remove", reason="done", typed="weekly") == 303
    assert console.store.schedules.all() == ()
    actions = [each.action for each in console.store.audit.all(Sought(object="schedule:weekly"))]
    assert actions == [f"schedule.{each}" for each in ("create", "hasten", "pause", "resume", "remove")]


def test_what_a_device_said_of_why_it_left_is_text(console: ConsoleWorld, operator: Visitor) -> None:
    run = begin(console.store, "hostile")
    hold_round(console.store, run, 1, at_s=console.clock())
    evil = "<img src=x onerror=alert(1)>"
    console.store.runs.finish(run, "failed", evil, actor=ANN)
    for path in ("/runs", "/runs/hostile"):
        page = operator.get(path).text
        assert evil not in page
        assert html.escape(evil) in page


def test_what_is_not_there_is_not_found(operator: Visitor) -> None:
    for path in ("/runs/nobody", "/runs/nobody/stop", "/runs/nobody/learning.json", "/runs/nobody/devices"):
        assert operator.get(path).status_code == 404, path
    assert operator.get("/runs/-/schedules/nobody/pause").status_code == 404


def test_figures_that_a_round_lacks_are_missing_and_not_nothing(console: ConsoleWorld) -> None:
    run = begin(console.store, "empty")
    record = console.store.runs.get(run)
    assert record is not None
    seen = run_seen(console.fleet, console.store, record, rows=10)
    assert (seen.metrics, seen.scored, seen.score, seen.phases, seen.last) == ((), "", None, (), None)
    course = course_of(console.fleet, console.store, record)
    for chart in CHARTS.values():
        assert chart(course)["empty"]
    # A fleet without a budget has no line to draw, and JSON no word for infinite.
    endless = CHARTS["privacy"](replace(course, budget=float("inf")))
    assert json.loads(json.dumps(endless, allow_nan=False)) == endless


def hidden(page: str) -> dict[str, str]:
    """Return the hidden fields of the last form of a page."""
    form = page[page.rindex('<form method="post"') :]
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {name: html.unescape(value) for name, value in found if name != "csrf"}
