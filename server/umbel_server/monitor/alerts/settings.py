"""The table [alerts] of ``fleet.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umbel_server.fleet.table import Table, setting


@dataclass(frozen=True, slots=True)
class AlertSettings(Table):
    """Where the rules of alerts are.

    Args:
        rules: The file, from the fleet's directory.
        keep_days: For how many days resolved alerts and notices that were sent are kept.
    """

    TABLE: ClassVar[str] = "alerts"
    NOTE: ClassVar[str] = "what umbel serve alerts looks at; umbel alert rules --init writes its rules"

    rules: str = setting("the rules and channels, a TOML file in this directory", "alerts.toml")
    keep_days: int = setting("resolved alerts, and notices that were sent", 90, between=(1, 3650))
