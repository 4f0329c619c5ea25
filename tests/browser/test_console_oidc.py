"""Signing in by clicking at a provider that browsers hold for another site: there, and back to where one was going."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from browser.conftest import SHOTS, Open
from console_seed import devices
from console_world import ConsoleWorld, console_world
from openid_provider import CLIENT, SECRET, OpenIdProvider, openid_provider
from service_fleet import ManualClock, make_fleet
from umbel_server.access.oidc_settings import OidcSettings
from umbel_server.fleet.ports import free_ports

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ConsoleWorld, OpenIdProvider]]:
    path = tmp_path_factory.mktemp("oidc-clicked")
    elsewhere, clock = make_fleet(path / "elsewhere"), ManualClock()
    (port,) = free_ports(1, listen="127.0.0.1", taken=frozenset())
    secret = path / "secret"
    secret.write_text(SECRET)
    with openid_provider(elsewhere, clock, host="localhost") as provider:
        provider.people["ann"] = {"preferred_username": "ann", "groups": ["ops"]}
        provider.people["bob"] = {"preferred_username": "bob", "groups": ["else"]}
        oidc = OidcSettings(
            issuer=provider.issuer,
            client_id=CLIENT,
            client_secret_file=str(secret),
            redirect=f"https://127.0.0.1:{port}/api/v1/oidc/callback",
            ca_file=str(elsewhere.ca_pem),
            roles="ops=operator",
        )
        with console_world(path, oidc=oidc, clock=clock, port=port) as world:
            devices(world)
            yield world, provider


@pytest.fixture(scope="module")
def world(there: tuple[ConsoleWorld, OpenIdProvider]) -> ConsoleWorld:
    return there[0]


def test_somebody_signs_in_elsewhere_and_lands_where_they_were_going(
    world: ConsoleWorld, visit: Open
) -> None:
    opened = visit("/devices?q=rose", role=None)
    page = opened.page
    page.get_by_role("link", name="Sign in with your organization").click()
    page.get_by_role("link", name="ann").click()
    page.wait_for_url(re.compile(r"/devices\?q=rose$"))
    expect(page.get_by_role("link", name="rose", exact=True)).to_be_visible()
    expect(page.get_by_text("ann operator")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    opened.check()


@pytest.mark.parametrize(
    ("choice", "says"), [("Say no", "did not sign you in"), ("bob", "no role in this fleet")]
)
def test_who_is_not_let_in_is_told_and_may_try_again_as_somebody_else(
    world: ConsoleWorld, visit: Open, choice: str, says: str
) -> None:
    opened = visit("/devices?q=iris", role=None)
    page = opened.page
    page.get_by_role("link", name="Sign in with your organization").click()
    page.get_by_role("link", name=choice).click()
    expect(page.get_by_role("alert").first).to_contain_text(says)
    page.screenshot(path=SHOTS / f"sign-in-refused-{choice.split()[0].lower()}.png")
    page.get_by_role("link", name="Sign in with your organization").click()
    page.get_by_role("link", name="ann").click()
    page.wait_for_url(re.compile(r"/devices\?q=iris$"))
    opened.troubles[:] = [each for each in opened.troubles if "401" not in each]
    opened.check()
