"""The screens of experiments: what they say of real ones, and who decides from them, by what."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from console_world import ConsoleWorld, Visitor, console_world, text_of
from experiment_world import PLAN, Shop
from rollout_world import ANN
from umbel_server.access.actor import Role
from umbel_server.console.screens.experiments import FRESH_S
from umbel_server.experiments.decision import decide
from umbel_server.rollouts.state import RollBack
from umbel_server.store.audit import Sought

BETTER = {2: 0.30, 3: 0.45}


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("experiments")) as made:
        yield made


@pytest.fixture(scope="module")
def world(console: ConsoleWorld) -> Shop:
    made = Shop(console.store, console.clock, devices=60, releases=(1, 2))
    made.check()
    made.hold(2)
    made.release(3)
    return made


# Each test signs in anew: the hours that devices report end sessions.
@pytest.fixture
def operator(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.OPERATOR)


@pytest.fixture
def viewer(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.VIEWER)


@pytest.fixture
def told(world: Shop) -> Iterator[str]:
    """An experiment that has told something, undecided; whatever became of it, it is over afterwards."""
    world.clock.advance(60)
    name = f"try-{len(world.store.experiments.all())}"
    world.begin(name=name)
    world.check()
    for _ in range(3):
        world.sell(BETTER)
    world.clock.advance(FRESH_S)
    yield name
    if world.store.experiments.get(name).final is None:
        decide(world.store, name, "stop", actor=ANN, comment="the test is over")
    elif world.store.rollouts.get(name).live:
        world.store.rollouts.happen(name, RollBack("the test is over"), actor=ANN)
    world.check()


def test_without_experiments_the_list_says_so_and_how_to_begin_one(operator: Visitor, world: Shop) -> None:
    assert "umbel experiment start" in text_of(operator.get("/experiments").text)


def test_an_experiment_is_looked_at_first_and_begun_only_by_its_typed_name(
    world: Shop, operator: Visitor
) -> None:
    here = (
        "/experiments/-/new?model=digits&version=3&metric=app.sales/app.visits&least_effect=0.02&treatment=50&control=50"
        "&least_devices=20&days=7&question=Do+people+buy+more%3F"
    )
    looked = operator.get(here)
    assert world.store.experiments.all() == ()
    fields = hidden(looked.text)
    assert "type digits-3-ab to confirm" in text_of(operator.post(here, **fields, typed="x", reason="y").text)
    assert operator.post(here, **fields, typed="digits-3-ab", reason="").status_code == 422
    assert world.store.experiments.all() == ()
    assert operator.post(here, **fields, typed="digits-3-ab", reason="autumn").status_code == 303
    made = world.store.experiments.get("digits-3-ab")
    assert (made.plan.metric, made.plan.question, made.created_by) == (
        "app.sales/app.visits",
        "Do people buy more?",
        "a-operator",
    )
    page = text_of(operator.get("/experiments/digits-3-ab").text)
    assert "too little yet" in page
    assert "There is nothing to ship it by yet." in page
    answer = operator.post("/experiments/digits-3-ab/stop", typed="digits-3-ab", reason="enough", known="0")
    assert answer.status_code == 303
    world.check()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("metric=app.sales&least_effect=much", "The smallest difference that matters: 'much' is no number"),
        ("metric=app.sales&least_effect=1&days=900", "The experiment lasts 900 days"),
        ("metric=sales&least_effect=1", "sales"),
        ("toml=days=1", "An experiment has no metric"),
    ],
)
def test_what_cannot_be_an_experiment_is_said_beside_the_form(
    world: Shop, operator: Visitor, wrong: str, sentence: str
) -> None:
    answer = operator.get(f"/experiments/-/new?model=digits&version=3&{wrong}")
    assert answer.status_code in (409, 422)
    assert sentence in text_of(answer.text)


def test_the_screen_tells_the_difference_the_ratio_and_the_guardrails(
    world: Shop, told: str, operator: Visitor
) -> None:
    page = text_of(operator.get(f"/experiments/{told}").text)
    assert "better" in page
    assert "The treatment is better: the whole interval lies on its side." in page
    assert "errors pass" in page
    assert "as drawn" in page
    chart = operator.get(f"/experiments/{told}/course.json").json()
    (series,) = chart["series"]
    assert series["low"][-1] < series["values"][-1] < series["high"][-1]
    assert series["low"][-1] > 0
    assert len(chart["x"]["values"]) == len(series["values"]) > 1
    rows = list(csv.DictReader(io.StringIO(operator.get(f"/experiments/{told}?format=csv").text)))
    assert [float(row["estimate"]) for row in rows] == series["values"]


def test_a_decision_is_typed_reasoned_and_kept_with_what_was_seen(
    world: Shop, told: str, operator: Visitor
) -> None:
    asked = operator.get(f"/experiments/{told}/ship")
    assert "touched" in text_of(asked.text)
    fields = hidden(asked.text)
    assert operator.post(f"/experiments/{told}/ship", **fields, typed="x", reason="y").status_code == 422
    assert world.store.experiments.get(told).final is None
    assert (
        operator.post(f"/experiments/{told}/ship", **fields, typed=told, reason="it sells").status_code == 303
    )
    final = world.store.experiments.get(told).final
    assert final is not None
    assert (final.decision, final.actor, final.comment) == ("ship", "a-operator", "it sells")
    page = text_of(operator.get(f"/experiments/{told}").text)
    assert "it sells" in page
    assert "a-operator decided" in page
    (entry,) = world.store.audit.all(Sought(object=f"experiment:{told}", action="experiment.ship"))
    assert entry.reason == "it sells"


def test_of_two_who_decide_at_once_the_second_is_told_and_decides_nothing(
    world: Shop, told: str, operator: Visitor
) -> None:
    form = hidden(operator.get(f"/experiments/{told}/stop").text)
    decide(world.store, told, "extend", actor=ANN, comment="a holiday", days=9)
    late = operator.post(f"/experiments/{told}/stop", **form, typed=told, reason="no use")
    assert late.status_code == 409
    assert "Somebody else decided something" in text_of(late.text)
    assert "no use" in text_of(late.text)
    assert world.store.experiments.get(told).final is None
    late = operator.post(f"/experiments/{told}/extend", known="0", days="5", reason="me too")
    assert late.status_code == 409
    assert len(world.store.experiments.get(told).decisions) == 1


def test_an_extension_asks_for_days_and_a_reason(world: Shop, told: str, operator: Visitor) -> None:
    path = f"/experiments/{told}/extend"
    for days, reason in (("", "x"), ("many", "x"), ("nan", "x"), ("3", "")):
        assert operator.post(path, known="0", days=days, reason=reason).status_code == 422
    assert world.store.experiments.get(told).decisions == ()
    assert operator.post(path, known="0", days="20", reason="a holiday").status_code == 303
    assert [each.decision for each in world.store.experiments.get(told).decisions] == ["extend"]


def test_who_may_only_look_decides_nothing(world: Shop, told: str, viewer: Visitor) -> None:
    page = viewer.get(f"/experiments/{told}")
    assert f"/experiments/{told}/ship" not in page.text
    for path in (f"/experiments/{told}/stop", f"/experiments/{told}/extend", "/experiments/-/new"):
        assert viewer.post(path, typed=told, reason="x", days="1").status_code == 403
    assert world.store.experiments.get(told).decisions == ()


def test_what_a_person_wrote_is_text_and_never_markup(world: Shop, operator: Visitor) -> None:
    world.clock.advance(60)
    evil = "<script>alert(1)</script>"
    world.begin(name="evil", plan=replace(PLAN, question=evil))
    try:
        for path in ("/experiments", "/experiments/evil"):
            page = operator.get(path).text
            assert evil not in page
            assert html.escape(evil) in page
    finally:
        decide(world.store, "evil", "stop", actor=ANN, comment=evil)
        world.check()
    assert evil not in operator.get("/experiments/evil").text


def hidden(page: str) -> dict[str, str]:
    """Return the hidden fields of the last form of a page."""
    form = page[page.rindex('<form method="post"') :]
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {name: html.unescape(value) for name, value in found if name != "csrf"}
