"""The gateway's settings: table [gateway] of ``fleet.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umbel_server.fleet.table import Table, setting


@dataclass(frozen=True, slots=True)
class GatewaySettings(Table):
    """How much a gateway takes on.

    Args:
        processes: How many share the ports.
        threads: Calls of members that one process answers at a time.
        calls_per_minute: What one device may call, at each process; 0: as often as it likes.
        burst: How many of these at once.
        one_core: Whether each process keeps to one core.
    """

    TABLE: ClassVar[str] = "gateway"
    NOTE: ClassVar[str] = "what it cannot take it refuses, and says when to try again"

    processes: int = setting("how many share the ports, as Linux deals connections out", 1, between=(1, 64))
    threads: int = setting(
        "calls of members answered at a time, in each process; 8 times as many wait", 32, between=(4, 512)
    )
    calls_per_minute: float = setting(
        "of one device, in each process; 0: as often as it likes", 0.0, between=(0, 60_000)
    )
    burst: int = setting("how many of these at once", 60, between=(1, 10_000))
    one_core: bool = setting(
        "whether each process keeps to one core: a call may cost less, and more cores are for more processes",
        False,
    )
