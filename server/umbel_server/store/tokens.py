"""Enrollment tokens: issued once, shown once, kept as hashes."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from umbel_proto.errors import TokenError, UsageError
from umbel_proto.ids import DeviceId, check_name
from umbel_server.access.actor import Actor, local_actor
from umbel_server.clock import Clock
from umbel_server.store.audit import Audit
from umbel_server.store.database import Database
from umbel_server.store.tables import tokens

SECRET_BYTES = 32
MAX_USES = 100_000


@dataclass(frozen=True, slots=True)
class Token:
    """What is known about a token; its secret is not.

    Args:
        hash: SHA-256 of the secret, 32 bytes.
        device: The only name its device may take; None: any.
        expires_s: From when it is refused, Unix seconds.
        uses_left: How many more devices it lets in.
        approval: Whether an operator approves each of its devices by hand.
        replaces: Whether its device takes the place of the one that has the name.
    """

    hash: bytes
    device: DeviceId | None
    expires_s: float
    uses_left: int
    approval: bool
    replaces: bool


class Tokens:
    """The tokens of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._audit = Audit(database, clock)

    def issue(
        self,
        *,
        valid_s: float,
        uses: int = 1,
        device: str | None = None,
        approval: bool = False,
        replaces: bool = False,
        actor: Actor | None = None,
    ) -> bytes:
        """Return a new token's secret, 32 random bytes, of which only a hash is kept.

        Args:
            valid_s: How long it may be used, seconds.
            uses: How many devices it lets in.
            device: The only name its device may take; it then lets one in.
            approval: Whether an operator approves each of its devices by hand.
            replaces: Whether its device takes the place of the one that has the name, whose keys are then refused.
            actor: Who issues it; by default whoever runs this process.

        Raises:
            UsageError: An argument is out of range.
        """
        if not 0 < valid_s <= 365 * 86400:
            raise UsageError(
                f"A token cannot be valid for {valid_s:g} s: choose more than 0 and up to a year."
            )
        if not 1 <= uses <= MAX_USES:
            raise UsageError(f"A token cannot have {uses} uses: choose 1 to {MAX_USES}.")
        if device is not None:
            check_name(device, "device")
            if uses != 1:
                raise UsageError(f"A token for the one device {device} has 1 use, not {uses}.")
        elif replaces:
            raise UsageError("A token that replaces a device names it: add  --name DEVICE.")
        secret = secrets.token_bytes(SECRET_BYTES)
        now_s = self._clock()
        row = {
            "hash": token_hash(secret),
            "device_name": device,
            "created_s": now_s,
            "expires_s": now_s + valid_s,
            "uses_left": uses,
            "approval": int(approval),
            "replaces": int(replaces),
        }
        with self._database.write() as connection:
            connection.execute(insert(tokens).values(row))
            self._audit.append(
                connection,
                actor or local_actor(),
                action="enrollment.invite",
                object=f"invitation:{token_hash(secret).hex()[:16]}",
                after={
                    "device": device,
                    "uses": uses,
                    "expires_s": now_s + valid_s,
                    "approval": approval,
                    "replaces": replaces,
                },
            )
        return secret

    def known(self, secret: bytes) -> None:
        """Check that there is a token with this secret: used up or expired, as who waits for approval may have one.

        Raises:
            TokenError: There is none.
        """
        with self._database.read() as connection:
            find_token(connection, secret)


def token_hash(secret: bytes) -> bytes:
    """Return what the store knows a secret by. It is uniformly random, so a plain hash suffices."""
    return hashlib.sha256(secret).digest()


def find_token(connection: Connection, secret: bytes) -> Token:
    """Return the token with this secret, used up or not, expired or not.

    Raises:
        TokenError: There is none.
    """
    wanted = token_hash(secret)
    row = connection.execute(select(tokens).where(tokens.c.hash == wanted)).one_or_none()
    # The index finds by a hash that whoever guesses cannot steer; the last word is constant-time.
    if row is None or not hmac.compare_digest(row.hash, wanted):
        raise TokenError("The enrollment token is unknown: ask for one with  umbel fleet token.")
    device = None if row.device_name is None else DeviceId(row.device_name)
    return Token(row.hash, device, row.expires_s, row.uses_left, bool(row.approval), bool(row.replaces))


def require_current(token: Token, *, now_s: float) -> None:
    """Check that a token has not expired.

    Raises:
        TokenError: It has.
    """
    if now_s >= token.expires_s:
        raise TokenError("The enrollment token has expired: ask for a new one.")


def use_token(connection: Connection, token: Token) -> None:
    """Take one use of a token, in the transaction that lets the device in.

    Raises:
        TokenError: None is left.
    """
    if token.uses_left < 1:
        raise TokenError("The enrollment token is already used: ask for a new one.")
    connection.execute(
        update(tokens).where(tokens.c.hash == token.hash).values(uses_left=tokens.c.uses_left - 1)
    )
