"""A fleet whose API really listens, over TLS, and people who talk to it."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from service_fleet import ManualClock, PlainDevice, make_fleet
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.oidc_settings import OidcSettings
from umbel_server.access.permissions import Permission
from umbel_server.api.app import ROUTERS
from umbel_server.api.guard import GuardedRoute
from umbel_server.api.server import ApiServer
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

DAY_S = 86400.0
NOWHERE = OidcSettings()


@dataclass(slots=True)
class ApiWorld:
    """A fleet, its store and clock, and a client that knows where its API is."""

    fleet: FleetDir
    store: Store
    clock: ManualClock
    client: httpx.Client

    def user(self, name: str, *roles: Role, password: str | None = None) -> str:
        self.store.accounts.add(local_actor(), name, roles=frozenset(roles), password=password)
        return name

    def token(self, name: str, scopes: Iterable[Permission], *, valid_s: float = DAY_S) -> str:
        text, _ = self.store.api_tokens.create(local_actor(), name, scopes=frozenset(scopes), valid_s=valid_s)
        return text

    def call(self, token: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})}
        return self.client.request(method, f"/api/v1{path}", headers=headers, **more)

    def device(self, name: str) -> None:
        PlainDevice().admit(self.fleet, self.store, name=name, now_s=self.clock())


@contextlib.contextmanager
def api_world(
    path: Path,
    *,
    failures_per_minute: int = 1_000_000,
    oidc: OidcSettings = NOWHERE,
    clock: ManualClock | None = None,
    approvals: int = 0,
) -> Iterator[ApiWorld]:
    clock = clock or ManualClock()
    made = make_fleet(path / "fleet", clock=clock)
    if approvals:
        settings = made.path / "fleet.toml"
        settings.write_text(settings.read_text().replace("approvals = 0", f"approvals = {approvals}"))
        made = FleetDir.open(made.path)
        assert made.settings.registry.approvals == approvals
    api = replace(made.settings.api, failures_per_minute=failures_per_minute)
    fleet = FleetDir(made.path, replace(made.settings, api=api, oidc=oidc))
    trust = ssl.create_default_context(cafile=fleet.ca_pem)
    with (
        fleet.open_store(clock=clock) as store,
        ApiServer(fleet, store, port=0) as server,
        httpx.Client(base_url=f"https://{server.address}", verify=trust, timeout=60) as client,
    ):
        yield ApiWorld(fleet, store, clock, client)


def guarded_routes() -> list[tuple[str, str, Permission | None]]:
    """Return method, path and permission of every route that asks who calls: found, not listed."""
    return [
        (method, route.path, route.permission)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, GuardedRoute)
        for method in sorted(route.methods)
    ]


def filled(path: str) -> str:
    """Return a route's path with something in its places that is nowhere."""
    path = path.replace("{version}", "1").replace("{other}", "2")
    path = path.replace("{name}", "nobody").replace("{device}", "nobody")
    return path.replace("{id}", "tok-0123456789")
