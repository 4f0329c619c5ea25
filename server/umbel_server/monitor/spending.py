"""What devices have spent of their privacy, as the fleet's records tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel_proto.ids import DeviceId, RunId
from umbel_proto.privacy.accounting import SKELLAM_ORDERS, rdp_to_epsilon
from umbel_server.learning.fleet_ledger import FleetLedger
from umbel_server.store.store import Store


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


def spending(store: Store, runs: Path, delta: float) -> tuple[DeviceSpending, ...]:
    """Return what each device that was ever charged has spent at ``delta``, by name.

    Args:
        store: The fleet's store.
        runs: The directory of its runs.
        delta: Of every epsilon.

    Raises:
        StorageError: A run's record is damaged.
    """
    ledger = FleetLedger.of(store, runs)
    costs: dict[tuple[RunId, int], float | None] = {}
    for by_run in ledger.charged.values():
        for run, times in by_run.items():
            if (run, times) not in costs:
                cost = ledger.costs.get(run)
                costs[run, times] = (
                    None if cost is None else rdp_to_epsilon(times * cost.curve(), delta, SKELLAM_ORDERS)
                )
    return tuple(
        DeviceSpending(
            device,
            ledger.spent(device, delta),
            tuple(RunSpending(run, times, costs[run, times]) for run, times in sorted(by_run.items())),
        )
        for device, by_run in sorted(ledger.charged.items())
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
