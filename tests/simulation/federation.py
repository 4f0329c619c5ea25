"""A whole federation in one process: a real fleet, enrolled devices, real training and real rounds.

Only the carrier of messages is in memory. Devices are enrolled over the real gateway.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel._fleet.enroll import enroll
from umbel._home.directory import DeviceHome
from umbel._releases.shelf import Shelf
from umbel._rounds.participant import Participant, Saved
from umbel_models.federated import by_label
from umbel_models.pack import build
from umbel_models.task import Split, find
from umbel_models.tasks.digits.data import split
from umbel_proto.credentials import FleetPolicy
from umbel_proto.errors import UmbelError
from umbel_proto.ids import DeviceId, FleetId, ModelName, RunId
from umbel_proto.package import Package, read_package
from umbel_proto.update import read_update
from umbel_server.clock import system_clock
from umbel_server.fleet.create import create_fleet
from umbel_server.fleet.invite import invite
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.gateway.server import Gateway
from umbel_server.learning.link import Answer, NodeId, Payload
from umbel_server.learning.plan import Privacy, RunPlan, Timing, Training
from umbel_server.learning.run import TRAINED, run_to_end
from umbel_server.store.runs import RoundRecord, RunRecord

FLEET = FleetId("simulated")
TRAINING = Training(epochs=2, batch_size=32, learning_rate=0.1, momentum=0.9, seed=5)
QUICK = Timing(join_timeout_s=2, settle_s=0.01, train_timeout_s=60, phase_timeout_s=60, grace_s=0.2)


def lenient_policy(min_cohort: int = 3) -> FleetPolicy:
    """A policy that allows sums without noise, for tests of everything else."""
    return FleetPolicy(FLEET, 0.1, 0.2, True, min_cohort, 0.0, float("inf"), 1e-5)


@dataclass
class MemoryLink:
    """Carries messages to participants in this process.

    Args:
        participants: By node.
        vanish: (node, message kind) pairs: from that message on, the node is silent.
        tamper: Changes a request to a node: (node, kind, payload) -> payload.
    """

    participants: Mapping[NodeId, Participant]
    vanish: set[tuple[NodeId, str]] = field(default_factory=set)
    sent: list[tuple[str, NodeId]] = field(default_factory=list)
    saved: dict[NodeId, Saved | None] = field(default_factory=dict)
    gone: set[NodeId] = field(default_factory=set)
    answers: list[Answer] = field(default_factory=list)

    def nodes(self) -> Sequence[NodeId]:
        return sorted(self.participants.keys() - self.gone)

    def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
        self.answers = []
        for node, payload in payloads.items():
            self.sent.append((kind, node))
            if (node, kind) in self.vanish:
                self.gone.add(node)
            if node not in self.gone:
                self.answers.append(self.answer(node, kind, payload))
        return sum(len(p.body) + len(p.vector) for p in payloads.values())

    def answer(self, node: NodeId, kind: str, payload: Payload) -> Answer:
        try:
            body, vector, self.saved[node] = self.participants[node].answer(
                kind, payload.body, payload.vector, self.saved.get(node)
            )
        except UmbelError as exc:
            return Answer(node, None, str(exc))
        return Answer(node, Payload(body, vector), size_up=len(body) + len(vector))

    def receive(self) -> Sequence[Answer]:
        answers, self.answers = self.answers, []
        return answers


class Federation:
    """A fleet with enrolled devices that hold shards of the digits.

    Args:
        root: A directory of its own.
        devices: How many.
        policy: What they insist on.
    """

    def __init__(self, root: Path, devices: int, *, policy: FleetPolicy | None = None) -> None:
        self.root = root
        self.fleet: FleetDir = create_fleet(root / "fleet", name=FLEET, policy=policy or lenient_policy())
        self.parts: Split = split(seed=1)
        self.package: Package = self._publish()
        self.homes: list[DeviceHome] = []
        self.data: list[Path] = []
        self.heldout = root / "heldout.npz"
        np.savez(self.heldout, x=self.parts.held_out.x, y=self.parts.held_out.y)
        with self.fleet.open_store() as store, Gateway(self.fleet, store):
            for number, shard in enumerate(by_label(self.parts.train, devices, alpha=1.0, seed=1)):
                home = DeviceHome(root / f"device-{number}")
                token = invite(self.fleet, store, device=f"dev-{number}").to_text()
                enroll(home, token, now_s=system_clock())
                store.devices.set_node_id(DeviceId(f"dev-{number}"), self.node(number))
                self._shelf(home).install(self._package_file().read_bytes())
                data = root / f"shard-{number}.npz"
                np.savez(data, x=shard.x, y=shard.y)
                self.homes.append(home)
                self.data.append(data)

    def copy(self, root: Path) -> Federation:
        """Return the same fleet in another directory, so that a test may spoil what is its own."""
        shutil.copytree(self.root, root)
        other = copy.copy(self)
        other.root, other.fleet = root, FleetDir.open(root / "fleet")
        other.homes = [DeviceHome(root / home.path.name) for home in self.homes]
        other.data = [root / path.name for path in self.data]
        other.heldout = root / self.heldout.name
        return other

    @staticmethod
    def node(number: int) -> NodeId:
        return NodeId(1000 + number)

    def participants(self) -> dict[NodeId, Participant]:
        return {
            self.node(i): Participant(home, data)
            for i, (home, data) in enumerate(zip(self.homes, self.data, strict=True))
        }

    def plan(self, *, rounds: int, clip: float = 100.0, noise_multiplier: float = 0.0) -> RunPlan:
        return RunPlan(
            model=ModelName("digits"),
            version=1,
            package_sha256=self.package.sha256,
            rounds=rounds,
            devices=len(self.homes),
            training=TRAINING,
            privacy=Privacy(clip=clip, noise_multiplier=noise_multiplier),
            timing=QUICK,
            heldout=str(self.heldout),
        )

    def create(self, plan: RunPlan, run: str = "r1") -> RunId:
        with self.fleet.open_store() as store:
            store.runs.create(RunId(run), plan.model, plan.to_json())
        return RunId(run)

    def run(
        self, link: MemoryLink, plan: RunPlan, run: str = "r1"
    ) -> tuple[RunRecord, tuple[RoundRecord, ...]]:
        run_to_end(self.fleet, self.create(plan, run), link)
        return self.record(run)

    def record(self, run: str = "r1") -> tuple[RunRecord, tuple[RoundRecord, ...]]:
        with self.fleet.open_store() as store:
            record = store.runs.get(RunId(run))
            assert record is not None
            return record, store.runs.rounds(RunId(run))

    def trained(self, run: str = "r1") -> NDArray[np.float32]:
        return read_update((self.fleet.runs / run / TRAINED).read_bytes(), self.package)

    def _shelf(self, home: DeviceHome) -> Shelf:
        return Shelf(home.shelf, home.release_authority())

    def _package_file(self) -> Path:
        return self.fleet.package(bytes.fromhex(self.package.sha256))

    def _publish(self) -> Package:
        key = self.fleet.release_signer()
        data = build(find("digits"), key=key, version=1, lineage={})
        with self.fleet.open_store() as store:
            publish(self.fleet, store, data)
        return read_package(data, release_key=key.public)
