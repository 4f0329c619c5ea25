"""Who acts in the past that is made up, and who signs in to look at it."""

from __future__ import annotations

import secrets

from umbel_server.access.actor import Actor, Role, local_actor
from umbel_server.access.passwords import hash_password
from umbel_server.store.store import Store

PIPELINE = Actor("pipeline", frozenset({Role.CI}))
MIRA = Actor("mira", frozenset({Role.OPERATOR, Role.RELEASE_MANAGER}))
"""Asks for approvals, releases, rolls out, and looks after devices and alerts."""
JONAS, LENA = (Actor(name, frozenset({Role.REVIEWER})) for name in ("jonas", "lena"))
"""Approve, or do not."""
VISITOR = "visitor"
"""Whoever started the demo."""


def employ(store: Store) -> None:
    """Make the accounts that act in the past; nobody can sign in with one."""
    for each in (PIPELINE, MIRA, JONAS, LENA):
        store.accounts.add(local_actor(), each.name, roles=each.roles, reason="made up by umbel demo --keep")


def invite_visitor(store: Store) -> str:
    """Make the account of whoever started the demo, an administrator; return its password, of which a hash is kept."""
    password = secrets.token_hex(8)
    roles, reason = frozenset({Role.ADMIN}), "started umbel demo --keep"
    store.accounts.add(local_actor(), VISITOR, roles=roles, password=hash_password(password), reason=reason)
    return password
