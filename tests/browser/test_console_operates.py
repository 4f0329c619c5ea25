"""Operating by clicking: roll out, pause, roll back, decide about an experiment, stop a run, silence an alert."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Open
from console_world import ConsoleWorld
from rollout_world import ANN
from umbel_proto.ids import RunId
from umbel_server.access.actor import Role
from umbel_server.rollouts.state import RollBack

pytestmark = pytest.mark.e2e


def confirm(page: Page, button: str, *, reason: str, typed: str = "") -> None:
    """Give a reason, type a name, and press the button."""
    page.get_by_label(re.compile("^Why")).last.fill(reason)
    if typed:
        page.get_by_label(re.compile("^Type")).fill(typed)
    page.get_by_role("button", name=button).click()


def test_a_rollout_is_paused_resumed_and_rolled_back(world: ConsoleWorld, visit: Open) -> None:
    opened = visit("/rollouts", role=Role.OPERATOR)
    page = opened.page
    page.get_by_role("link", name="scent-4", exact=True).click()
    expect(page.get_by_role("region", name="Gates")).to_contain_text("latency p95")
    page.get_by_role("link", name="Pause").click()
    confirm(page, "Pause", reason="lunch")
    expect(page.get_by_role("status").first).to_contain_text("is paused")
    assert world.store.rollouts.get("scent-4").status == "paused"
    page.get_by_role("link", name="Resume").click()
    confirm(page, "Resume", reason="fed")
    page.get_by_role("link", name="Roll back").click()
    confirm(page, "Roll back", reason="it smokes", typed="scent-3")
    expect(page.get_by_role("alert")).to_contain_text("type scent-4 to confirm")
    assert world.store.rollouts.get("scent-4").status == "running"
    confirm(page, "Roll back", reason="it smokes", typed="scent-4")
    expect(page.get_by_role("status").first).to_contain_text("was rolled back")
    assert world.store.rollouts.get("scent-4").status == "rolled-back"
    opened.troubles[:] = [each for each in opened.troubles if "422" not in each]
    opened.check()


def test_a_rollout_is_looked_at_and_begun(world: ConsoleWorld, visit: Open) -> None:
    for each in world.store.rollouts.all():
        if each.live and each.model == "scent":
            world.store.rollouts.happen(each.id, RollBack("another one is begun"), actor=ANN)
    opened = visit("/rollouts/-/new?model=scent&version=4", role=Role.OPERATOR)
    page = opened.page
    page.get_by_label("Name").fill("scent-again")
    page.get_by_label("Percent of the devices").fill("20, 100")
    page.get_by_role("button", name="Look whom it reaches").click()
    expect(page.get_by_role("region", name="Whom each step reaches")).to_contain_text("step-1")
    confirm(page, "Start the rollout", reason="autumn", typed="scent-again")
    page.wait_for_url("**/rollouts/scent-again")
    made = world.store.rollouts.get("scent-again")
    assert (made.status, [step.percent for step in made.plan.steps]) == ("running", [20, 100])
    opened.check()


def test_an_experiment_is_stopped(world: ConsoleWorld, visit: Open) -> None:
    opened = visit("/experiments/taste-3-ab", role=Role.OPERATOR)
    page = opened.page
    expect(page.locator("main")).to_contain_text("better")
    page.get_by_role("link", name="Stop", exact=True).click()
    confirm(page, "Stop it", reason="it costs too much", typed="taste-3-ab")
    expect(page.get_by_role("region", name="Decisions")).to_contain_text("it costs too much")
    final = world.store.experiments.get("taste-3-ab").final
    assert final is not None
    assert final.decision == "stop"
    opened.check()


def test_a_run_is_stopped(world: ConsoleWorld, visit: Open) -> None:
    opened = visit("/runs/autumn", role=Role.OPERATOR)
    page = opened.page
    page.get_by_role("link", name="Stop after this round").click()
    confirm(page, "Stop the run", reason="bad data", typed="autumn")
    expect(page.get_by_role("status").first).to_contain_text("stops after its round")
    stopped = world.store.runs.get(RunId("autumn"))
    assert stopped is not None
    assert (stopped.state, stopped.reason) == ("stopped", "bad data")
    opened.check()


def test_an_alert_is_silenced(world: ConsoleWorld, visit: Open) -> None:
    opened = visit("/alerts", role=Role.OPERATOR)
    page = opened.page
    page.get_by_role("link", name="scent-drifts").click()
    form = page.locator("form", has=page.get_by_role("button", name="Silence"))
    form.get_by_label("For").fill("4h")
    form.get_by_label("Why?").fill("a known holiday")
    form.get_by_role("button", name="Silence").click()
    expect(page.get_by_role("status").first).to_contain_text("is silenced for 4h")
    (alert,) = world.store.alerts.all(rule="scent-drifts")
    assert alert.status == "silenced"
    opened.check()
