"""People govern by clicking: two approve a version, the audit chain is verified, a token is made and revoked."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from browser.conftest import Open
from console_world import ConsoleWorld
from umbel_server.access.actor import Role
from umbel_server.registry.stages import Stage
from umbel_server.store.api_tokens import SignInError
from umbel_server.store.registry import version_of

pytestmark = pytest.mark.e2e


def stage(world: ConsoleWorld, version: int) -> Stage:
    with world.store.database.read() as connection:
        found = version_of(connection, "digits", version)
    assert found is not None
    return found.stage


def test_a_version_goes_from_draft_to_approved_by_three_people_who_click(
    world: ConsoleWorld, visit: Open
) -> None:
    asking = visit("/models/digits/5", role=Role.RELEASE_MANAGER)
    page = asking.page
    page.get_by_role("link", name="Ask for approval").click()
    page.get_by_label("Why?").fill("reads older hands better")
    page.get_by_role("button", name="Ask for approval").click()
    page.wait_for_url("**/models/digits/5")
    expect(page.get_by_role("status")).to_contain_text("2 accounts must approve")
    page.get_by_role("link", name="Look at the evidence").click()
    expect(page.get_by_text("asked for this approval, and so cannot give it")).to_be_visible()
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    asking.check()
    for role, left in ((Role.REVIEWER, "it needs 1 more"), (Role.ADMIN, "it has all it needs")):
        opened = visit("/approvals", role=role)
        page = opened.page
        page.get_by_role("row", name=re.compile("digits@5")).get_by_role("link", name="Review").click()
        expect(page.get_by_text("What devices have now: digits@2")).to_be_visible()
        # Without a reason the browser itself sends nothing.
        page.get_by_role("button", name="Approve").click()
        assert page.url.endswith("/approvals/digits/5")
        page.get_by_label("Why?").fill("the figures hold")
        page.get_by_role("button", name="Approve").click()
        expect(page.get_by_role("status")).to_contain_text(left)
        opened.check()
    assert stage(world, 5) is Stage.APPROVED
    trail = visit("/audit?object=version:digits@5")
    names = trail.page.get_by_role("row", name=re.compile("version.approve"))
    expect(names).to_have_count(2)
    trail.check()


def test_a_version_is_retired_only_by_its_typed_name(world: ConsoleWorld, visit: Open) -> None:
    opened = visit("/models/digits/4", role=Role.RELEASE_MANAGER)
    page = opened.page
    page.get_by_role("link", name="Retire").click()
    page.get_by_label("Why?").fill("it was rejected")
    page.get_by_label("Type").fill("digits@3")
    page.get_by_role("button", name="Retire").click()
    expect(page.get_by_role("alert").filter(has_text="Nothing was done")).to_be_visible()
    assert stage(world, 4) is Stage.DRAFT
    page.get_by_label("Type").fill("digits@4")
    page.get_by_role("button", name="Retire").click()
    page.wait_for_url("**/models/digits/4")
    expect(page.get_by_role("status")).to_contain_text("digits@4 is retired")
    assert stage(world, 4) is Stage.RETIRED


def test_the_chain_is_verified_by_a_button(world: ConsoleWorld, visit: Open) -> None:
    opened = visit("/audit", role=Role.OPERATOR)
    page = opened.page
    page.get_by_role("button", name="Verify the chain").click()
    newest = world.store.audit.newest()
    assert newest is not None
    expect(page.locator("#verdict")).to_contain_text(f"The log is whole: {newest.sequence:,} entries")
    opened.check()


def test_a_token_is_made_copied_and_revoked(world: ConsoleWorld, visit: Open) -> None:
    opened = visit("/settings/tokens", role=Role.OPERATOR)
    page = opened.page
    page.get_by_label("What it is for").fill("nightly export")
    page.get_by_role("checkbox", name="telemetry:read").check()
    page.get_by_role("button", name="Make it").click()
    token = page.locator("#token").inner_text().strip()
    assert world.store.api_tokens.bearer(token).account.name == "a-operator"
    page.get_by_role("link", name="I have it").click()
    assert token not in page.content()
    page.get_by_role("row", name=re.compile("nightly export")).get_by_role("link", name="Revoke").click()
    name = page.locator("label code").inner_text()
    page.get_by_label("Why?").fill("the job moved")
    page.get_by_label("Type").fill(name)
    page.get_by_role("button", name="Revoke").click()
    page.wait_for_url("**/settings/tokens")
    expect(page.get_by_role("status")).to_contain_text(f"Token {name} is revoked")
    with pytest.raises(SignInError):
        world.store.api_tokens.bearer(token)
    opened.check()
