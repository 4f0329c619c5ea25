"""What memory a fleet's services take on this machine, by service.

Source: proc(5), /proc/PID/cmdline and /proc/PID/statm.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

_PROC = Path("/proc")


def resident_bytes(fleet: Path, *, root: Path = _PROC) -> dict[str, int]:
    """Return the resident memory of the processes of ``umbel serve NAME --fleet DIR``, by name, bytes.

    Pages that processes share count in each. A system without ``/proc`` tells of none.

    Args:
        fleet: The directory of the fleet, as its services are told it.
        root: Where the system tells of processes.
    """
    found: dict[str, int] = {}
    for folder in root.glob("[0-9]*"):
        try:
            name = _service(os.fsdecode((folder / "cmdline").read_bytes()).split("\0"), fleet)
            if name is not None:
                pages = int((folder / "statm").read_bytes().split()[1])
                found[name] = found.get(name, 0) + pages * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            continue  # It has ended, or is another user's.
    return found


def _service(words: Sequence[str], fleet: Path) -> str | None:
    """Return which service a process is, by its command; None if it is none of this fleet."""
    pairs = list(pairwise(words))
    ours = f"--fleet={fleet}" in words or ("--fleet", str(fleet)) in pairs
    return next((name for word, name in pairs if word == "serve" and ours), None)
