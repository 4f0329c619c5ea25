"""Accounts, tokens and entries of the audit log as programs read them."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel_server.store.accounts import Account
    from umbel_server.store.api_tokens import ApiToken
    from umbel_server.store.audit import Entry


def account_json(account: Account) -> dict[str, Any]:
    """Return an account as JSON values."""
    return {
        "name": account.name,
        "active": account.active,
        "roles": sorted(account.roles),
        "has_password": account.has_password,
        "subject": account.subject,
        "created_s": account.created_s,
        "signed_in_s": account.signed_in_s,
    }


def token_json(made: ApiToken) -> dict[str, Any]:
    """Return what is known of a token as JSON values."""
    return {
        "id": made.id,
        "user": made.account,
        "purpose": made.purpose,
        "scopes": sorted(made.scopes),
        "created_s": made.created_s,
        "expires_s": made.expires_s,
        "used_s": made.used_s,
        "revoked_s": made.revoked_s,
    }


def entry_json(entry: Entry) -> dict[str, Any]:
    """Return an entry of the audit log as JSON values."""
    return {
        "sequence": entry.sequence,
        "time": time_text(entry.time_ms),
        "actor": entry.actor,
        "action": entry.action,
        "object": entry.object,
        "reason": entry.reason,
        "before": json.loads(entry.before),
        "after": json.loads(entry.after),
        "hash": entry.hash.hex(),
    }


def time_text(unix_ms: int) -> str:
    """Return a moment as ISO 8601 has it, to a millisecond."""
    when = datetime.datetime.fromtimestamp(unix_ms / 1000, datetime.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
