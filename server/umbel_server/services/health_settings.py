"""Where the services say how they are: table [health] of ``fleet.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umbel_server.fleet.table import Table, setting


@dataclass(frozen=True, slots=True)
class HealthSettings(Table):
    """Where health and metrics are.

    Args:
        listen: The address it binds.
        port: Its port; 0: nowhere.
    """

    TABLE: ClassVar[str] = "health"
    NOTE: ClassVar[str] = "/healthz, /readyz and /metrics over HTTPS; the last asks for keys/metrics.token"

    listen: str = setting("the address it binds: loopback, unless you say otherwise", "127.0.0.1")
    port: int = setting("HTTPS; 0: none", 0, between=(0, 65535))
