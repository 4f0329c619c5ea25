"""When a scheduled run is due: plain arithmetic on times."""

from __future__ import annotations

import math
import re

from umbel_proto.errors import UsageError

DAY_S = 86_400
LEAST_S = 60.0
MOST_S = 366.0 * DAY_S
_UNITS = {"m": 60, "h": 3600, "d": DAY_S, "w": 7 * DAY_S}


def parse_duration(text: str) -> float:
    """Return the seconds of a time such as ``90m``, ``12h``, ``7d`` or ``2w``.

    Raises:
        UsageError: It is no such time, or outside a minute to a year.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if found is None:
        raise UsageError(f"{text!r} is not a time: write 90m, 12h, 7d or 2w.")
    seconds = float(found[1]) * _UNITS[found[2]]
    if not LEAST_S <= seconds <= MOST_S:
        raise UsageError(f"{text} is outside a minute to a year.")
    return seconds


def parse_time_of_day(text: str) -> int:
    """Return the second of the day of a time such as ``02:30``.

    Raises:
        UsageError: It is no time of day.
    """
    found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", text)
    if found is None:
        raise UsageError(f"{text!r} is not a time of day: write it as 02:30, in UTC.")
    return int(found[1]) * 3600 + int(found[2]) * 60


def following(after_s: float, every_s: float, at_s: int | None) -> float:
    """Return when a schedule is due next.

    Args:
        after_s: Now, or when the last run was due, Unix seconds.
        every_s: Least time between two runs, seconds, in whole days where ``at_s`` is given.
        at_s: Second of the day, UTC, at which runs start.
    """
    if at_s is None:
        return after_s + every_s
    days = max(1, round(every_s / DAY_S))
    # The first such time of day that is later, and then as many days on as are left.
    first = math.floor((after_s - at_s) / DAY_S) * DAY_S + at_s + DAY_S
    return float(first + (days - 1) * DAY_S)


def caught_up(due_s: float, now_s: float, every_s: float, at_s: int | None) -> float:
    """Return the first time after now at which a schedule is due that was due before: what was missed is not made up."""
    if at_s is None:
        return due_s + (math.floor((now_s - due_s) / every_s) + 1) * every_s
    while due_s <= now_s:
        due_s = following(due_s, every_s, at_s)
    return due_s
