"""What must hold for a device to train: demanded by its owner, by its fleet, or by both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from umbel_proto.errors import UsageError

Unknown = Literal["allow", "refuse"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What must hold for a device to train. Nothing but consent that was not taken back, unless somebody says so.

    Args:
        idle: The machine has little else to do.
        charging: It is fed from outside, or charging.
        unmetered: What it sends costs its user nothing.
        min_battery: How full the battery must be, in [0, 1].
        consent: The user was asked, and said yes.
        unknown: What to do where something that is demanded cannot be known: ``allow`` or ``refuse``.
    """

    idle: bool = False
    charging: bool = False
    unmetered: bool = False
    min_battery: float = 0.0
    consent: bool = False
    unknown: Unknown = "allow"

    def __post_init__(self) -> None:
        if not 0 <= self.min_battery <= 1:
            raise UsageError(
                f"min_battery is {self.min_battery}: give the share of a full battery, in [0, 1]."
            )
        if self.unknown not in ("allow", "refuse"):
            raise UsageError(f"unknown is {self.unknown!r}: choose 'allow' or 'refuse'.")

    def stricter(self, other: Rules) -> Rules:
        """Return what holds only where both hold: of each demand the stricter one."""
        return Rules(
            idle=self.idle or other.idle,
            charging=self.charging or other.charging,
            unmetered=self.unmetered or other.unmetered,
            min_battery=max(self.min_battery, other.min_battery),
            consent=self.consent or other.consent,
            unknown="refuse" if "refuse" in (self.unknown, other.unknown) else "allow",
        )
