"""What energy and traffic cost: table [prices] of ``fleet.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umbel_server.fleet.table import Table, setting

_J_PER_KWH, _BYTES_PER_GB = 3.6e6, 1e9


@dataclass(frozen=True, slots=True)
class Prices(Table):
    """What an operator pays; 0 leaves a part out of every cost.

    Args:
        currency: In what prices are.
        kwh: Of a kilowatt-hour.
        gb: Of a gigabyte to or from a device, of 10^9 bytes.
    """

    TABLE: ClassVar[str] = "prices"
    NOTE: ClassVar[str] = "what energy and traffic cost, for the console's screen of costs"

    currency: str = setting("of the prices below", "EUR")
    kwh: float = setting("of a kilowatt-hour on a device; 0: not counted", 0.0, between=(0, 1e6))
    gb: float = setting("of a gigabyte to or from a device; 0: not counted", 0.0, between=(0, 1e6))

    def of(self, *, joules: float = 0.0, sent_bytes: float = 0.0) -> float:
        """Return what some energy and some traffic cost."""
        return self.kwh * joules / _J_PER_KWH + self.gb * sent_bytes / _BYTES_PER_GB
