"""The table [registry] of ``fleet.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umbel_server.fleet.table import Table, setting

MAX_APPROVALS = 10
MAX_APPROVAL_DAYS = 3650


@dataclass(frozen=True, slots=True)
class Registry(Table):
    """What it takes to release a version.

    Args:
        approvals: How many accounts must approve of it.
        approval_days: How long after a request its approvals hold.
    """

    TABLE: ClassVar[str] = "registry"
    NOTE: ClassVar[str] = "what it takes to release a version of a model"

    approvals: int = setting(
        "how many accounts must approve, besides whoever asks; 0: none", 0, between=(0, MAX_APPROVALS)
    )
    approval_days: int = setting(
        "how long after a request its approvals hold", 30, between=(1, MAX_APPROVAL_DAYS)
    )
