"""What memory a fleet's services take on this machine, by service.

Source: proc(5), /proc/PID/cmdline, /proc/PID/stat and /proc/PID/statm.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class _Process:
    """A process: who started it, what it holds, and which service it is by its command, if any."""

    parent: int
    resident_bytes: int
    service: str | None


def resident_bytes(fleet: Path, *, root: Path = _PROC) -> dict[str, int]:
    """Return the resident memory of the processes of ``umbel serve NAME --fleet DIR``, by name, bytes.

    What a service started counts as its own, but for another service. Pages that processes share count in each. A
    system without ``/proc`` tells of none.

    Args:
        fleet: The directory of the fleet, as its services are told it.
        root: Where the system tells of processes.
    """
    processes: dict[int, _Process] = {}
    for folder in root.glob("[0-9]*"):
        try:
            # The name before the last bracket may hold anything.
            parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
            pages = int((folder / "statm").read_bytes().split()[1])
            words = os.fsdecode((folder / "cmdline").read_bytes()).split("\0")
        except (OSError, ValueError, IndexError):
            continue  # It has ended, or is another user's.
        of = _Process(parent, pages * os.sysconf("SC_PAGE_SIZE"), _service(words, fleet))
        processes[int(folder.name)] = of
    found: dict[str, int] = {}
    for each in processes.values():
        name = _service_of(each, processes)
        if name is not None:
            found[name] = found.get(name, 0) + each.resident_bytes
    return found


def _service_of(process: _Process, processes: Mapping[int, _Process]) -> str | None:
    """Return which service a process is or was started by; None: none."""
    passed: set[int] = set()  # Read one after the other, processes may seem to be each other's.
    while process.service is None and process.parent in processes and process.parent not in passed:
        passed.add(process.parent)
        process = processes[process.parent]
    return process.service


def _service(words: Sequence[str], fleet: Path) -> str | None:
    """Return which service a process is, by its command; None if it is none of this fleet."""
    pairs = list(pairwise(words))
    ours = f"--fleet={fleet}" in words or ("--fleet", str(fleet)) in pairs
    return next((name for word, name in pairs if word == "serve" and ours), None)
