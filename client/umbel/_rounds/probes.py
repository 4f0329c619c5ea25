"""What can be known about the machine at this moment: how busy it is, what it runs on, what its network costs.

Linux tells it in files; a probe takes the root that they lie under.

Source: Documentation/ABI/testing/sysfs-class-power and proc(5) of the Linux kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

_MAINS = ("Mains", "USB", "Wireless")
_METERED_DEVTYPES = ("wwan",)
_METERED_NAMES = ("ppp", "wwan", "rmnet")


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known at one moment; None stands for what is not.

    Args:
        load: Programs that want to compute, per core, over the last minute.
        charging: Whether the machine is fed from outside; one without a battery always is.
        battery: How full the battery is, in [0, 1]; 1 for a machine without one.
        metered: Whether what is sent costs its user money.
    """

    load: float | None = None
    charging: bool | None = None
    battery: float | None = None
    metered: bool | None = None


class Probe(Protocol):
    """Finds out something about the machine. An application brings its own where umbel's know less."""

    def __call__(self) -> Reading:
        """Return what it knows now. It takes no longer than reading a few files, and never raises."""


def read_all(probes: Iterable[Probe]) -> tuple[Reading, tuple[str, ...]]:
    """Return what all of them know, and which failed, in a few words each.

    Where two know something, the later one is believed.
    """
    known: dict[str, float | bool] = {}
    failed = []
    for probe in probes:
        try:
            reading = probe()
            if not isinstance(reading, Reading):
                raise TypeError
        except Exception as exc:  # Whatever an application's own does.
            failed.append(f"the probe {_name(probe)} failed ({type(exc).__name__})")
            continue
        for each in fields(Reading):
            value = getattr(reading, each.name)
            if value is not None:
                known[each.name] = value
    return Reading(**known), tuple(failed)  # type: ignore[arg-type]


def _name(probe: Probe) -> str:
    return getattr(probe, "__name__", type(probe).__name__)


def linux_probes(root: Path = Path("/"), *, cores: int | None = None) -> tuple[Probe, ...]:
    """Return what Linux can tell.

    Args:
        root: Where its files are.
        cores: How many cores there are; by default this machine's.
    """
    return LoadProbe(root, cores=cores), PowerProbe(root), NetworkProbe(root)


class LoadProbe:
    """How busy the machine is, from ``/proc/loadavg``."""

    def __init__(self, root: Path = Path("/"), *, cores: int | None = None) -> None:
        self._file = root / "proc" / "loadavg"
        self._cores = cores or os.cpu_count() or 1

    def __call__(self) -> Reading:
        """Return the load per core."""
        try:
            return Reading(load=float(_text(self._file).split()[0]) / self._cores)
        except (OSError, ValueError, IndexError):
            return Reading()


class PowerProbe:
    """What the machine runs on, from ``/sys/class/power_supply``. Batteries of mice and keyboards do not count."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._folder = root / "sys" / "class" / "power_supply"

    def __call__(self) -> Reading:
        """Return whether it charges, and how full the emptiest battery is."""
        try:
            supplies = sorted(self._folder.iterdir())
        except OSError:
            return Reading()
        fed, levels, statuses = False, [], []
        for supply in supplies:
            kind = _fact(supply, "type")
            if kind in _MAINS:
                fed = fed or _fact(supply, "online") == "1"
            elif kind == "Battery" and _fact(supply, "scope") != "Device":
                statuses.append(_fact(supply, "status"))
                levels.append(_level(supply))
        if not statuses:
            return Reading(charging=True, battery=1.0)
        known = [level for level in levels if level is not None]
        charging: bool | None = fed or any(status in ("Charging", "Full") for status in statuses)
        if not charging and all(status in ("", "Unknown") for status in statuses):
            charging = None
        return Reading(charging=charging, battery=min(known) if len(known) == len(levels) else None)


class NetworkProbe:
    """Whether the network costs money: mobile networks do; of others the kernel does not know."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._routes = root / "proc" / "net" / "route"
        self._interfaces = root / "sys" / "class" / "net"

    def __call__(self) -> Reading:
        """Return that the way out is metered, or nothing."""
        try:
            rows = [line.split() for line in _text(self._routes).splitlines()[1:]]
            # The default route with the least metric is taken.
            ways = sorted((int(row[6]), row[0]) for row in rows if row[1] == "00000000")
        except (OSError, ValueError, IndexError):
            return Reading()
        if not ways:
            return Reading()
        name = ways[0][1]
        kind = _facts(self._interfaces / name / "uevent").get("DEVTYPE", "")
        metered = kind in _METERED_DEVTYPES or name.startswith(_METERED_NAMES)
        return Reading(metered=True) if metered else Reading()


def _level(supply: Path) -> float | None:
    try:
        return min(max(int(_fact(supply, "capacity")) / 100, 0.0), 1.0)
    except ValueError:
        return None


def _fact(folder: Path, name: str) -> str:
    try:
        return _text(folder / name).strip()
    except OSError:
        return ""


def _facts(file: Path) -> dict[str, str]:
    try:
        return dict(line.split("=", 1) for line in _text(file).splitlines() if "=" in line)
    except OSError:
        return {}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
