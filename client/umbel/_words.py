"""Times and numbers as people read them."""

from __future__ import annotations

import datetime
import math


def as_time(at_s: float | None) -> str:
    """Return a time, Unix seconds, for people."""
    if at_s is None:
        return "never"
    try:
        moment = datetime.datetime.fromtimestamp(at_s, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{at_s:.0f} s"  # A clock may say anything.
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def as_number(value: float) -> str:
    """Return a number for people."""
    return "infinite" if math.isinf(value) else f"{value:.4g}"
