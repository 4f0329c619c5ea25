"""What the fleet's devices have been charged, as its own records tell: so that a run they cannot pay for is not begun.

Each device keeps a ledger of its own, and that one decides. It may know of more than this one, and never of less.

Source: docs/spec/privacy.md, "Ledger".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel_proto.errors import StorageError
from umbel_proto.ids import DeviceId, RunId
from umbel_proto.privacy.accounting import SKELLAM_ORDERS, rdp_to_epsilon, release_rdp
from umbel_proto.privacy.plan import Plan
from umbel_proto.wire.enrollment_pb2 import PastCharge
from umbel_server.files import write_atomically
from umbel_server.learning.plan import RunPlan
from umbel_server.store.runs import LIVE
from umbel_server.store.store import Store

COST = "cost.json"
"""In a run's directory: what each participation in it is charged with."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a device is charged for one participation in a run: the same in all its rounds.

    Args:
        bound_sq: B**2 of the encoding.
        coordinates: Of the encoding, those beside the update included.
        variance: Noise that is counted, per coordinate in the sum, squared integer steps.
    """

    bound_sq: int
    coordinates: int
    variance: Fraction

    @classmethod
    def of(cls, planned: Plan) -> Cost:
        """Return the cost of a participation in a planned run."""
        encoding = planned.encoding
        return cls(encoding.bound_sq, encoding.coordinates, planned.honest * encoding.noise)

    def curve(self) -> NDArray[np.float64]:
        """Return its Rényi curve, shape of ``SKELLAM_ORDERS``."""
        return release_rdp(bound_sq=self.bound_sq, padded=self.coordinates, variance=float(self.variance))

    def save(self, run_directory: Path) -> None:
        """Put it on record. Before the run's first round, so that no charge is ever of unknown cost.

        Raises:
            StorageError: It cannot be written.
        """
        values = {
            "bound_sq": self.bound_sq,
            "coordinates": self.coordinates,
            "variance": str(self.variance),
        }
        write_atomically(run_directory / COST, json.dumps(values).encode())

    @classmethod
    def load(cls, run_directory: Path) -> Cost | None:
        """Read it; None for a run that was planned but never begun, or begun before costs were kept.

        Raises:
            StorageError: The record is damaged.
        """
        path = run_directory / COST
        try:
            raw = json.loads(path.read_bytes())
            return cls(int(raw["bound_sq"]), int(raw["coordinates"]), Fraction(raw["variance"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as exc:
            raise StorageError(
                f"{path} is damaged: restore it from a copy of the fleet's directory."
            ) from exc


@dataclass(frozen=True, slots=True)
class FleetLedger:
    """How often each device was charged in each run, and what that costs.

    Args:
        active: The devices that may take part in rounds.
        charged: By device and run, how often.
        costs: Of one participation, by run; a run that is not in it is of unknown cost and counts for nothing.
        reserved: Participations that a run under way may still ask of any device, and has been granted.
    """

    active: frozenset[DeviceId]
    charged: Mapping[DeviceId, Mapping[RunId, int]]
    costs: Mapping[RunId, Cost]
    reserved: Mapping[RunId, int] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, runs: Path, *, but: RunId | None = None) -> FleetLedger:
        """Read the ledger from a fleet's store and the directory of its runs.

        Args:
            store: The store.
            runs: The directory.
            but: A run to leave out.

        Raises:
            StorageError: A run's record is damaged.
        """
        charged: dict[DeviceId, dict[RunId, int]] = {}
        for line in store.runs.ledger():
            if line.run != but and (times := line.summed + line.charged):
                charged.setdefault(line.device, {})[line.run] = times
        reserved = {}
        for record in store.runs.all():
            if record.id == but:
                break  # Those that began after it were checked against what it may take, and not the reverse.
            if record.state in LIVE:
                reserved[record.id] = RunPlan.from_json(record.plan).most_participations
        # Those that began after it were checked against all that it may take, whichever way round.
        reserved |= {name: 1 for name in store.queries.running() if name != but}
        known = {
            run: Cost.load(runs / run)
            for run in {*reserved, *(r for by_run in charged.values() for r in by_run)}
        }
        return cls(
            active=frozenset(device.id for device in store.devices.all() if device.trusted),
            charged=charged,
            costs={run: cost for run, cost in known.items() if cost is not None},
            reserved=reserved,
        )

    def curve(self, device: DeviceId) -> NDArray[np.float64]:
        """Return the Rényi curve of all that a device was charged, shape of ``SKELLAM_ORDERS``."""
        return self._curve(self.charged.get(device, {}))

    def spent(self, device: DeviceId, delta: float) -> float:
        """Return the epsilon of a device, 0 for one that was never charged."""
        return rdp_to_epsilon(self.curve(device), delta, SKELLAM_ORDERS)

    def rooms(
        self, cost: Cost, *, most: int, budget_epsilon: float, budget_delta: float
    ) -> dict[DeviceId, int]:
        """Return how many participations at a cost each active device can still pay for, at most ``most``.

        What a run under way may still ask for is set aside: two runs at once cannot promise the same budget twice.
        """
        rooms: dict[frozenset[tuple[RunId, int]], int] = {}  # Many devices share a past.
        found = {}
        for device in self.active:
            taken = self._taken(device)
            past = frozenset(taken.items())
            if past not in rooms:
                rooms[past] = room(self._curve(taken), cost, most, budget_epsilon, budget_delta)
            found[device] = rooms[past]
        return found

    def _taken(self, device: DeviceId) -> dict[RunId, int]:
        """Return by run how often a device was charged or, where a run under way may ask for more, may be."""
        charged = self.charged.get(device, {})
        return {
            run: max(charged.get(run, 0), self.reserved.get(run, 0)) for run in {*charged, *self.reserved}
        }

    def _curve(self, taken: Mapping[RunId, int]) -> NDArray[np.float64]:
        total = np.zeros(SKELLAM_ORDERS.shape)
        for run, times in sorted(taken.items()):
            if run in self.costs:
                total += times * self.costs[run].curve()
        return total


def past_charges(store: Store, runs: Path, device: DeviceId) -> tuple[PastCharge, ...]:
    """Return what devices of a name were charged, as a device's own ledger has it; runs of unknown cost are left out.

    Args:
        store: The fleet's.
        runs: The directory of its runs.
        device: The name.

    Raises:
        StorageError: A run's record is damaged.
    """
    found = store.participants.charged(device)
    costs = {run: Cost.load(runs / run) for run in {run for run, _, _ in found}}
    return tuple(
        PastCharge(
            run=run,
            round=number,
            attempt=attempt,
            bound_sq=str(cost.bound_sq),
            coordinates=cost.coordinates,
            variance=str(cost.variance),
        )
        for run, number, attempt in found
        if (cost := costs[run]) is not None
    )


def room(
    spent: NDArray[np.float64], cost: Cost, most: int, budget_epsilon: float, budget_delta: float
) -> int:
    """Return how many participations at a cost still fit a budget, at most ``most``.

    Args:
        spent: Curve of what was charged before, shape of ``SKELLAM_ORDERS``.
        cost: Of one participation.
        most: What it takes; more are not looked for.
        budget_epsilon: Most a device may spend over its life.
        budget_delta: The delta that goes with it.
    """
    curve = cost.curve()

    def fits(times: int) -> bool:
        total = spent + times * curve if times else spent
        return rdp_to_epsilon(total, budget_delta, SKELLAM_ORDERS) <= budget_epsilon

    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
