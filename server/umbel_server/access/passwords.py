"""Passwords: argon2id, and the same time for a name that nobody has."""

from __future__ import annotations

import functools
import secrets
import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from argon2.profiles import RFC_9106_LOW_MEMORY

from umbel_proto.errors import UsageError

MIN_CHARS, MAX_CHARS = 12, 256
"""NIST SP 800-63B-4, 3.1.1: length is what counts, and no rule about kinds of characters."""

_hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
# 64 MiB each: a burst of sign-ins must not take the machine's memory.
_turns = threading.BoundedSemaphore(2)


def hash_password(password: str) -> str:
    """Return what is kept of a password: algorithm, parameters, salt and hash (PHC string format).

    Raises:
        UsageError: It is too short or too long.
    """
    if not MIN_CHARS <= len(password) <= MAX_CHARS:
        raise UsageError(f"The password has {len(password)} characters: choose {MIN_CHARS} to {MAX_CHARS}.")
    with _turns:
        return _hasher.hash(password)


def password_matches(kept: str | None, password: str) -> bool:
    """Return whether a password is the one that was kept; a missing one takes as long and never is.

    Args:
        kept: What ``hash_password`` returned; None: there is no such account, or it has no password.
        password: What somebody typed.
    """
    with _turns:
        try:
            matches = _hasher.verify(_nobodys() if kept is None else kept, password[: MAX_CHARS + 1])
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError):
            return False
    return matches and kept is not None


def outdated(kept: str) -> bool:
    """Return whether a password was kept with other parameters than today's, and should be kept anew."""
    return _hasher.check_needs_rehash(kept)


@functools.cache
def _nobodys() -> str:
    return _hasher.hash(secrets.token_hex(16))
