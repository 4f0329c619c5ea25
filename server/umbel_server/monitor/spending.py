"""What devices have spent of their privacy, as the fleet's records tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel_proto.ids import DeviceId, RunId
from umbel_proto.privacy.accounting import SKELLAM_ORDERS, rdp_to_epsilon
from umbel_server.learning.fleet_ledger import Cost, FleetLedger
from umbel_server.store.store import Store

PAGE = 500
"""Devices whose ledgers are read at a time."""


@dataclass(frozen=True, slots=True)
class RunSpending:
    """A device's part in a run.

    Args:
        run: The run.
        participations: How often it was charged.
        epsilon: What that costs alone; None if the run's cost is not on record.
    """

    run: RunId
    participations: int
    epsilon: float | None


@dataclass(frozen=True, slots=True)
class DeviceSpending:
    """What a device has spent.

    Args:
        device: The device.
        epsilon: Of all runs whose cost is on record, together.
        runs: Those it was charged in, by name.
    """

    device: DeviceId
    epsilon: float
    runs: tuple[RunSpending, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; an infinite epsilon is null."""
        return {
            "device": self.device,
            "epsilon": _finite(self.epsilon),
            "runs": [
                {
                    "run": run.run,
                    "participations": run.participations,
                    "epsilon": _finite(run.epsilon),
                    "known": run.epsilon is not None,
                }
                for run in self.runs
            ],
        }


def spending(
    store: Store, runs: Path, delta: float, *, after: str = "", limit: int | None = None
) -> tuple[DeviceSpending, ...]:
    """Return what devices that were ever charged have spent at ``delta``, by name.

    Args:
        store: The fleet's store.
        runs: The directory of its runs.
        delta: Of every epsilon.
        after: Those after this name.
        limit: At most so many; None: all.

    Raises:
        StorageError: A run's record is damaged.
    """
    found: list[DeviceSpending] = []
    known: dict[RunId, Cost | None] = {}
    while limit is None or len(found) < limit:
        size = PAGE if limit is None else min(PAGE, limit - len(found))
        devices = store.participants.charged_devices(after=after, limit=size)
        if devices:
            after = devices[-1]
            found += _spent(_ledger(store, runs, devices, known), delta)
        if len(devices) < size:
            break
    return tuple(found)


def _ledger(
    store: Store, runs: Path, devices: Sequence[DeviceId], known: dict[RunId, Cost | None]
) -> FleetLedger:
    """Return what some devices were charged.

    Args:
        store: The fleet's store.
        runs: The directory of its runs.
        devices: The devices.
        known: Costs that were read before; the others are added.
    """
    charged: dict[DeviceId, dict[RunId, int]] = {}
    for line in store.runs.ledger(devices):
        if times := line.summed + line.charged:
            charged.setdefault(line.device, {})[line.run] = times
            if line.run not in known:
                known[line.run] = Cost.load(runs / line.run)
    costs = {run: cost for run, cost in known.items() if cost is not None}
    return FleetLedger(active=frozenset(), charged=charged, costs=costs)


def _spent(ledger: FleetLedger, delta: float) -> Iterator[DeviceSpending]:
    costs: dict[tuple[RunId, int], float | None] = {}
    for by_run in ledger.charged.values():
        for run, times in by_run.items():
            if (run, times) not in costs:
                cost = ledger.costs.get(run)
                costs[run, times] = (
                    None if cost is None else rdp_to_epsilon(times * cost.curve(), delta, SKELLAM_ORDERS)
                )
    for device, by_run in sorted(ledger.charged.items()):
        parts = (RunSpending(run, times, costs[run, times]) for run, times in sorted(by_run.items()))
        yield DeviceSpending(device, ledger.spent(device, delta), tuple(parts))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
