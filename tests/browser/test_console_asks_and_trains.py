"""Asking the fleet and starting a run by clicking: the cost first, then the typed name, a real SuperLink, devices that answer."""

from __future__ import annotations

import contextlib
import re
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import SHOTS, Open
from console_world import ConsoleWorld
from service_fleet import ManualClock
from simulation.federation import lenient_policy
from simulation.tabular import TabularFederation
from simulation.tiny import SimulatedClock
from umbel_proto.ids import RunId
from umbel_server.access.actor import Role
from umbel_server.console.server import ConsoleServer
from umbel_server.console.words import figures
from umbel_server.demo.supervisor import Supervisor
from umbel_server.learning.fleet_ledger import FleetLedger
from umbel_server.learning.run import run_to_end
from umbel_server.queries.drive import query_to_end
from umbel_server.store.audit import Sought
from umbel_server.superexec import flower_environment

pytestmark = pytest.mark.e2e

TOML = """
model = "tiny"
rounds = 1
devices = 4
[training]
learning_rate = 0.5
[privacy]
clip = 2.0
noise_multiplier = 4.0
[metrics]
names = []
[timing]
settle_s = 0.01
"""


@dataclass(frozen=True, slots=True)
class Live:
    """A fleet whose SuperLink runs as a process; what carries messages between server and devices is in memory."""

    console: ConsoleWorld
    federation: TabularFederation


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("asked-clicked")
    policy = replace(lenient_policy(), budget_epsilon=10.0)
    federation = TabularFederation(root, 4, policy=policy)
    fleet, clock = federation.fleet, ManualClock(time.time())
    trust = ssl.create_default_context(cafile=fleet.ca_pem)
    with (
        Supervisor(root) as supervisor,
        fleet.open_store(clock=clock) as store,
        ConsoleServer(fleet, store, port=0) as server,
        contextlib.ExitStack() as visitors,
    ):
        command = [sys.executable, "-m", "umbel", "serve", "superlink", "--fleet", str(fleet.path)]
        link = supervisor.start("superlink", command, flower_environment(fleet))
        supervisor.wait("the SuperLink", lambda: link.says("ready superlink"), timeout_s=60)
        world = ConsoleWorld(fleet, store, clock, f"https://{server.address}", trust, visitors)
        yield Live(world, federation)


@pytest.fixture(scope="module")
def world(live: Live) -> ConsoleWorld:
    return live.console


def pictures(page: Page, name: str) -> None:
    """Keep a page wide and narrow, light and dark."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            page.screenshot(path=SHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
    page.set_viewport_size({"width": 1440, "height": 900})


def test_a_question_is_put_together_looked_at_confirmed_and_answered(live: Live, visit: Open) -> None:
    store = live.console.store
    opened = visit("/queries", role=Role.OPERATOR)
    page = opened.page
    page.get_by_role("link", name="Ask the fleet").first.click()
    page.get_by_label("About").fill("group")
    page.get_by_label("What for?").fill("to plan a study")
    page.get_by_label("Epsilon").fill("4")
    page.get_by_label("Name").fill("groups")
    page.get_by_role("button", name="Look what it costs").click()
    cost = page.locator("#dry-run")
    expect(cost).to_contain_text("epsilon 4.00 at delta 1e-05")
    expect(cost).to_contain_text("4.00 of 10.0 at most")
    assert store.queries.all() == ()
    ask = page.get_by_role("button", name="Ask the fleet")
    page.get_by_label(re.compile("^Type")).fill("group")
    ask.click()
    expect(page.get_by_role("alert")).to_contain_text("Nobody was asked: type groups to confirm")
    assert store.queries.all() == ()
    page.get_by_label(re.compile("^Type")).fill("groups")
    ask.click()
    page.wait_for_url("**/queries/groups")
    expect(page.get_by_role("status").first).to_contain_text("Query groups is put to 4 devices")
    expect(page.locator("main")).to_contain_text("running")
    page.get_by_role("link", name="Private queries").first.click()
    row = page.get_by_role("row", name=re.compile("groups"))
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("a-operator")
    (entry,) = store.audit.all(Sought(object="query:groups", action="query.ask"))
    assert (entry.actor, entry.reason) == ("a-operator", "to plan a study")
    clock = SimulatedClock()
    query_to_end(
        live.federation.fleet, RunId("groups"), live.federation.link(), clock=clock, pause=clock.pause
    )
    # The list looks again by itself.
    expect(row).to_contain_text("finished", timeout=20_000)
    row.get_by_role("link", name="groups").click()
    expect(page.locator("main")).to_contain_text(re.compile(r"In the sum\s*4 devices"))
    opened.troubles[:] = [each for each in opened.troubles if "422" not in each]
    opened.check()


def test_a_run_is_started_from_a_file_after_a_look_at_what_it_spends(live: Live, visit: Open) -> None:
    store = live.console.store
    opened = visit("/runs", role=Role.OPERATOR)
    page = opened.page
    page.get_by_role("link", name="Start a run").click()
    file = live.federation.root / "plan.toml"
    file.write_text(TOML)
    page.get_by_label("Or from a file").set_input_files(file)
    expect(page.get_by_label("Plan, as TOML")).to_have_value(TOML)
    page.get_by_role("button", name="Look what it spends").click()
    cost = page.locator("#dry-run")
    expect(cost).to_contain_text("tiny-1: tiny from version 1, 1 round")
    # What was spent on questions counts too.
    ledger = FleetLedger.of(store, live.federation.fleet.runs)
    most = max(ledger.spent(device, 1e-5) for device in ledger.active)
    expect(cost).to_contain_text(f"{figures(most)} by the device that spent most, of 10.0")
    expect(cost).to_contain_text("4 of 4 can pay for all of it")
    pictures(page, "runs-new")
    start = page.get_by_role("button", name="Start the run")
    page.get_by_label(re.compile("^Why")).fill("autumn's labels")
    page.get_by_label(re.compile("^Type")).fill("tiny")
    start.click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was started: type tiny-1 to confirm")
    expect(page.get_by_label(re.compile("^Why"))).to_have_value("autumn's labels")
    assert store.runs.all() == ()
    page.get_by_label(re.compile("^Type")).fill("tiny-1")
    start.click()
    page.wait_for_url("**/runs/tiny-1")
    expect(page.get_by_role("status").first).to_contain_text("Run tiny-1 is started")
    (entry,) = store.audit.all(Sought(object="run:tiny-1", action="run.start"))
    assert (entry.actor, entry.reason) == ("a-operator", "autumn's labels")
    for link, button, says in (
        ("Pause after this round", "Pause the run", "begins no more rounds until"),
        ("Resume", "Let it go on", "goes on after its last round"),
    ):
        page.get_by_role("link", name=link).click()
        expect(page.locator("main")).to_contain_text("1 of 1 rounds are left")
        page.get_by_label(re.compile("^Why")).fill("lunch")
        page.get_by_role("button", name=button).click()
        page.wait_for_url("**/runs/tiny-1")
        expect(page.get_by_role("status").first).to_contain_text(f"Run tiny-1 {says}")
        if link != "Resume":
            expect(page.locator("main")).to_contain_text("No round begins, and no device is charged")
            pictures(page, "run-paused")
    run_to_end(live.federation.fleet, RunId("tiny-1"), live.federation.link())
    expect(page.locator("main")).to_contain_text("finished", timeout=20_000)
    expect(page.get_by_role("region", name="Rounds")).to_contain_text("opened")
    opened.troubles[:] = [each for each in opened.troubles if "422" not in each]
    opened.check()


def test_a_run_that_budgets_do_not_cover_is_refused_in_a_sentence(live: Live, visit: Open) -> None:
    opened = visit("/runs/-/new", role=Role.OPERATOR)
    page = opened.page
    page.get_by_label("Plan, as TOML").fill(TOML.replace("rounds = 1", "rounds = 900"))
    page.get_by_role("button", name="Look what it spends").click()
    expect(page.get_by_role("alert")).to_contain_text("its budget is 10")
    expect(page.get_by_role("button", name="Start the run")).to_have_count(0)
    pictures(page, "runs-new-refused")
    opened.troubles[:] = [each for each in opened.troubles if "409" not in each]
    opened.check()
