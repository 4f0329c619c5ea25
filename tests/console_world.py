"""A fleet whose console really listens, over TLS, and people who sign in to it."""

from __future__ import annotations

import contextlib
import html
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from service_fleet import ManualClock, PlainDevice, make_fleet
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.oidc_settings import OidcSettings
from umbel_server.access.passwords import hash_password
from umbel_server.access.permissions import Permission
from umbel_server.console.app import ROUTERS
from umbel_server.console.guard import ScreenRoute
from umbel_server.console.server import ConsoleServer
from umbel_server.fleet.layout import FleetDir
from umbel_server.registry.settings import Registry
from umbel_server.store.accounts import Account
from umbel_server.store.store import Store

PASSWORD = "correct horse battery"  # Nobody's.
NOWHERE = OidcSettings()


@cache
def password_hash() -> str:
    return hash_password(PASSWORD)


class Visitor:
    """A browser without scripts: cookies, forms, and no redirect followed unless asked."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.csrf = ""

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def post(self, path: str, **fields: str | list[str]) -> httpx.Response:
        """Send a form of this session's."""
        return self.client.post(path, data={"csrf": self.csrf, **fields})

    def sign_in(self, name: str, password: str = PASSWORD) -> httpx.Response:
        answer = self.client.post("/sign-in", data={"name": name, "password": password, "next": "/"})
        if answer.status_code == 303:
            # Whatever page: whoever may not see it is told so in the same layout.
            found = re.search(r'name="umbel-csrf" content="([0-9a-f]+)"', self.client.get("/").text)
            assert found
            self.csrf = found[1]
        return answer


PENDING = 'hx-trigger="load delay:1s" hx-target="#screen"'
"""What a page has that is to be loaded anew, and not only a part of it."""


class Patient(Visitor):
    """One who looks again while a page says that its numbers follow in a moment, as the page itself does in a browser."""

    def get(self, path: str, **more: Any) -> httpx.Response:
        give_up_s = time.monotonic() + 60
        while PENDING in (answer := super().get(path, **more)).text:
            assert time.monotonic() < give_up_s, f"{path} still waits for its numbers"
            time.sleep(0.05)
        return answer


@dataclass(slots=True)
class ConsoleWorld:
    """A fleet, its store and clock, and where its console is."""

    fleet: FleetDir
    store: Store
    clock: ManualClock
    url: str
    trust: ssl.SSLContext
    visitors: contextlib.ExitStack

    def visitor(self) -> Visitor:
        """Return a browser that nobody has signed in with."""
        client = httpx.Client(base_url=self.url, verify=self.trust, timeout=60)
        return Patient(self.visitors.enter_context(client))

    def account(self, role: Role) -> Account:
        """Return the account of somebody of a role: `a-ROLE`, made when first asked for."""
        found = self.store.accounts.get(f"a-{role}")
        return found or self.store.accounts.add(
            local_actor(), f"a-{role}", roles=frozenset({role}), password=password_hash()
        )

    def signed_in(self, role: Role = Role.ADMIN) -> Visitor:
        """Return a browser that somebody of this role has signed in with."""
        visitor = self.visitor()
        assert visitor.sign_in(self.account(role).name).status_code == 303
        return visitor

    def device(self, name: str) -> PlainDevice:
        device = PlainDevice()
        device.admit(self.fleet, self.store, name=name, now_s=self.clock())
        return device


@contextlib.contextmanager
def console_world(
    path: Path,
    *,
    failures_per_minute: int = 1_000_000,
    oidc: OidcSettings = NOWHERE,
    clock: ManualClock | None = None,
    approvals: int = 0,
    port: int = 0,
) -> Iterator[ConsoleWorld]:
    clock = clock or ManualClock()
    made = make_fleet(path / "fleet", clock=clock)
    api = replace(made.settings.api, failures_per_minute=failures_per_minute)
    fleet = FleetDir(made.path, replace(made.settings, api=api, oidc=oidc, registry=Registry(approvals)))
    trust = ssl.create_default_context(cafile=fleet.ca_pem)
    with (
        fleet.open_store(clock=clock) as store,
        ConsoleServer(fleet, store, port=port) as server,
        contextlib.ExitStack() as visitors,
    ):
        yield ConsoleWorld(fleet, store, clock, f"https://{server.address}", trust, visitors)


def screen_routes() -> list[tuple[str, str, Permission | None]]:
    """Return method, path and permission of every screen and action: found, not listed."""
    return [
        (method, route.path, route.permission)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, ScreenRoute)
        for method in sorted(route.methods)
    ]


def text_of(page: str) -> str:
    """Return what somebody reads of a page: no tags, no space that does not show."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
