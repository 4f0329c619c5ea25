"""The settings of the API: table [api] of ``fleet.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umbel_server.fleet.table import Table, setting


@dataclass(frozen=True, slots=True)
class ApiSettings(Table):
    """Where the API listens, and what it takes.

    Args:
        listen: The address it binds.
        port: Its port.
        upload_mib: The largest package that it takes, MiB.
        failures_per_minute: Sign-ins that may fail from one address in a minute.
    """

    TABLE: ClassVar[str] = "api"
    NOTE: ClassVar[str] = "the REST API over HTTPS, for accounts with a token"

    listen: str = setting("the address it binds: loopback, unless you say otherwise", "127.0.0.1")
    port: int = setting("HTTPS", 8480, between=(1, 65535))
    upload_mib: int = setting("the largest package it takes, MiB", 512, between=(1, 4096))
    failures_per_minute: int = setting(
        "sign-ins that may fail from one address in a minute", 20, between=(1, 1_000_000)
    )
