"""Screens "Settings", what only shows: the fleet's policy and privacy tasks, keys and rotation, signing in elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from umbel_proto.errors import StorageError, UsageError
from umbel_server.access.actor import Role
from umbel_server.access.permissions import HELD, Permission
from umbel_server.api.service import Service, ServiceOf
from umbel_server.console.export import export
from umbel_server.console.guard import ScreenRoute, may
from umbel_server.console.page import page
from umbel_server.console.session import session_of
from umbel_server.fleet.keys import keys, retired
from umbel_server.fleet.layout import SETTINGS_FILE
from umbel_server.monitor.spending import spending
from umbel_server.store.runs import RunRecord
from umbel_server.trust.repository import Repository
from umbel_server.trust.shown import shown

router = APIRouter(route_class=ScreenRoute)

_POLICY = [may(Permission.POLICY_READ)]
SOON_S = 30 * 86400.0
"""How long before its end something is told to end soon."""
KEY_COLUMNS = ("name", "purpose", "id", "held", "since_s", "ends_s", "change")
ROLE_COLUMNS = ("permission", *(role.value for role in Role))


@dataclass(frozen=True, slots=True)
class Tab:
    """A page of the settings.

    Args:
        path: Where it is.
        title: What it is called.
        permission: What it takes to see it.
    """

    path: str
    title: str
    permission: Permission


TABS = (
    Tab("/settings", "Fleet and policy", Permission.POLICY_READ),
    Tab("/settings/privacy", "Privacy", Permission.PRIVACY_READ),
    Tab("/settings/keys", "Keys", Permission.POLICY_READ),
    Tab("/settings/tokens", "Tokens", Permission.TOKENS_READ),
    Tab("/settings/users", "Users", Permission.USERS_READ),
    Tab("/settings/roles", "Roles", Permission.POLICY_READ),
    Tab("/settings/sign-in", "Sign-in", Permission.POLICY_READ),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of ``fleet.toml``.

    Args:
        name: Its name.
        value: What it is.
        about: What it is for, as the file says.
    """

    name: str
    value: str
    about: str


@dataclass(frozen=True, slots=True)
class Budget:
    """What the fleet's devices have spent of their privacy, and what still may.

    Args:
        limit: The budget of each device; None: there is none.
        delta: Of every epsilon.
        charged: How many devices were ever charged.
        highest: What the one that spent most has spent; None: none was ever charged.
        exhausted: How many have nothing left.
        running: Runs that are charging devices now.
    """

    limit: float | None
    delta: float
    charged: int
    highest: float | None
    exhausted: int
    running: tuple[RunRecord, ...]


def tabs(request: Request) -> dict[str, Any]:
    """Return what the head of each page of the settings shows."""
    permissions = session_of(request).permissions
    return {"tabs": tuple(each for each in TABS if each.permission in permissions)}


def table_of(settings: Any) -> Iterator[Setting]:
    """Yield what a table of ``fleet.toml`` says, with what each is for."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        told = ("yes" if value else "no") if isinstance(value, bool) else str(value) or "not set"
        yield Setting(field.name, told, str(field.metadata.get("note", "")))


def budget(service: Service) -> Budget:
    """Return how the fleet's privacy budget stands.

    Raises:
        StorageError: A run's record is damaged.
    """
    policy = service.fleet.policy()
    spent = [each.epsilon for each in spending(service.store, service.fleet.runs, policy.budget_delta)]
    limit = policy.budget_epsilon if policy.budget_epsilon < float("inf") else None
    return Budget(
        limit,
        policy.budget_delta,
        len(spent),
        max(spent, default=None),
        0 if limit is None else sum(each >= limit for each in spent),
        tuple(each for each in service.store.runs.all() if each.finished_s is None),
    )


@router.get("/settings", dependencies=_POLICY)
def show_fleet(request: Request, service: ServiceOf) -> Response:
    """Show the fleet's policy, what it takes to release a version, and how long what is kept."""
    settings = service.fleet.settings
    tables = {
        "Releases": ("registry", tuple(table_of(settings.registry))),
        "Retention": ("retention", tuple(table_of(settings.retention))),
        "Admission of devices": ("admission", tuple(table_of(settings.admission))),
        "Signed metadata": ("trust", tuple(table_of(settings.trust))),
    }
    cells = ((name, each.name, each.value, each.about) for name, rows in tables.values() for each in rows)
    file = export(request, "settings", ("table", "setting", "value", "about"), cells)
    if file is not None:
        return file
    return page(
        request,
        "settings.html",
        title="Settings",
        **tabs(request),
        policy=service.fleet.policy(),
        tables=tables,
        file=SETTINGS_FILE,
        apart=settings.ca.apart,
    )


@router.get("/settings/privacy", dependencies=[may(Permission.PRIVACY_READ)])
def show_privacy(request: Request, service: ServiceOf) -> Response:
    """Show the privacy budget, what charges it, and what each device has spent."""
    delta = service.fleet.policy().budget_delta
    lines = (
        (each.device, each.epsilon, len(each.runs), sum(run.participations for run in each.runs))
        for each in spending(service.store, service.fleet.runs, delta)
    )
    file = export(request, "privacy", ("device", "epsilon", "runs", "participations"), lines)
    if file is not None:
        return file
    return page(
        request,
        "settings_privacy.html",
        title="Privacy",
        **tabs(request),
        budget=budget(service),
        policy=service.fleet.policy(),
        schedules=service.store.schedules.all(),
    )


@router.get("/settings/keys", dependencies=_POLICY)
def show_keys(request: Request, service: ServiceOf) -> Response:
    """Show which keys there are, who has them, when what they stand for ends, and what changes them."""
    found = keys(service.fleet)
    file = export(
        request, "keys", KEY_COLUMNS, ([each.to_json()[name] for name in KEY_COLUMNS] for each in found)
    )
    if file is not None:
        return file
    signed: list[dict[str, Any]] = []
    waiting: dict[str, int] = {}
    unsigned = ""
    try:
        signed, waiting = shown(Repository.of(service.fleet, clock=service.store.clock))
    except (UsageError, StorageError) as exc:
        unsigned = str(exc)
    return page(
        request,
        "settings_keys.html",
        title="Keys",
        **tabs(request),
        keys=found,
        retired=tuple(retired(service.fleet)),
        signed=signed,
        waiting=waiting,
        unsigned=unsigned,
        soon_s=SOON_S,
    )


@router.get("/settings/roles", dependencies=_POLICY)
def show_roles(request: Request) -> Response:
    """Show which role may do what."""
    cells = ((each.value, *(each in HELD[role] for role in Role)) for each in Permission)
    file = export(request, "roles", ROLE_COLUMNS, cells)
    if file is not None:
        return file
    return page(
        request,
        "settings_roles.html",
        title="Roles",
        **tabs(request),
        roles=tuple(Role),
        permissions=tuple(Permission),
        held=HELD,
    )


@router.get("/settings/sign-in", dependencies=_POLICY)
def show_sign_in_settings(request: Request, service: ServiceOf) -> Response:
    """Show where people sign in, and what somebody else's word means here. No secret is shown."""
    oidc = service.fleet.settings.oidc
    return page(
        request,
        "settings_sign_in.html",
        title="Sign-in",
        **tabs(request),
        oidc=oidc,
        meaning=oidc.meaning() if oidc.issuer else (),
        failures=service.fleet.settings.api.failures_per_minute,
        file=SETTINGS_FILE,
    )
