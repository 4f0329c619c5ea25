"""Accounts, tokens and the audit log where the fleet's directory is at hand, as commands read and change them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel_proto.errors import UsageError
from umbel_server.access import chain
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.passwords import hash_password
from umbel_server.access.permissions import held, parse_scopes
from umbel_server.access.reads import Read, on_record
from umbel_server.access.shown import account_json, entry_json, token_json
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.audit import Sought
from umbel_server.store.store import Store

if TYPE_CHECKING:
    from umbel_server.store.accounts import Account


class AccessAtHand:
    """The accounts of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def users(self) -> list[dict[str, Any]]:
        """Return the accounts by name."""
        return [account_json(each) for each in self._store.accounts.all()]

    def require_user(self, name: str) -> None:
        """Check that there is an account, before somebody is asked for a password of it."""
        if self._store.accounts.get(name) is None:
            raise UsageError(f"There is no user {name}: see  umbel user list.")

    def require_no_user(self, name: str) -> None:
        """Check that a name is free, before somebody is asked for a password."""
        if self._store.accounts.get(name) is not None:
            raise UsageError(f"There is already a user {name}: choose another name.")

    def add_user(
        self, name: str, roles: frozenset[Role], password: str | None, reason: str
    ) -> dict[str, Any]:
        """Make an account; without a password it only ever has tokens."""
        kept = None if password is None else hash_password(password)
        return self._changed(
            self._store.accounts.add(local_actor(), name, roles=roles, password=kept, reason=reason)
        )

    def set_roles(self, name: str, roles: frozenset[Role], reason: str) -> dict[str, Any]:
        """Give an account other roles."""
        return self._changed(self._store.accounts.set_roles(local_actor(), name, roles, reason=reason))

    def set_active(self, name: str, active: bool, reason: str) -> dict[str, Any]:
        """Refuse an account, or let it in again."""
        return self._changed(self._store.accounts.set_active(local_actor(), name, active, reason=reason))

    def set_password(self, name: str, password: str, reason: str) -> dict[str, Any]:
        """Give an account another password."""
        kept = hash_password(password)
        return self._changed(self._store.accounts.set_password(local_actor(), name, kept, reason=reason))

    def create_token(self, name: str, scope: Sequence[str], days: float, purpose: str) -> dict[str, Any]:
        """Make a token of an account; its text is there once."""
        account = self._store.accounts.get(name)
        if account is None:
            raise UsageError(f"There is no user {name}: see  umbel user list.")
        scopes = parse_scopes(scope)
        # A word for many scopes means those that the account has.
        wide = scopes & held(account.roles) if any(":" not in each for each in scope) else scopes
        text, made = self._store.api_tokens.create(
            local_actor(), name, scopes=wide, valid_s=days * 86400, purpose=purpose
        )
        chain.keep_checkpoint(self._fleet, self._store)
        return {"token": text, **token_json(made)}

    def tokens(self, name: str | None) -> list[dict[str, Any]]:
        """Return the tokens of an account or of all, by id."""
        return [token_json(each) for each in self._store.api_tokens.all(account=name)]

    def revoke_token(self, id_: str, reason: str) -> dict[str, Any]:
        """Refuse a token from now on."""
        revoked = self._store.api_tokens.revoke(local_actor(), id_, reason=reason)
        chain.keep_checkpoint(self._fleet, self._store)
        return token_json(revoked)

    def _changed(self, account: Account) -> dict[str, Any]:
        chain.keep_checkpoint(self._fleet, self._store)
        return account_json(account)


class AuditAtHand:
    """The audit log of a fleet in its directory.

    Args:
        fleet: The directory.
        store: Its store.
        token_file: Of no use here: whoever has the directory needs no token.
    """

    def __init__(self, fleet: FleetDir, store: Store, token_file: Path | None = None) -> None:
        self._fleet = fleet
        self._store = store

    def latest(self, sought: Sought, limit: int) -> list[dict[str, Any]]:
        """Return entries, the newest first."""
        return [entry_json(each) for each in self._store.audit.latest(sought, limit=limit)]

    def all(self, sought: Sought) -> Iterator[dict[str, Any]]:
        """Yield entries, the oldest first; that they leave is one of them."""
        on_record(self._store, local_actor(), Read.AUDIT, fleet=self._fleet.name)
        chain.keep_checkpoint(self._fleet, self._store)
        yield from map(entry_json, self._store.audit.all(sought))

    def verify(self, others: Sequence[chain.Checkpoint]) -> tuple[int, str]:
        """Check that the log is what was written; return how many entries it has, and the last one's hash."""
        sequence, head = chain.verify(self._fleet, self._store, others)
        return sequence, head.hex()

    def checkpoint(self) -> str | None:
        """Return how far the log goes, signed; None: there is nothing to sign yet."""
        made = chain.keep_checkpoint(self._fleet, self._store)
        return None if made is None else made.to_json()
