"""Invitations: what an operator hands to a device so that it can enroll."""

from __future__ import annotations

from umbel_proto.enrollment import Token
from umbel_server.access.actor import Actor
from umbel_server.fleet.layout import FleetDir
from umbel_server.store.store import Store

VALID_S = 86400.0


def invite(
    fleet: FleetDir,
    store: Store,
    *,
    device: str | None = None,
    uses: int = 1,
    valid_s: float = VALID_S,
    approval: bool = False,
    replaces: bool = False,
    actor: Actor | None = None,
) -> Token:
    """Return a new enrollment token. Its text is shown once; the store keeps a hash.

    Args:
        fleet: The fleet to enroll in.
        store: Its store.
        device: The only name its device may take; None: any.
        uses: How many devices it lets in.
        valid_s: How long it may be used, seconds.
        approval: Whether an operator approves each of its devices by hand.
        replaces: Whether its device takes the place of the one that has the name.
        actor: Who invites; by default whoever runs this process.

    Raises:
        UsageError: An argument is out of range.
    """
    secret = store.tokens.issue(
        valid_s=valid_s, uses=uses, device=device, approval=approval, replaces=replaces, actor=actor
    )
    return Token(secret, fleet.settings.enrollment, fleet.authority_certificate_der())
