"""What a process can read of the machine it runs on: its memory, and the processor's energy. Nothing is estimated."""

from __future__ import annotations

import os
from pathlib import Path

_STATM = Path("/proc/self/statm")
_POWERCAP = Path("/sys/class/powercap")


def resident_bytes(statm: Path = _STATM) -> int | None:
    """Return the memory that this process holds, in bytes; None where the system does not tell.

    Args:
        statm: Linux's file of it.
    """
    try:
        pages = int(statm.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


class Rapl:
    """Energy of the processor's packages, by their own counters (running average power limit).

    It is what the whole processor spent, whichever process ran. Most systems let only their administrator read
    it: where it cannot be read there is no figure.

    Args:
        root: Where Linux shows the counters.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        # One colon: a package. Two: a part of it, which it has counted already.
        self._packages = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
        self._last = {
            path: value for path in self._packages if (value := _number(path / "energy_uj")) is not None
        }

    def spent_uj(self) -> int | None:
        """Return what was spent since the last call, in microjoules; None where nobody knows."""
        spent = 0
        for path, last in self._last.items():
            now, limit = _number(path / "energy_uj"), _number(path / "max_energy_range_uj")
            if now is None or limit is None:
                return None
            spent += now - last if now >= last else now - last + limit  # The counter has begun anew.
            self._last[path] = now
        return spent if self._last else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
