"""Until when what the fleet signed of its releases holds, as far as this device has it. No network, no TUF library."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from umbel._home.directory import DeviceHome

_ROLES = ("timestamp", "snapshot", "targets")


def trusted_until_s(home: DeviceHome) -> float | None:
    """Return until when the device may install what it knows to be signed, Unix seconds.

    What is installed already goes on running after that.

    Returns:
        When the first of what it has ends; None if it has never checked for releases.
    """
    roots = sorted((home.trust / "root_history").glob("*.root.json"), key=_number)
    files = [home.trust / f"{role}.json" for role in _ROLES] + (roots[-1:] or [home.root])
    ends = [_ends_s(file) for file in files]
    return min((end for end in ends if end is not None), default=None) if None not in ends else None


def _number(path: Path) -> int:
    number = path.name.partition(".")[0]
    return int(number) if number.isdecimal() else 0


def _ends_s(file: Path) -> float | None:
    try:
        return datetime.datetime.fromisoformat(json.loads(file.read_bytes())["signed"]["expires"]).timestamp()
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Missing or damaged: the next check brings it.
