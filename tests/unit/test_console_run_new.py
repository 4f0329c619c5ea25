"""The form that starts a federated run: what it would spend is shown before, and is what is agreed to."""

from __future__ import annotations

import contextlib
import html
import re
import ssl
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest

from console_world import ConsoleWorld, Visitor, text_of
from run_world import PLAN, schedule
from service_fleet import ManualClock
from simulation.federation import lenient_policy
from simulation.tabular import TabularFederation
from umbel_proto.ids import ModelName, RunId
from umbel_server.access.actor import Role, local_actor
from umbel_server.console.screens.run_new import NEW
from umbel_server.console.seen.asked_run import MAX_TOML, changed, read_toml, to_toml
from umbel_server.console.server import ConsoleServer
from umbel_server.console.words import figures
from umbel_server.learning.begin import start
from umbel_server.learning.plan import Clipping, Metrics, Result, RunPlan
from umbel_server.store.audit import Sought

TOML = """
model = "tiny"
rounds = 2
devices = 4
[training]
learning_rate = 0.5
[privacy]
clip = 2.0
noise_multiplier = 4.0
"""
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    """A fleet with a budget, whose console listens; no SuperLink does."""
    policy = replace(lenient_policy(), noise_floor=0.5, budget_epsilon=8.0)
    federation = TabularFederation(tmp_path_factory.mktemp("begun"), 4, policy=policy)
    fleet, clock = federation.fleet, ManualClock()
    trust = ssl.create_default_context(cafile=fleet.ca_pem)
    with (
        fleet.open_store(clock=clock) as store,
        ConsoleServer(fleet, store, port=0) as server,
        contextlib.ExitStack() as visitors,
    ):
        yield ConsoleWorld(fleet, store, clock, f"https://{server.address}", trust, visitors)


@pytest.fixture(scope="module")
def operator(console: ConsoleWorld) -> Visitor:
    return console.signed_in(Role.OPERATOR)


def at(toml: str = TOML, **more: str) -> str:
    return f"{NEW}?{urlencode({'toml': toml, **more})}"


def hidden(page: str) -> dict[str, str]:
    form = page[page.rindex('<form method="post"') :]
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {name: html.unescape(value) for name, value in found if name != "csrf"}


def plan_in(page: str) -> str:
    found = re.search(r"<textarea name=\"toml\"[^>]*>(.*?)</textarea>", page, re.DOTALL)
    assert found
    return html.unescape(found[1])


def names(console: ConsoleWorld) -> set[str]:
    return {each.id for each in console.store.runs.all()}


def test_the_form_shows_what_a_dry_run_tells_and_starts_nothing(
    console: ConsoleWorld, operator: Visitor
) -> None:
    before = names(console)
    page = operator.get(at())
    assert page.status_code == 200
    run, cost = start(
        console.fleet, console.store, read_toml(TOML), name="", dry_run=True, actor=local_actor()
    )
    told = text_of(page.text)
    assert f"{run} : tiny from version 1" in told.replace(f"{run}:", f"{run} :")
    assert f"epsilon {figures(cost['epsilon_server'])} at delta 1e-05 against the server" in told
    assert "4 of 4 can pay for all of it" in told
    assert "0 by the device that spent most, of 8.00 at delta 1e-05" in told
    assert "of 8.00" in told[told.index("Then spent") :]
    assert names(console) == before
    assert "/runs/-/new" in operator.get("/runs").text


def test_a_form_that_is_opened_holds_a_plan_that_this_fleet_would_take(operator: Visitor) -> None:
    toml = plan_in(operator.get(NEW).text)
    assert "tiny" in toml
    page = operator.get(
        at(toml.replace("rounds = 4", "rounds = 1").replace("multiplier = 1", "multiplier = 9"))
    )
    assert (page.status_code, "to confirm" in page.text) == (200, True)


@pytest.mark.parametrize(
    ("toml", "status", "says"),
    [
        ("model = ", 422, "not TOML"),
        (f"model = {'9' * 5000}", 422, "no plan has"),
        (f"model.{'a.' * 5000}a = 1", 422, "no plan has"),
        (TOML.replace('"tiny"', '"none"'), 422, "released no such package"),
        (TOML.replace("rounds = 2", "rounds = 0"), 422, "rounds is 0"),
        (TOML.replace("rounds = 2", f"rounds = {10**400}"), 422, "rounds is a whole number of more"),
        (TOML.replace("= 4.0", f"= {10**400}"), 422, "noise_multiplier is a whole number of more"),
        (TOML + "sigma = 1", 422, "unknown field"),
        ('heldout = "../../etc/passwd.npz"' + TOML, 422, "the name of an .npz file"),
        (TOML.replace("= 4.0", "= 0.1"), 409, "below the fleet's floor of 0.5"),
        (TOML.replace("rounds = 2", "rounds = 2000"), 409, "its budget is 8"),
        ("#" * (MAX_TOML + 1), 422, "longer than"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_sentence_and_kept(
    operator: Visitor, toml: str, status: int, says: str
) -> None:
    page = operator.get(at(toml))
    assert page.status_code == status
    (sentence,) = re.findall(r'<p class="notice bad" role="alert">(.*?)</p>', page.text)
    assert says in html.unescape(sentence)
    assert "to confirm" not in page.text
    assert plan_in(page.text).strip()[:20] == toml.strip()[:20]


def test_nothing_starts_without_the_typed_name_a_reason_and_the_cost_that_was_seen(
    console: ConsoleWorld, operator: Visitor
) -> None:
    before, here = names(console), at(name="mine")
    fields = hidden(operator.get(here).text)
    assert fields["name"] == "mine"
    for changes, status, says in (
        ({"typed": "x", "reason": "y"}, 422, "type mine to confirm"),
        ({"typed": "mine", "reason": ""}, 422, "give a reason"),
        ({"typed": "mine", "reason": "y", "state": "0" * 64}, 409, "has changed since you looked"),
    ):
        answer = operator.post(here, **(fields | changes))
        assert answer.status_code == status
        assert says in text_of(answer.text)
        assert "to confirm" in answer.text
    # Somebody looked at one plan, and another is sent.
    other = at(TOML.replace("rounds = 2", "rounds = 3"), name="mine")
    assert operator.post(other, **fields, typed="mine", reason="y").status_code == 409
    assert names(console) == before


def test_a_confirmed_run_goes_on_record_with_who_started_it_and_why(
    console: ConsoleWorld, operator: Visitor
) -> None:
    """No SuperLink listens in this test: the run is on record as failed, and the page says why."""
    here = at(name="lost")
    answer = operator.post(here, **hidden(operator.get(here).text), typed="lost", reason="new labels")
    assert answer.status_code == 503
    assert "SuperLink does not answer" in text_of(answer.text)
    found = console.store.runs.get(RunId("lost"))
    assert found is not None
    assert found.state == "failed"
    (entry,) = console.store.audit.all(Sought(object="run:lost", action="run.start"))
    assert (entry.actor, entry.reason) == ("a-operator", "new labels")
    again = operator.get(here)
    assert again.status_code == 422
    assert "already a run lost" in text_of(again.text)


def test_who_may_only_look_neither_sees_the_form_nor_starts(console: ConsoleWorld) -> None:
    before, viewer = names(console), console.signed_in(Role.VIEWER)
    assert viewer.get(NEW).status_code == 403
    assert viewer.post(at(), name="mine", typed="mine", reason="x", state="").status_code == 403
    assert NEW not in viewer.get("/runs").text
    assert names(console) == before


def test_a_plan_on_record_is_taken_without_its_release_and_means_the_same(
    console: ConsoleWorld, operator: Visitor
) -> None:
    schedule(
        console.store,
        "weekly",
        now_s=console.clock(),
        model=ModelName("tiny"),
        plan={"model": "tiny", "rounds": 3, "devices": 4, "privacy": {"clip": 1.0, "noise_multiplier": 9.0}},
    )
    plan = replace(PLAN, model=ModelName("tiny"), heldout=str(console.fleet.path / "data" / "held.npz"))
    console.store.runs.create(RunId("old"), plan.model, plan.to_json())
    page = operator.get(f"{NEW}?from=run:old").text
    toml = plan_in(page)
    assert 'heldout = "held.npz"' in toml
    assert "package_sha256" not in toml
    assert plan_in(operator.get(f"{NEW}?from=schedule:weekly").text).count("rounds = 3") == 1
    assert "schedule weekly" in text_of(page)
    # Of one that is not there, a plan to begin with.
    assert "tiny" in plan_in(operator.get(f"{NEW}?from=run:nobody").text)


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        replace(PLAN, metrics=Metrics(names=("loss",), share=0.1), weight_cap=5, attempts=1),
        replace(PLAN, result=Result("elsewhere/c.npz"), clipping=Clipping(rate=0.2)),
    ],
    ids=("usual", "metrics", "result"),
)
def test_a_plan_as_text_is_the_plan(console: ConsoleWorld, plan: RunPlan) -> None:
    fields: dict[str, Any] = read_toml(to_toml(console.fleet, changed(plan)))
    again = RunPlan.from_mapping({**fields, "version": plan.version, "package_sha256": plan.package_sha256})
    assert again == plan


def test_what_somebody_wrote_is_text(operator: Visitor) -> None:
    page = operator.get(at(f"# {EVIL}\n{TOML}", name="x"))
    assert EVIL not in page.text
    assert html.escape(EVIL) in page.text
