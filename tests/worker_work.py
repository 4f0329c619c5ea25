"""What tests have a console's second process make: functions of a module, with types."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from umbel_proto.errors import ContractError, PackageError
from umbel_server.console.seen.watched import Watched
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.settings import FleetSettings
from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Figures:
    """What figures are like: of several kinds, and not all of them numbers."""

    name: str
    now_s: float
    store: str
    shares: dict[int, float | None]
    watched: Watched


def pid(fleet: FleetDir, store: Store) -> int:
    """Return the number of the process."""
    return os.getpid()


def niceness(fleet: FleetDir, store: Store) -> int:
    """Return how much the process yields."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def figures(fleet: FleetDir, store: Store, watched: Watched) -> Figures:
    """Return what was given, and numbers that are none."""
    shares = {1: 0.1 + 0.2, 2: None, 3: math.inf}
    return Figures(fleet.name, store.clock(), str(store.database.where), shares, watched)


def settings(fleet: FleetDir, store: Store) -> FleetSettings:
    """Return the fleet's settings."""
    return fleet.settings


def refused(fleet: FleetDir, store: Store, sentence: str) -> int:
    """Fail as what is not released does."""
    raise PackageError(sentence)


def counted(fleet: FleetDir, store: Store) -> int:
    """Fail with more than a sentence."""
    raise ContractError("Two fields are out of range.", {"x": 2})


def broken(fleet: FleetDir, store: Store) -> int:
    """Fail as nobody foresaw."""
    return int("none")


def dead(fleet: FleetDir, store: Store) -> int:
    """End the process."""
    os._exit(3)
