"""A gap between cohorts is waived, shown as waived and opened again, by clicking."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from browser.conftest import Open
from console_world import ConsoleWorld, console_world
from umbel_server.access.actor import Role
from watch_seed import watch

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("waiver")) as made:
        watch(made)
        yield made


def test_a_reviewer_lives_with_a_gap_and_ends_that_again(visit: Open) -> None:
    opened = visit("/fairness?label=3", role=Role.REVIEWER)
    page = opened.page
    row = page.get_by_role("row").filter(has_text="selection rate").filter(has_text="finding")
    expect(row).to_have_count(1)
    row.get_by_role("link", name="Waive").click()
    page.get_by_label("Days, at most 180").fill("20")
    page.get_by_label("Reason, for the audit log").fill("the north sees more threes")
    page.get_by_role("button", name="Waive the gap").click()
    expect(page.get_by_role("status")).to_contain_text("is waived for 20 days")
    row = page.get_by_role("row").filter(has_text="by a-reviewer").filter(has_text="+20.0")
    expect(row).to_contain_text("waived")
    expect(row).to_contain_text("finding")
    row.get_by_role("link", name="End waiver").click()
    page.get_by_label("Why?").fill("mended")
    page.get_by_role("button", name="End the waiver").click()
    expect(page.get_by_role("status")).to_contain_text("open again")
    expect(page.get_by_role("row").filter(has_text="ended")).to_have_count(1)
    opened.check()
