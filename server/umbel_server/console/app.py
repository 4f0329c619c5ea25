"""The console as an ASGI app: its screens, each with its door."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import HTMLResponse

from umbel_server.api.service import service_for
from umbel_server.api.shell import HEADERS, Shell
from umbel_server.console import errors, live, static_files
from umbel_server.console.page import templates
from umbel_server.console.pulse import Pulse
from umbel_server.console.screens import (
    alerts,
    approvals,
    audit,
    bulk,
    device,
    devices,
    drift,
    energy,
    enrollment,
    experiment_new,
    experiments,
    explanations,
    fairness,
    groups,
    health,
    model_version,
    models,
    overview,
    performance,
    proposals,
    queries,
    query_new,
    reviews,
    rollout,
    rollout_new,
    rollouts,
    run_new,
    runs,
    schedules,
    settings,
    sign_in,
    tokens,
    users,
    version_actions,
)
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

ROUTERS: tuple[APIRouter, ...] = (
    static_files.router,
    live.router,
    sign_in.open_router,
    sign_in.router,
    overview.router,
    devices.router,
    device.router,
    bulk.router,
    enrollment.router,
    groups.router,
    health.router,
    models.router,
    model_version.router,
    version_actions.router,
    approvals.router,
    reviews.router,
    alerts.router,
    schedules.router,
    proposals.router,
    run_new.router,
    runs.router,
    queries.router,
    query_new.router,
    rollouts.router,
    rollout_new.router,
    rollout.router,
    experiment_new.router,
    experiments.router,
    drift.router,
    performance.router,
    fairness.router,
    explanations.router,
    energy.router,
    audit.router,
    settings.router,
    users.router,
    tokens.router,
)
"""A new screen is one line here."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
"""What a page may load and where it may send: only what is here, and no script or style within a page."""

_HEADERS = (
    *HEADERS,
    (b"content-security-policy", POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    # Nobody else learns which page led to them; ours need it, to lead back.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)


def make_app() -> FastAPI:
    """Return the console; it serves nothing yet."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    for router in ROUTERS:
        app.include_router(router)
    app.state.paths = frozenset(
        str(getattr(route, "path", "")) for router in ROUTERS for route in router.routes
    )
    errors.install(app)
    app.add_middleware(Shell, headers=_HEADERS, failed=_failed)
    return app


def create_app(fleet: FleetDir, store: Store) -> FastAPI:
    """Return the console of a fleet.

    Args:
        fleet: Its directory.
        store: Its store.
    """
    app = make_app()
    app.state.pulse = Pulse(store)
    app.state.service = service_for(fleet, store)
    return app


def _failed(sentence: str) -> Response:
    return HTMLResponse(templates().get_template("failed.html").render(sentence=sentence), 500)
