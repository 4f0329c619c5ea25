"""Devices by clicking: signing in, filtering, a quarantine, many at once; and a screen that changes by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from browser.conftest import Open
from console_seed import devices
from console_world import PASSWORD, ConsoleWorld, console_world
from umbel_proto.ids import DeviceId
from umbel_server.access.actor import Role, local_actor
from umbel_server.store.sessions import IDLE_S

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    with console_world(tmp_path_factory.mktemp("clicked")) as made:
        devices(made)
        yield made


def test_somebody_signs_in_is_led_back_chooses_dark_and_signs_out(world: ConsoleWorld, visit: Open) -> None:
    world.account(Role.OPERATOR)
    opened = visit("/devices?q=rose", role=None)
    page = opened.page
    page.get_by_label("Name").fill("a-operator")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(re.compile(r"/devices\?q=rose$"))
    page.get_by_role("button", name="dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.url.endswith("/devices?q=rose")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    opened.check()


def test_a_device_is_found_and_quarantined_by_keyboard_and_click(world: ConsoleWorld, visit: Open) -> None:
    opened = visit("/devices", role=Role.OPERATOR)
    page = opened.page
    page.keyboard.press("/")
    page.keyboard.type("ir")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=ir**")
    page.get_by_role("link", name="iris").click()
    page.get_by_role("link", name="Quarantine").click()
    page.get_by_label(re.compile("^Why")).fill("smells")
    page.get_by_label(re.compile("^Type")).fill("iris")
    page.get_by_role("button", name="Quarantine").click()
    expect(page.get_by_role("status")).to_have_text("Device iris is quarantined.")
    device = world.store.devices.get(DeviceId("iris"))
    assert device
    assert device.quarantine_reason == "smells"
    opened.check()


def test_many_devices_get_a_tag(world: ConsoleWorld, visit: Open) -> None:
    opened = visit("/devices", role=Role.OPERATOR)
    page = opened.page
    for name in ("rose", "lily"):
        page.get_by_label(f"Tick {name}", exact=True).check()
    page.locator("#bulk input[name=tag]").fill("shade")
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_text("2 devices touched.")).to_be_visible()
    page.get_by_label(re.compile("^Why")).fill("they like it")
    world.clock.advance(IDLE_S)
    page.get_by_role("button", name="Add the tag").click()
    page.get_by_label("Name").fill("a-operator")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    # After a session that ended it is the same devices, and what was typed.
    expect(page.get_by_text("2 devices touched.")).to_be_visible()
    expect(page.get_by_label(re.compile("^Why"))).to_have_value("they like it")
    page.get_by_role("button", name="Add the tag").click()
    expect(page.get_by_role("status")).to_contain_text("2 of 2 devices done")
    assert dict(world.store.device_list.facets().tags)["shade"] == 2
    opened.check()


def test_a_screen_changes_by_itself_but_not_under_somebodys_hands(world: ConsoleWorld, visit: Open) -> None:
    world.device("fern")
    opened = visit("/devices?q=fern")
    page = opened.page
    row = page.locator("tr", has_text="fern")
    page.get_by_label("Tick fern").check()
    world.store.devices.quarantine(DeviceId("fern"), reason="x", actor=local_actor())
    page.wait_for_timeout(3500)  # Longer than the line takes to say it.
    expect(row).not_to_contain_text("quarantined")
    page.get_by_label("Tick fern").uncheck()
    expect(row).to_contain_text("quarantined", timeout=15_000)
    opened.check()


def test_without_the_line_a_screen_asks_by_itself_and_in_a_hidden_tab_it_does_not(
    world: ConsoleWorld, visit: Open
) -> None:
    world.device("moss")
    page = visit("/devices?q=moss").page
    page.route("**/live?**", lambda route: route.abort())
    page.clock.install()
    page.reload()
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url) if "x-umbel-refresh" in sent.headers else None)
    row = page.locator("tr", has_text="moss")
    world.store.devices.quarantine(DeviceId("moss"), reason="x", actor=local_actor())
    page.clock.run_for(20_000)
    assert asked == []
    page.clock.run_for(15_000)
    expect(row).to_contain_text("quarantined")
    turned = "Object.defineProperty(document, 'hidden', {configurable: true, value: %s}), document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(turned % "true")
    world.store.devices.release(DeviceId("moss"), reason="x", actor=local_actor())
    asked.clear()
    page.clock.run_for(120_000)
    assert asked == []
    page.evaluate(turned % "false")
    expect(row).not_to_contain_text("quarantined")
    assert len(asked) == 1


def test_a_form_after_the_session_ended_does_nothing_and_says_so(world: ConsoleWorld, visit: Open) -> None:
    page = visit("/devices/rose/quarantine", role=Role.OPERATOR).page
    page.get_by_label(re.compile("^Why")).fill("late")
    page.get_by_label(re.compile("^Type")).fill("rose")
    world.clock.advance(IDLE_S)
    page.get_by_role("button", name="Quarantine").click()
    page.wait_for_url("**/sign-in?lost=1**")
    expect(page.get_by_role("alert").first).to_contain_text("nothing was done")
    device = world.store.devices.get(DeviceId("rose"))
    assert device
    assert not device.quarantined
    page.get_by_label("Name").fill("a-operator")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/devices/rose/quarantine")
    # Nothing that was typed is lost, and nobody else is shown it.
    expect(page.get_by_label(re.compile("^Why"))).to_have_value("late")
    expect(page.get_by_label(re.compile("^Type"))).to_have_value("rose")
    assert page.evaluate("sessionStorage.getItem('umbel-typed')") is None
    page.get_by_role("button", name="Quarantine").click()
    page.wait_for_url("**/devices/rose")
    device = world.store.devices.get(DeviceId("rose"))
    assert device
    assert device.quarantine_reason == "late"
