"""A store whose devices report what a test tells them to, hour by hour, for tests of what is made of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import insert

from rollout_world import DIGITS, admit
from service_fleet import ManualClock
from umbel_proto.histogram import Histogram
from umbel_proto.ids import DeviceId
from umbel_server.store.batches import Arrival
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.store import Store
from umbel_server.store.tables_rollouts import device_tags

HOUR_S, DAY_S = 3600, 86400


@dataclass(eq=False)
class Reporters:
    """Devices that report.

    Args:
        store: The store.
        clock: Its clock.
        count: How many devices there are.
        kind: What their names begin with.
    """

    store: Store
    clock: ManualClock
    count: int = 20
    kind: str = "device"

    def __post_init__(self) -> None:
        self.names = [DeviceId(f"{self.kind}-{number:03d}") for number in range(self.count)]
        admit(self.store, self.names)
        self._told: list[Rollup] = []

    def tell(
        self,
        device: DeviceId,
        *histograms: Histogram,
        ago_s: float = HOUR_S,
        counters: Mapping[str, int] | None = None,
        model: str = DIGITS,
        version: int = 1,
        windows: int = 1,
    ) -> None:
        """Let a device report of an hour, so long ago by its clock; it is in the sums after ``arrive``."""
        hour_s = int(self.clock.now_s - ago_s) // HOUR_S * HOUR_S
        of = (model, version, "fp32", "onnx") if model else ("", 0, "", "")
        told = {each.name: each for each in histograms}
        self._told.append(Rollup(device, *of, hour_s, windows, hour_s + 60, dict(counters or {}), told))

    def arrive(self) -> None:
        """Let everything told arrive: in one batch, for who sent what is not what is tested here."""
        self.store.batches.append(self.names[0], [Arrival(secrets.token_bytes(16), "key", b"h", b"sealed")])
        batch = self.store.batches.sealed(limit=1)[0]
        assert self.store.rollups.absorb([Verdict(batch.id, tuple(self._told))]) == 1
        reasons = [each.rejected for each in self.store.batches.deliveries()]
        assert not any(reasons)
        self._told = []

    def tag(self, tag: str, devices: Iterable[DeviceId]) -> None:
        """Put devices into a cohort."""
        with self.store.database.write() as connection:
            connection.execute(insert(device_tags), [{"device_id": device, "tag": tag} for device in devices])
