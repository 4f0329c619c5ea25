"""Who acts: a person or a program, and what it may do."""

from __future__ import annotations

import enum
import os
import pwd
from dataclasses import dataclass

LOCAL = "local:"
"""Begins the name of whoever has the fleet's directory at hand; no account is called so."""


class Role(enum.StrEnum):
    """What somebody may do; admin may everything."""

    VIEWER = "viewer"
    REVIEWER = "reviewer"
    RELEASE_MANAGER = "release-manager"
    OPERATOR = "operator"
    ADMIN = "admin"
    CI = "ci"


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who does something.

    Args:
        name: The account's name, or ``local:USER`` of whoever needs none.
        roles: What it may do.
    """

    name: str
    roles: frozenset[Role]

    @property
    def local(self) -> bool:
        """Whether it had the fleet's directory at hand instead of an account: no second person vouches for it."""
        return self.name.startswith(LOCAL)


def local_actor() -> Actor:
    """Return who runs this process with the fleet's directory at hand: there all roles are theirs anyway."""
    try:
        # Not from the environment, which whoever runs a command chooses.
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return Actor(f"{LOCAL}{user}", frozenset(Role))
