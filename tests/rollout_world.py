"""A store with devices and releases for tests of rollouts, whose devices report what they are told to."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from sqlalchemy import insert

from service_fleet import ManualClock
from umbel_proto.histogram import LATENCY_US, Histogram
from umbel_proto.ids import DeviceId, ModelName
from umbel_server.access.actor import Actor, Role
from umbel_server.rollouts.begin import begin, propose
from umbel_server.rollouts.offers import Offer, Offers
from umbel_server.rollouts.plan import RolloutPlan, Step
from umbel_server.store.batches import Arrival
from umbel_server.store.rollouts import Rollout
from umbel_server.store.rollups import Rollup, Verdict
from umbel_server.store.store import Store
from umbel_server.store.tables import devices, tokens

ANN = Actor("ann", frozenset({Role.OPERATOR}))
DIGITS = ModelName("digits")
HALF = RolloutPlan(steps=(Step("half", 50), Step("all", 100)), least_devices=3)


def sha256(version: int) -> bytes:
    return hashlib.sha256(f"digits {version}".encode()).digest()


@dataclass(eq=False)
class World:
    """Devices that ask for releases, install what they are offered, and report.

    Args:
        store: The store.
        clock: Its clock.
        devices: How many devices there are.
        releases: The versions of the model that are released.
        has: Which version answers on each device that has asked.
        failed: Versions that failed on a device.
        model: The model.
    """

    store: Store
    clock: ManualClock
    devices: int = 40
    releases: Iterable[int] = (1, 2, 3)
    has: dict[DeviceId, int] = field(default_factory=dict)
    failed: dict[DeviceId, set[int]] = field(default_factory=dict)
    model: ModelName = DIGITS

    def __post_init__(self) -> None:
        self.names = [DeviceId(f"device-{number:03d}") for number in range(self.devices)]
        admit(self.store, self.names)
        for version in self.releases:
            self.release(version)

    @classmethod
    def with_candidate(cls, store: Store, clock: ManualClock) -> Self:
        """Return devices that run version 2, and a version 3 that is released."""
        made = cls(store, clock, releases=(1, 2))
        made.check()
        made.hold(2)
        made.release(3)
        return made

    def sha256(self, version: int) -> bytes:
        return (
            sha256(version)
            if self.model == DIGITS
            else hashlib.sha256(f"{self.model} {version}".encode()).digest()
        )

    def release(self, version: int) -> None:
        self.store.releases.publish(self.model, version, sha256=self.sha256(version), size=1000)

    def hold(self, version: int) -> None:
        self.store.rollouts.hold(self.model, version, actor=ANN)

    def start(self, version: int, plan: RolloutPlan = HALF) -> Rollout:
        return begin(self.store, propose(self.store, self.model, version, plan), actor=ANN)

    def ask(self, device: DeviceId) -> Offer | None:
        """What a device is offered when it says truly what it has."""
        offers = Offers(self.store.releases, self.store.placements)
        active = {str(self.model): self.has[device]} if device in self.has else {}
        failed = {self.sha256(version) for version in self.failed.get(device, ())}
        offered = offers.for_device(device, active, failed)
        return next((each for each in offered if each.release.model == self.model), None)

    def check(self, *which: DeviceId) -> dict[DeviceId, int]:
        """Let devices ask, install by the rules of the device, and tell which version they have now."""
        for device in which or self.names:
            offer = self.ask(device)
            present = self.has.get(device, 0)
            if offer is not None and (offer.release.version > present or offer.back):
                self.has[device] = offer.release.version
                self.ask(device)
        return dict(self.has)

    def with_version(self, version: int) -> set[DeviceId]:
        return {device for device, has in self.has.items() if has == version}

    def report(self, slower: Mapping[int, float], *, errors: Mapping[int, float] | None = None) -> None:
        """Let every device report 100 predictions of what it has, slower by a factor of its version."""
        hour_s = int(self.clock.now_s) // 3600 * 3600
        rollups = []
        for number, device in enumerate(self.names):
            version = self.has.get(device)
            if version is None:
                continue
            speed = 300 * (1 + number % 7 / 100) * slower.get(version, 1.0)
            times = [speed * (1 + i / 100) for i in range(100)]
            histograms = {"latency_us": Histogram.empty("latency_us", LATENCY_US).observe(times)}
            wrong = round(100 * (errors or {}).get(version, 0.0))
            counters = {"predictions": 100, **({"errors": wrong} if wrong else {})}
            of = (device, self.model, version, "fp32", "onnx")
            rollups.append(Rollup(*of, hour_s, 1, hour_s + 60, counters, histograms))
        # One batch of all: who sent what is not what is tested here.
        self.store.batches.append(self.names[0], [Arrival(secrets.token_bytes(16), "key", b"h", b"sealed")])
        batch = self.store.batches.sealed(limit=1)[0]
        self.store.rollups.absorb([Verdict(batch.id, tuple(rollups))])


def admit(store: Store, names: Iterable[DeviceId]) -> None:
    """Write devices as enrollment does, without their keys: a signature for each of a hundred takes long."""
    token = secrets.token_bytes(32)
    with store.database.write() as connection:
        connection.execute(insert(tokens).values(hash=token, created_s=0.0, expires_s=1.0, uses_left=0))
        connection.execute(
            insert(devices),
            [
                {
                    "id": name,
                    "status": "active",
                    "identity_key": hashlib.sha256(f"identity {name}".encode()).digest(),
                    "node_key": f"node {name}".encode(),
                    "token_hash": token,
                    "enrolled_key": hashlib.sha256(f"tls {name}".encode()).digest(),
                    "enrolled_s": 0.0,
                    "certificate_not_after_s": 4e9,
                    "last_seen_s": 0.0,
                }
                for name in names
            ],
        )
