"""Sign in with a name and a password: a refusal takes as long and says the same, whatever is wrong."""

from __future__ import annotations

from umbel_server.access.passwords import hash_password, outdated, password_matches
from umbel_server.store.accounts import Account, Accounts
from umbel_server.store.api_tokens import SignInError

SIGNED_IN_S = 12 * 3600.0
"""How long a token holds that somebody signed in for: a working day."""


def sign_in(accounts: Accounts, name: str, password: str) -> Account:
    """Return whose name and password these are.

    Raises:
        SignInError: Nobody's; or the account is disabled, or waits after too many failures.
    """
    attempt = accounts.attempt(name)
    matches = password_matches(attempt.password, password)
    account = attempt.account
    if not matches or account is None or attempt.waits or not account.active:
        # While it waits not even the right password counts, and no try makes the waiting longer.
        if not attempt.waits:
            accounts.failed(name)
        raise SignInError(
            "Name and password do not match an account, or too many tries failed: wait a while."
        )
    assert attempt.password is not None
    accounts.succeeded(account, rehashed=hash_password(password) if outdated(attempt.password) else None)
    return account
