"""The settings of the console: table [console] of ``fleet.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umbel_server.fleet.table import Table, setting


@dataclass(frozen=True, slots=True)
class ConsoleSettings(Table):
    """Where the console listens.

    Args:
        listen: The address it binds.
        port: Its port; 0: it does not run.
        banner: What every page says first, as that this is no real fleet; empty: nothing.
    """

    TABLE: ClassVar[str] = "console"
    NOTE: ClassVar[str] = "the fleet in a browser, over HTTPS, for accounts that sign in"

    listen: str = setting("the address it binds: loopback, unless you say otherwise", "127.0.0.1")
    port: int = setting("HTTPS; 0: none", 8481, between=(0, 65535))
    banner: str = setting("what every page says first; empty: nothing", "")
