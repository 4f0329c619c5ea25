"""What each role may do: the one table of it, for the API, the console and the command line."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from umbel_proto.errors import UsageError
from umbel_server.access.actor import Role


class Permission(enum.StrEnum):
    """What a route or a command asks for; also the scopes that a token may have."""

    DEVICES_READ = "devices:read"
    DEVICES_WRITE = "devices:write"
    ENROLLMENT_READ = "enrollment:read"
    ENROLLMENT_WRITE = "enrollment:write"
    TELEMETRY_READ = "telemetry:read"
    RELEASES_READ = "releases:read"
    RELEASES_WRITE = "releases:write"
    REGISTRY_READ = "registry:read"
    REGISTRY_WRITE = "registry:write"
    REGISTRY_APPROVE = "registry:approve"
    ROLLOUTS_READ = "rollouts:read"
    ROLLOUTS_WRITE = "rollouts:write"
    RUNS_READ = "runs:read"
    RUNS_WRITE = "runs:write"
    ALERTS_READ = "alerts:read"
    ALERTS_WRITE = "alerts:write"
    PRIVACY_READ = "privacy:read"
    QUERIES_WRITE = "queries:write"
    REVIEWS_READ = "reviews:read"
    REVIEWS_WRITE = "reviews:write"
    POLICY_READ = "policy:read"
    POLICY_WRITE = "policy:write"
    USERS_READ = "users:read"
    USERS_WRITE = "users:write"
    AUDIT_READ = "audit:read"
    HEALTH_READ = "health:read"
    TOKENS_READ = "tokens:read"
    TOKENS_WRITE = "tokens:write"


_P = Permission
_OWN_TOKENS = frozenset({_P.TOKENS_READ, _P.TOKENS_WRITE})
_LOOK = frozenset(
    {
        _P.DEVICES_READ,
        _P.TELEMETRY_READ,
        _P.RELEASES_READ,
        _P.REGISTRY_READ,
        _P.ROLLOUTS_READ,
        _P.RUNS_READ,
        _P.ALERTS_READ,
        _P.PRIVACY_READ,
        _P.POLICY_READ,
        _P.HEALTH_READ,
        *_OWN_TOKENS,
    }
)

HELD: Mapping[Role, frozenset[Permission]] = {
    Role.VIEWER: _LOOK,
    # What a single device's model said, and to put a label in its place, is for those who judge models.
    Role.REVIEWER: _LOOK | {_P.REGISTRY_APPROVE, _P.REVIEWS_READ, _P.REVIEWS_WRITE, _P.AUDIT_READ},
    Role.RELEASE_MANAGER: _LOOK
    | {_P.REGISTRY_WRITE, _P.REGISTRY_APPROVE, _P.RELEASES_WRITE, _P.ROLLOUTS_WRITE},
    Role.OPERATOR: _LOOK
    | {
        _P.DEVICES_WRITE,
        _P.ENROLLMENT_READ,
        _P.ENROLLMENT_WRITE,
        _P.ROLLOUTS_WRITE,
        _P.RUNS_WRITE,
        _P.ALERTS_WRITE,
        _P.QUERIES_WRITE,
        _P.AUDIT_READ,
    },
    Role.ADMIN: frozenset(Permission),
    # A pipeline brings candidates in and looks at what became of them; it neither approves nor releases.
    Role.CI: frozenset({_P.REGISTRY_READ, _P.REGISTRY_WRITE, _P.RELEASES_READ, _P.RUNS_READ, _P.HEALTH_READ}),
}
"""What a role may do. `tokens:…` is about an account's own tokens."""


def held(roles: Iterable[Role]) -> frozenset[Permission]:
    """Return everything that these roles together may do."""
    return frozenset[Permission]().union(*(HELD[role] for role in roles))


def parse_roles(names: Iterable[str]) -> frozenset[Role]:
    """Return roles by their names.

    Raises:
        UsageError: There is no such role, or none is named.
    """
    try:
        roles = frozenset(map(Role, names))
    except ValueError as exc:
        raise UsageError(
            f"{str(exc).split(' is not')[0]} is not a role: choose of {', '.join(Role)}."
        ) from exc
    if not roles:
        raise UsageError(f"An account needs a role: choose of {', '.join(Role)}.")
    return roles


def parse_scopes(names: Iterable[str]) -> frozenset[Permission]:
    """Return scopes by their names; ``devices`` is all about devices, ``read`` all that only looks.

    Raises:
        UsageError: There is no such scope, or none is named.
    """
    scopes: set[Permission] = set()
    for name in names:
        found = {scope for scope in Permission if name in (scope, *scope.split(":"))}
        if not found:
            raise UsageError(f"{name[:40]!r} is not a scope: choose of {', '.join(Permission)}.")
        scopes |= found
    if not scopes:
        raise UsageError(f"A token needs a scope: choose of {', '.join(Permission)}.")
    return frozenset(scopes)
