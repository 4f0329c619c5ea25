"""The screens of rollouts: what they say of real rollouts, and what may be done from them, by whom."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator

import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from rollout_world import ANN, DIGITS, HALF, World
from umbel_server.access.actor import Role
from umbel_server.console.screens.rollout import FRESH_S
from umbel_server.console.seen.rollouts import gate_seen, steps_seen
from umbel_server.rollouts.decider import Decider
from umbel_server.rollouts.state import Pause, RollBack
from umbel_server.store.audit import Sought


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("rollouts")) as made:
        yield made


@pytest.fixture(scope="module")
def devices(console: ConsoleWorld) -> World:
    return World.with_candidate(console.store, console.clock)


@pytest.fixture(scope="module")
def operator(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.OPERATOR)


@pytest.fixture(scope="module")
def viewer(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.VIEWER)


@pytest.fixture
def running(devices: World) -> Iterator[str]:
    """A rollout that runs; whatever became of it, nothing is under way afterwards."""
    devices.clock.advance(60)
    made = devices.start(3, HALF)
    devices.check()
    yield made.id
    if devices.store.rollouts.get(made.id).status != "rolled-back":
        devices.store.rollouts.happen(made.id, RollBack("the test is over"), actor=ANN)
    devices.check()


def test_without_rollouts_the_list_says_so_and_how_to_begin_one(operator: Visitor, viewer: Visitor) -> None:
    told = text_of(operator.get("/rollouts").text)
    assert "umbel rollout start" in told
    assert "/rollouts/-/new" in operator.get("/rollouts").text
    assert "/rollouts/-/new" not in viewer.get("/rollouts").text


def test_a_rollout_is_looked_at_first_and_begun_only_by_its_typed_name_and_a_reason(
    devices: World, operator: Visitor
) -> None:
    here = "/rollouts/-/new?filled=1&model=digits&version=3&steps=50,100&least_devices=3&gate.failed=on&tolerance.failed=0.1"
    looked = operator.get(here)
    assert "digits: 2 → 3" not in looked.text
    assert "20" in text_of(looked.text)
    assert devices.store.rollouts.all() == ()
    fields = hidden(looked.text)
    for more, sentence in (
        ({"typed": "digits", "reason": "autumn"}, "type digits-3 to confirm"),
        ({"typed": "digits-3", "reason": ""}, "give a reason"),
    ):
        answer = operator.post(here, **fields, **more)
        assert answer.status_code == 422
        assert sentence in text_of(answer.text)
    assert devices.store.rollouts.all() == ()
    begun = operator.post(here, **fields, typed="digits-3", reason="autumn")
    assert (begun.status_code, begun.headers["location"]) == (303, "/rollouts/digits-3")
    made = devices.store.rollouts.get("digits-3")
    assert ([step.percent for step in made.plan.steps], made.plan.least_devices) == ([50, 100], 3)
    (event,) = devices.store.rollouts.events("digits-3")
    assert (event.actor, event.reason) == ("a-operator", "autumn")
    # A second operator who looked at the same is told that somebody was faster.
    again = operator.post(here, **{**fields, "name": "digits-3b"}, typed="digits-3b", reason="autumn")
    assert again.status_code == 409
    assert "Another rollout of digits is under way" in text_of(again.text)
    assert operator.post("/rollouts/digits-3/roll-back", typed="digits-3", reason="over").status_code == 303
    devices.check()


def test_what_cannot_be_a_rollout_is_said_beside_the_form(devices: World, operator: Visitor) -> None:
    for wrong, sentence in (
        ("version=3&steps=ten", "Steps: 'ten' is no number"),
        ("version=three", "Version: 'three' is no whole number"),
        ("version=77", "Version 77 of digits is not released"),
        ("version=3&steps=10,50", "The last step must reach every device"),
        ("version=3&toml=speed=1", "'speed' is no setting of a rollout"),
    ):
        answer = operator.get(f"/rollouts/-/new?filled=1&model=digits&{wrong}")
        assert answer.status_code in (422, 409)
        assert sentence in text_of(answer.text)
    # One that is only too small is shown with whom it would reach, and without a button.
    few = operator.get("/rollouts/-/new?model=digits&version=3&steps=1,100")
    assert "It would not start." in text_of(few.text)
    assert "Start the rollout" not in text_of(few.text)


def test_the_screen_says_what_became_of_the_devices_and_what_gates_say(
    devices: World, operator: Visitor, running: str
) -> None:
    devices.report({3: 1.5})
    devices.clock.advance(FRESH_S)
    reached = len(devices.with_version(3))
    told = text_of(operator.get(f"/rollouts/{running}").text)
    assert f"Offered it {reached} of {devices.devices} devices" in told
    assert "latency p95 fail" in told
    assert "latency rose by" in told
    Decider(devices.store).run_once()
    told = text_of(operator.get(f"/rollouts/{running}").text)
    assert "rolled back" in told
    assert "As they stood at the last event that rests on them" in told
    chart = operator.get(f"/rollouts/{running}/course.json").json()
    assert chart["series"][0]["values"][-1] == reached
    assert [mark["name"] for mark in chart["marks"]] == ["start", "rolled back"]


def test_devices_come_by_what_became_of_them_and_as_a_file(
    devices: World, operator: Visitor, running: str
) -> None:
    reached = sorted(devices.with_version(3))
    broken = reached[0]
    devices.failed[broken] = {3}
    devices.check(broken)
    page = operator.get(f"/rollouts/{running}/devices?state=failed")
    assert text_of(page.text).count("device-") == 1
    rows = list(csv.DictReader(io.StringIO(operator.get(f"/rollouts/{running}/devices?format=csv").text)))
    assert [row["device"] for row in rows] == reached
    assert {row["device"] for row in rows if row["state"] == "failed"} == {broken}
    del devices.failed[broken]


def test_a_rollout_is_paused_resumed_and_stopped_and_each_is_in_the_audit_log(
    devices: World, operator: Visitor, running: str
) -> None:
    for act, fields, state in (
        ("pause", {}, "paused"),
        ("resume", {}, "running"),
        ("keep", {"typed": running}, "kept"),
        ("roll-back", {"typed": running}, "rolled-back"),
    ):
        asked = operator.get(f"/rollouts/{running}/{act}")
        assert "touched" in text_of(asked.text)
        before = devices.store.rollouts.get(running)
        assert operator.post(f"/rollouts/{running}/{act}", **hidden(asked.text), reason="").status_code == 422
        if "typed" in fields:
            wrong = operator.post(f"/rollouts/{running}/{act}", **hidden(asked.text), typed="x", reason="y")
            assert f"type {running} to confirm" in text_of(wrong.text)
        assert devices.store.rollouts.get(running) == before
        answer = operator.post(
            f"/rollouts/{running}/{act}", **hidden(asked.text), **fields, reason=f"to {act}"
        )
        assert answer.status_code == 303, text_of(answer.text)
        assert devices.store.rollouts.get(running).status == state
    found = list(devices.store.audit.all(Sought(object=f"rollout:{running}")))
    assert [(each.action, each.actor, each.reason) for each in found[-4:]] == [
        ("rollout.pause", "a-operator", "to pause"),
        ("rollout.resume", "a-operator", "to resume"),
        ("rollout.stopkeeping", "a-operator", "to keep"),
        ("rollout.rollback", "a-operator", "to roll-back"),
    ]
    told = text_of(operator.get(f"/rollouts/{running}/pause").text)
    assert "to pause is not possible now" in told


def test_of_two_operators_at_once_the_second_is_told_and_keeps_what_was_typed(
    devices: World, operator: Visitor, running: str
) -> None:
    form = hidden(operator.get(f"/rollouts/{running}/roll-back").text)
    devices.store.rollouts.happen(running, Pause("lunch"), actor=ANN)
    late = operator.post(f"/rollouts/{running}/roll-back", **form, typed=running, reason="it smokes")
    assert late.status_code == 409
    told = text_of(late.text)
    assert "was changed meanwhile: it is paused in step 1" in told
    assert "it smokes" in told
    assert devices.store.rollouts.get(running).status == "paused"
    # Having seen that, they may do it all the same.
    again = operator.post(
        f"/rollouts/{running}/roll-back", **hidden(late.text), typed=running, reason="it smokes"
    )
    assert again.status_code == 303


def test_who_may_only_look_is_shown_no_buttons_and_gets_nothing_done(
    devices: World, viewer: Visitor, running: str
) -> None:
    page = viewer.get(f"/rollouts/{running}")
    assert "not allowed" in text_of(page.text)
    assert f"/rollouts/{running}/pause" not in page.text
    for path in (f"/rollouts/{running}/pause", "/rollouts/-/new", "/rollouts/-/pins"):
        assert viewer.post(path, reason="x", typed=running).status_code == 403
    assert devices.store.rollouts.get(running).status == "running"


def test_a_model_is_held_back_and_let_go(devices: World, operator: Visitor) -> None:
    assert "by rollouts only" in text_of(operator.get("/rollouts/-/holds").text)
    asked = operator.get("/rollouts/-/holds/digits/end")
    assert f"{devices.devices} devices touched" in text_of(asked.text)
    assert (
        operator.post("/rollouts/-/holds/digits/end", typed="digits", reason="all is well").status_code == 303
    )
    assert devices.store.rollouts.baselines() == {}
    assert "to all at once" in text_of(operator.get("/rollouts/-/holds").text)
    assert operator.post("/rollouts/-/holds/letters/hold", reason="x").status_code == 404
    assert operator.post("/rollouts/-/holds/digits/hold", reason="again").status_code == 303
    devices.hold(2)


def test_a_device_is_pinned_and_unpinned(devices: World, operator: Visitor) -> None:
    rose = devices.names[-1]
    assert "umbel rollout pin" in text_of(operator.get("/rollouts/-/pins").text)
    missing = operator.post("/rollouts/-/pins", device=rose, model="digits", version="77", reason="study")
    assert missing.status_code == 422
    assert "Version 77 of digits is not released" in text_of(missing.text)
    assert 'value="study"' in missing.text
    assert (
        operator.post(
            "/rollouts/-/pins", device=rose, model="digits", version="1", reason="study"
        ).status_code
        == 303
    )
    assert devices.store.placements.pinned(DIGITS) == {rose: 1}
    assert rose in text_of(operator.get("/rollouts/-/pins?model=digits").text)
    assert operator.post(f"/rollouts/-/pins/digits/{rose}/end", reason="over").status_code == 303
    assert devices.store.placements.pinned(DIGITS) == {}


def test_what_is_not_there_is_not_found(operator: Visitor) -> None:
    for path in (
        "/rollouts/spring",
        "/rollouts/spring/pause",
        "/rollouts/spring/devices",
        "/rollouts/spring/course.json",
    ):
        assert operator.get(path).status_code == 404, path


def test_a_gate_is_drawn_within_its_line_whatever_it_says() -> None:
    for estimate, low, high in ((0.3, 0.2, 0.5), (0.0, None, None), (-5.0, -9.0, 1.0), (1e9, 0.0, None)):
        told = {
            "gate": "errors",
            "outcome": "open",
            "estimate": estimate,
            "low": low,
            "high": high,
            "tolerance": 0.05,
        }
        drawn = gate_seen(told).drawn
        assert drawn is not None
        assert 0 <= drawn.begin <= drawn.estimate <= drawn.begin + drawn.width <= 201
        assert 0 <= drawn.tolerance <= 200
    assert gate_seen({"gate": "errors", "estimate": None}).drawn is None


def test_steps_say_when_they_began_and_how_long_they_lasted(devices: World, running: str) -> None:
    rollout = devices.store.rollouts.get(running)
    events = devices.store.rollouts.events(running)
    first, last = steps_seen(rollout, events, now_s=events[0].at_s + 90)
    assert (first.state, first.lasted_s, last.state, last.began_s) == ("now", 90.0, "ahead", None)


def hidden(page: str) -> dict[str, str]:
    """Return the hidden fields of the last form of a page."""
    form = page[page.rindex('<form method="post"') :]
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {name: html.unescape(value) for name, value in found if name != "csrf"}
