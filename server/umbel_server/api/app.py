"""The API as an ASGI app: its routers, each with its door."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from fastapi import APIRouter, FastAPI

from umbel_server.api import problems
from umbel_server.api.routes import (
    alerts,
    audit,
    devices,
    enrollment,
    experiments,
    groups,
    monitor,
    oidc,
    own,
    policy,
    queries,
    registry,
    releases,
    reviews,
    rollouts,
    runs,
    schedules,
    telemetry,
    users,
)
from umbel_server.api.service import service_for
from umbel_server.api.shell import Shell
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

ROUTERS: tuple[APIRouter, ...] = (
    own.open_router,
    oidc.router,
    own.router,
    devices.router,
    devices.reports,
    groups.router,
    enrollment.router,
    telemetry.router,
    monitor.router,
    releases.router,
    releases.uploads,
    registry.router,
    registry.uploads,
    registry.every,
    registry.any_upload,
    rollouts.router,
    rollouts.holds,
    rollouts.pins,
    experiments.router,
    runs.router,
    runs.reports,
    runs.privacy,
    schedules.router,
    queries.router,
    reviews.router,
    reviews.agreement,
    alerts.router,
    alerts.rules,
    alerts.channels,
    alerts.notices,
    alerts.proposals,
    policy.router,
    policy.health,
    users.router,
    users.tokens,
    users.all_tokens,
    audit.router,
)
"""A new subject is one line here."""

DESCRIPTION = """\
Everything that an operator does with a fleet. Each request but the sign-in shows a token:
`Authorization: Bearer umbel_…`. Lists come in pages: go on with `cursor=NEXT` until `next` is null. Send a change
that must not be done twice with an `Idempotency-Key` of your own. Errors are problem details (RFC 9457)."""


class Api(FastAPI):
    """The API. Its description is no route of its own: only those who are signed in may read it."""

    def openapi(self) -> dict[str, Any]:
        """Return its OpenAPI 3.1 description."""
        if self.openapi_schema is None:
            made = super().openapi()
            made["components"]["schemas"]["Problem"] = problems.SCHEMA
        assert self.openapi_schema is not None
        return self.openapi_schema


def make_app() -> Api:
    """Return the API as it is described; it serves nothing yet."""
    app = Api(
        title="umbel",
        version=importlib.metadata.version("umbel"),
        description=DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=problems.RESPONSES,
    )
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app)
    app.add_middleware(Shell)
    return app


def create_app(fleet: FleetDir, store: Store) -> Api:
    """Return the API of a fleet.

    Args:
        fleet: Its directory.
        store: Its store.
    """
    app = make_app()
    app.state.service = service_for(fleet, store)
    return app
