"""Every screen in a real browser: light and dark, wide and narrow, for people who use no mouse or see little."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import SHOTS, Open
from operations_seed import DRIFTED
from umbel_server.access.actor import Role
from umbel_server.console.app import make_app
from umbel_server.console.nav import SCREENS

pytestmark = pytest.mark.e2e
VENDOR = Path(__file__).parent / "vendor"
AXE = (VENDOR / "axe.min.js").read_text()
RUN = """async () => (await axe.run(document, {
  runOnly: %s, resultTypes: ["violations"],
})).violations.map((each) => `${each.id}: ${each.help}: ${each.nodes.slice(0, 3).map((node) => node.html).join(" | ")}`)"""
ALL = RUN % json.dumps(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"])
COLORS = RUN % json.dumps({"type": "rule", "values": ["color-contrast"]})
NOT_DRAWN = "[data-chart]:not([data-drawn='done'])"
NOT_MADE = "[hx-trigger^=load]"
"""What takes the place of figures until they are made."""
DEEP: tuple[str, ...] = (
    "/devices?tag=north",
    "/devices/rose",
    "/devices/rose/revoke",
    "/enrollment/invite",
    "/sign-in",
    "/nowhere",
    "/models/digits",
    "/models/digits/3",
    "/models/digits/3/request",
    "/models/digits/2/retire",
    "/models/digits/compare?before=2&after=3",
    "/approvals/digits/3",
    "/reviews/5",
    "/reviews?show=ended",
    "/audit/7",
    "/audit/verify",
    "/settings/privacy",
    "/settings/keys",
    "/settings/tokens",
    "/settings/users",
    "/settings/users/pipeline",
    "/settings/roles",
    "/settings/sign-in",
    "/rollouts/scent-4",
    "/rollouts/scent-3",
    "/rollouts/-/pins",
    "/rollouts/-/new?filled=1&model=scent&version=5&steps=10,100&gate.failed=on&tolerance.failed=0.05",
    "/experiments/taste-3-ab",
    "/experiments/-/new",
    "/runs/autumn",
    "/runs/-/new?from=run:autumn",
    "/runs/-/schedules",
    "/runs/-/proposals",
    "/queries/digits-seen",
    "/queries/older-hands",
    "/queries/under-way",
    "/queries/-/new",
    "/alerts/-/rules",
    f"/alerts/{DRIFTED}",
    "/drift?feature=input_mean",
    "/fairness?label=3",
    "/fairness/waive?model=digits&version=2&label=3&cohort=north&metric=accuracy",
)
"""Pages that the menu does not list."""
PAGES = (*(each.path for each in SCREENS if each.path in make_app().state.paths), *DEEP)


def problems(page: Page, run: str) -> list[str]:
    """Return what axe finds on a page, and whether it is wider than its window."""
    expect(page.locator(NOT_MADE)).to_have_count(0, timeout=60_000)
    # A function in words would be evaluated, which the console's policy forbids.
    expect(page.locator(NOT_DRAWN)).to_have_count(0)
    page.evaluate(AXE)
    found: list[str] = page.evaluate(run)
    return found + too_wide(page)


def too_wide(page: Page) -> list[str]:
    """Return whether a page has to be scrolled sideways."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [f"it is {wide} pixels too wide"] if wide > 0 else []


@pytest.mark.parametrize("path", PAGES)
def test_a_screen_is_for_everybody_and_breaks_no_rule(visit: Open, path: str) -> None:
    name = re.sub(r"\W+", "-", path).strip("-") or "overview"
    SHOTS.mkdir(parents=True, exist_ok=True)
    opened = visit(path, role=None if path == "/sign-in" else Role.ADMIN)
    page = opened.page
    # What dark changes are colors, and a narrow window what is beside what: not every rule is asked again.
    for width, scheme, run in (
        (1440, "light", ALL),
        (1440, "dark", COLORS),
        (390, "dark", COLORS),
        (390, "light", ALL),
    ):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert problems(page, run) == [], (width, scheme)
        page.screenshot(path=SHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
    # A window of 1280 pixels at 400 %, which is as wide as WCAG 2.2 asks for in 1.4.10.
    page.set_viewport_size({"width": 320, "height": 900})
    if too_wide(page):  # Charts follow a window that changes a moment later: what counts is how it is opened.
        page.reload()
        expect(page.locator(NOT_MADE)).to_have_count(0, timeout=60_000)
        expect(page.locator(NOT_DRAWN)).to_have_count(0)
    assert too_wide(page) == []
    if path == "/nowhere":  # Which answers 404, and the browser says so.
        opened.troubles.clear()
    opened.check()


def test_axe_is_the_one_that_was_looked_at() -> None:
    listed = json.loads((VENDOR / "VENDOR.json").read_text())
    for name, one in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == one["sha256"]
