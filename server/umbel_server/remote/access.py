"""Accounts, tokens and the audit log at a fleet's service, as commands read and change them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from umbel_proto.errors import UsageError, VerificationError
from umbel_server.access.actor import Role
from umbel_server.access.chain import Checkpoint
from umbel_server.access.permissions import Permission, held, parse_scopes
from umbel_server.access.shown import time_text
from umbel_server.remote.client import Client, MissingError, path
from umbel_server.remote.place import needed
from umbel_server.store.audit import Sought


class AccessFar:
    """The accounts at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def users(self) -> list[dict[str, Any]]:
        """Return the accounts by name."""
        return list(self._client.pages("/users"))

    def require_user(self, name: str) -> None:
        """Check that there is an account, before somebody is asked for a password of it."""
        self._client.get(path("users", name))

    def require_no_user(self, name: str) -> None:
        """Check that a name is free, before somebody is asked for a password."""
        try:
            self._client.get(path("users", name))
        except MissingError:
            return
        raise UsageError(f"There is already a user {name}: choose another name.")

    def add_user(
        self, name: str, roles: frozenset[Role], password: str | None, reason: str
    ) -> dict[str, Any]:
        """Make an account; without a password it only ever has tokens."""
        asked = {"name": name, "roles": sorted(roles), "password": password, "reason": reason}
        made: dict[str, Any] = self._client.post("/users", asked)
        return made

    def set_roles(self, name: str, roles: frozenset[Role], reason: str) -> dict[str, Any]:
        """Give an account other roles."""
        seen, body = path("users", name), {"roles": sorted(roles), "reason": needed(reason)}
        made: dict[str, Any] = self._client.amend(seen, path("users", name, "roles"), body)
        return made

    def set_active(self, name: str, active: bool, reason: str) -> dict[str, Any]:
        """Refuse an account, or let it in again."""
        what = "enable" if active else "disable"
        made: dict[str, Any] = self._client.post(path("users", name, what), {"reason": needed(reason)})
        return made

    def set_password(self, name: str, password: str, reason: str) -> dict[str, Any]:
        """Give an account another password."""
        body = {"password": password, "reason": needed(reason)}
        made: dict[str, Any] = self._client.replace(path("users", name, "password"), body)
        return made

    def create_token(self, name: str, scope: Sequence[str], days: float, purpose: str) -> dict[str, Any]:
        """Make a token of one's own account or of a program's; its text is there once."""
        me = self._client.get("/me")
        mine = me["name"] == name
        scopes = parse_scopes(scope)
        if any(":" not in each for each in scope):
            # A word for many scopes means those that the account has, and the token that is shown.
            roles = me["roles"] if mine else self._client.get(path("users", name))["roles"]
            scopes &= held(Role(each) for each in roles)
            if mine:
                scopes &= {Permission(each) for each in me["permissions"]}
        asked = {"scopes": sorted(scopes), "days": days, "purpose": purpose}
        made: dict[str, Any] = self._client.post("/tokens" if mine else path("users", name, "tokens"), asked)
        return {"token": made.pop("token"), **made}

    def tokens(self, name: str | None) -> list[dict[str, Any]]:
        """Return the tokens of an account or of all, by id; of one's own alone needs no rights over others."""
        if name is not None and self._client.get("/me")["name"] == name:
            return list(self._client.pages("/tokens"))
        return list(self._client.pages("/all-tokens", user=name))

    def revoke_token(self, id_: str, reason: str) -> dict[str, Any]:
        """Refuse a token from now on."""
        made: dict[str, Any] = self._client.post(path("tokens", id_, "revoke"), {"reason": needed(reason)})
        return made


class AuditFar:
    """The audit log at a service.

    Args:
        client: Talks to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def latest(self, sought: Sought, limit: int) -> list[dict[str, Any]]:
        """Return entries, the newest first."""
        found = []
        for each in self._client.pages("/audit", **_query(sought), limit=min(limit, 1000)):
            found.append(_entry(each))
            if len(found) == limit:
                break
        return found

    def all(self, sought: Sought) -> Iterator[dict[str, Any]]:
        """Yield entries, the oldest first."""
        for each in self._client.pages("/audit", **_query(sought), oldest_first="true"):
            yield _entry(each)

    def verify(self, others: Sequence[Checkpoint]) -> tuple[int, str]:
        """Check that the log is what was written; return how many entries it has, and the last one's hash."""
        if others:
            body = {"checkpoints": [each.to_json() for each in others]}
            found = self._client.post("/audit/verify", body)
        else:
            found = self._client.get("/audit/verify")
        if not found["whole"]:
            raise VerificationError(found["detail"])
        return int(found["entries"]), str(found["head"])

    def checkpoint(self) -> str | None:
        """Return how far the log goes, signed; None: there is nothing to sign yet."""
        line: str | None = self._client.post("/audit/checkpoint")["line"]
        return line


def _query(sought: Sought) -> dict[str, object]:
    return {
        "actor": sought.actor,
        "action": sought.action,
        "object": sought.object,
        "since_s": sought.since_s,
    }


def _entry(shown: dict[str, Any]) -> dict[str, Any]:
    names = ("actor", "action", "object", "reason", "before", "after", "hash")
    return {
        "sequence": shown["sequence"],
        "time": time_text(shown["time_ms"]),
        **{name: shown[name] for name in names},
    }
