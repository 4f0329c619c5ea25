"""Who signs for what devices may install, as people and programs read it."""

from __future__ import annotations

from typing import Any

from umbel_server.trust.metadata import TOP, State, lacking
from umbel_server.trust.repository import Repository


def shown(repository: Repository) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return each role with its keys, and how many signatures what waits for some still lacks, by role.

    Raises:
        UsageError: There is no metadata yet.
        StorageError: A file is missing or damaged.
    """
    state = repository.read()
    roles = [_role(state, name) for name in (*TOP, *sorted(state.lines))]
    return roles, lacking(state, repository.staged())


def _role(state: State, name: str) -> dict[str, Any]:
    role, _ = state.role(name)
    signed = state.get(name).signed
    return {
        "role": name,
        "version": signed.version,
        "expires_s": signed.expires.timestamp(),
        "releases": len(signed.targets) if name in state.lines else None,
        "threshold": role.threshold,
        "keys": list(role.keyids),
    }
