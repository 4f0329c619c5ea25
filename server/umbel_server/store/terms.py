"""On what terms a fleet lets devices in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a fleet lets devices in; 0 is no limit.

    Args:
        approve: Whether an operator approves each, whatever its token says.
        max_devices: Most devices, besides those that are revoked.
        per_minute: Most that enter, or begin to wait, in a minute.
        max_pending: Most that may wait.
        approval_days: For how long one waits.
    """

    approve: bool = False
    max_devices: int = 0
    per_minute: int = 0
    max_pending: int = 0
    approval_days: int = 7


OPEN = Terms()
