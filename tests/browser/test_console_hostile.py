"""Whatever people, devices, packages and links say, on every screen: it is text, and nothing of it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Dialog, Page, expect
from sqlalchemy import Column, String, Text, insert, select, text, update

import registry_seed
from browser.conftest import Open
from browser.test_console_screens import NOT_DRAWN, NOT_MADE, PAGES
from console_world import ConsoleWorld
from service_fleet import PlainDevice
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import Actor, Role, local_actor
from umbel_server.access.permissions import Permission
from umbel_server.store.admission import WaitingError
from umbel_server.store.tables import cohort_rollups, metadata
from umbel_server.store.tables import devices as devices_table
from umbel_server.store.tables_alerts import alerts
from umbel_server.store.tables_enrollment import applications
from umbel_server.store.tables_experiments import experiments
from umbel_server.store.tables_rollouts import device_tags
from umbel_server.store.terms import Terms

pytestmark = pytest.mark.e2e
HIT = "<b data-hit></b><script>alert(1)</script><svg onload=alert(2)><img src=x onerror=alert(3)>"
HOSTILE = f"\"'>{HIT}</textarea></title>{{{{7*7}}}}javascript:alert(4)"
SHORT = "\"'><b data-hit><img src=x onerror=alert(5)>"
"""No longer than a name."""
WORDS = {
    *("reason", "quarantine_reason", "closed_reason", "why", "said", "comment", "text", "purpose", "owner"),
    *("decommission", "who", "actor", "author", "asked_by", "created_by", "decided_by", "answered_by"),
    *("saved_by", "requested_by", "ended_by", "added_by", "code_version"),
}
"""Columns with words of people, devices and programs."""
FACTS = json.dumps({"arch": SHORT, "engine": SHORT, "memory_mib": 4000, "os": HOSTILE, SHORT: HOSTILE})
LINKS = (
    f"/devices?q={quote(SHORT)}&tag={quote(SHORT)}&model={quote(SHORT)}&sort={quote(SHORT)}",
    f"/audit?actor={quote(SHORT)}&object={quote(SHORT)}&action={quote(SHORT)}",
    f"/drift?model={quote(SHORT)}&feature={quote(SHORT)}",
    f"/fairness?label={quote(SHORT)}&range={quote(SHORT)}&refresh={quote(SHORT)}",
    f"/nowhere/{quote(HOSTILE)}",
    f"/sign-in?lost=1&next=/{quote(HOSTILE)}",
    f"/sign-in?lost=1&next={quote('javascript:alert(6)')}",
)
SHOWN = (
    *("/devices/rose", "/groups", "/models/digits", "/models/digits/3", "/approvals/digits/3"),
    *("/rollouts/scent-3", "/experiments/taste-3-ab", "/runs", "/queries/older-hands", "/alerts", "/audit"),
    *("/reviews?show=ended", "/settings/tokens", "/runs/-/schedules", "/runs/-/proposals", "/fairness"),
)
"""Where some of it is certainly to be read."""
DONE = "[...document.querySelectorAll('details')].forEach((each) => { each.open = true; })"
FOUND = """[
  ...document.querySelectorAll("[data-hit], a[href^='javascript:' i], img[src='x'], svg[onload]"),
  ...[...document.scripts].filter((each) => !each.src),
].map((each) => each.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module", autouse=True)
def _card() -> Iterator[None]:
    """Let packages name cohorts, sections and inputs so."""
    with pytest.MonkeyPatch.context() as patch:
        cohorts = (*registry_seed.COHORTS, ("accuracy", 0.9, f"cohort {SHORT}", (0.8, 0.95)))
        patch.setattr(registry_seed, "COHORTS", cohorts)
        patch.setattr(registry_seed, "SECTIONS", {**registry_seed.SECTIONS, f"fairness:{SHORT}": HOSTILE})
        patch.setattr(registry_seed, "DECIDES", {**registry_seed.DECIDES, SHORT: 0.3})
        patch.setattr(registry_seed, "WITHIN", {**registry_seed.WITHIN, SHORT: (40, range(6))})
        registry_seed.version.cache_clear()
        yield
    registry_seed.version.cache_clear()


def poison(world: ConsoleWorld) -> int:
    """Put hostile words everywhere that the store keeps words; return in how many columns."""
    store, rose, many = world.store, DeviceId("rose"), 0
    application = PlainDevice().application(store.tokens.issue(valid_s=6000, approval=True), name="waits")
    with pytest.raises(WaitingError):
        store.devices.enroll(application, certificate_life_s=60, terms=Terms(approve=True))
    store.devices.quarantine(rose, reason=HOSTILE, actor=local_actor())
    admin = Actor("a-admin", frozenset({Role.ADMIN}))
    store.api_tokens.create(
        admin,
        world.account(Role.ADMIN).name,
        scopes=frozenset({Permission.DEVICES_READ}),
        valid_s=6000,
        purpose=HOSTILE,
    )
    store.audit.record(
        Actor(SHORT, frozenset({Role.ADMIN})),
        action="device.tag",
        object=f"device:{HOSTILE}",
        reason=HOSTILE,
        before={SHORT: HOSTILE},
        after=[HOSTILE],
    )
    with store.database.write() as connection:
        # What is append-only is as hostile from the day on that it is written.
        for (trigger,) in connection.execute(
            text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        ).all():
            connection.execute(text(f'DROP TRIGGER "{trigger}"'))
        for table in metadata.sorted_tables:
            words = [each for each in table.columns if _words(each) and table.name != "audit"]
            for column in words:
                told = column.is_not(None) if table.name == "schedules" else column > ""
                if connection.execute(update(table).where(told).values({column.name: HOSTILE})).rowcount:
                    many += 1
        connection.execute(update(devices_table).where(devices_table.c.id.like("%2")).values(facts=FACTS))
        connection.execute(update(devices_table).where(devices_table.c.id == rose).values(facts=FACTS))
        connection.execute(update(applications).values(facts=FACTS))
        connection.execute(insert(device_tags), [{"device_id": rose, "tag": SHORT}])
        of = cohort_rollups.c
        connection.execute(update(cohort_rollups).where(of.cohort == "attic").values(cohort=SHORT))
        labels = json.dumps({"model": "scent", "feature": SHORT})
        connection.execute(update(alerts).where(alerts.c.rule == "scent-drifts").values(labels=labels))
        for name, plan in connection.execute(select(experiments.c.id, experiments.c.plan)).all():
            asked = json.dumps({**json.loads(plan), "question": HOSTILE})
            connection.execute(update(experiments).where(experiments.c.id == name).values(plan=asked))
    return many


def _words(column: Column[object]) -> bool:
    return column.name in WORDS and isinstance(column.type, (String, Text)) and not column.primary_key


def looked(page: Page) -> list[str]:
    """Wait until everything is made and drawn, open what is folded, and return what ran or is there as no text."""
    expect(page.locator(NOT_MADE)).to_have_count(0, timeout=60_000)
    expect(page.locator(NOT_DRAWN)).to_have_count(0)
    page.evaluate(DONE)
    found: list[str] = page.evaluate(FOUND)
    violations: list[str] = page.evaluate("window.violations ?? []")
    return found + violations


def test_nothing_that_anybody_says_runs_on_any_screen(world: ConsoleWorld, visit: Open) -> None:
    assert poison(world) > 20
    opened = visit("/devices/rose")
    page = opened.page
    dialogs: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    shown: set[str] = set()
    for path in (*PAGES, *LINKS):
        if path == "/sign-in":
            continue  # It leads on whoever is signed in; with lost=1, below, it does not.
        page.goto(path)
        assert (looked(page), dialogs) == ([], []), path
        if "<b data-hit>" in page.inner_text("body"):
            shown.add(path)
    # A page of an error is one too; what a script says of itself is not among them.
    assert [each for each in opened.troubles if not each.startswith("console: Failed to load")] == []
    # It is there, as text: else this test would look at nothing.
    missing = set(SHOWN) - shown
    assert missing == set()
