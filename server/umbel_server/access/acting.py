"""Whose word a command carries where the fleet's directory is at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from umbel_proto.errors import RefusedError, UsageError
from umbel_server.access.actor import Actor, local_actor
from umbel_server.access.permissions import Permission

if TYPE_CHECKING:
    from umbel_server.store.store import Store

TOKEN_VARIABLE = "UMBEL_API_TOKEN"  # noqa: S105  # The variable's name, not a secret.


def acting_as(store: Store, token_file: Path | None, permission: Permission) -> Actor:
    """Return who acts: the account of a token, if there is one, or whoever has the fleet's directory at hand.

    Args:
        store: Knows the tokens.
        token_file: Holds a token; without one, the environment may.
        permission: What the token must be for.

    Raises:
        UsageError: The file cannot be read.
        RefusedError: The token is not in force, or not for this.
    """
    if token_file is not None:
        try:
            token = token_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"The token file {token_file} cannot be read.") from exc
    else:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            return local_actor()
    bearer = store.api_tokens.bearer(token)
    if permission not in bearer.permissions:
        raise RefusedError(f"This token of {bearer.account.name} is not for {permission}: use one that is.")
    return bearer.account.actor
