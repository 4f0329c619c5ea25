"""A prediction that waits on a device is answered by clicking, and from the keyboard."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from browser.conftest import Open
from console_world import ConsoleWorld
from review_seed import id_of, report
from umbel_proto.reviews import EndedReview
from umbel_server.access.actor import Role

pytestmark = pytest.mark.e2e


def test_a_reviewer_answers_what_waits_and_sees_what_the_device_made_of_it(
    world: ConsoleWorld, visit: Open
) -> None:
    opened = visit("/", role=Role.REVIEWER)
    page = opened.page
    page.get_by_role("link", name="Reviews", exact=True).click()
    row = page.get_by_role("row", name=re.compile("rose")).filter(has_text="61 %")
    row.get_by_role("link", name="Answer").click()
    # Without a label or a reason the browser itself sends nothing.
    page.get_by_role("button", name="Answer").click()
    expect(page).to_have_url(re.compile(r"/reviews/\d+$"))
    page.get_by_label("1", exact=True).check()
    page.get_by_label("Why?").fill("one upright stroke")
    page.get_by_role("button", name="Answer").click()
    expect(page.get_by_role("status")).to_contain_text("is answered: 1. rose is told")
    expect(row).to_have_count(0)
    page.get_by_role("link", name="Answered and ended").click()
    done = page.get_by_role("row").filter(has_text="one upright stroke")
    expect(done).to_contain_text("on its way")
    expect(done).to_contain_text("a-reviewer")
    report(world.fleet, world.store, "rose", ended=[EndedReview(id_of("rose-1"), "answered")])
    # The page looks again by itself.
    expect(done).to_contain_text("done on the device")
    opened.check()


def test_the_keyboard_alone_answers(world: ConsoleWorld, visit: Open) -> None:
    number = next(
        each.id for each in world.store.reviews.page(limit=100) if each.announced_id == id_of("iris-2")
    )
    opened = visit(f"/reviews/{number}", role=Role.REVIEWER)
    page = opened.page
    page.get_by_label("0", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type("two bows")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text(f"Review {number} is answered: 2.")
    assert world.store.reviews.get(number).answer == 2
    opened.check()
