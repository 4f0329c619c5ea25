"""A federation whose rounds take a tenth of a second: softmax regression on a few made-up points a device.

Everything but the size is real: a signed package with ONNX graphs, enrolled devices, training, ledgers, rounds.
What each device adds to a round follows from the checkpoint before it, so that `check_learned` can do the
sums again without masks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from simulation.federation import Federation, MemoryLink
from umbel._data.examples import read_examples
from umbel._home.directory import DeviceHome
from umbel._rounds.ledger import Ledger
from umbel._rounds.participant import Participant
from umbel.train import TrainPlan
from umbel.train.local import train_locally
from umbel.train.onnx import OnnxTrainer
from umbel_models.pack import golden
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import DeviceId, ModelName
from umbel_proto.manifest import BATCH, GRADIENT, INSIDE, Manifest, Parameter, TensorSpec, Variant
from umbel_proto.package import GOLDEN, PARAMETERS, Package, read_package, write_package
from umbel_server.fleet.layout import FleetDir
from umbel_server.fleet.publish import publish
from umbel_server.learning import checkpoint
from umbel_server.learning.budget import plan_privacy
from umbel_server.learning.link import NodeId
from umbel_server.learning.plan import Metrics, RunPlan, Training
from umbel_server.store.runs import LedgerLine, RoundRecord

FEATURES, CLASSES, EXAMPLES = 6, 3, 16
TRAINING = Training(epochs=1, batch_size=EXAMPLES, learning_rate=0.5, seed=3)


class SimulatedClock:
    """A clock that stands still but for pauses: nobody waits, and a deadline passes when nothing else happens."""

    def __init__(self) -> None:
        self._now_s = time.time()

    def __call__(self) -> float:
        return self._now_s

    def pause(self, seconds: float) -> None:
        self._now_s += seconds


class TinyFederation(Federation):
    """A fleet with enrolled devices that train a model of 21 parameters."""

    def __init__(self, root: Path, devices: int = 8) -> None:
        super().__init__(root, devices)
        chance = np.random.default_rng(7)
        for path in self.data:
            x = chance.standard_normal((EXAMPLES, FEATURES)).astype(np.float32)
            np.savez(path, x=x, y=chance.integers(0, CLASSES, EXAMPLES))

    def plan(self, *, rounds: int, clip: float = 1.0, noise_multiplier: float = 0.0) -> RunPlan:
        plan = super().plan(rounds=rounds, clip=clip, noise_multiplier=noise_multiplier)
        return replace(
            plan, model=ModelName("tiny"), training=TRAINING, heldout="", metrics=Metrics(names=())
        )

    @classmethod
    def reopen(cls, root: Path) -> TinyFederation:
        """Return the federation that lies in a directory already, for another process."""
        self = cls.__new__(cls)
        self.root, self.fleet, self.heldout = root, FleetDir.open(root / "fleet"), root / "heldout.npz"
        self.homes = [DeviceHome(path) for path in sorted(root.glob("device-*"))]
        self.data = sorted(root.glob("shard-*.npz"))
        (path,) = (root / "fleet" / "packages").iterdir()
        self.package = read_package(path.read_bytes(), release_key=self.fleet.release_public())
        return self

    def link(self) -> MemoryLink:
        """A link to all devices, freshly started."""
        return MemoryLink(self.participants())

    def started(self, number: int, clock: Callable[[], float]) -> Participant:
        """Return a device freshly started, with a clock."""
        return Participant(self.homes[number], self.data[number], clock=clock)

    def linked(self, clock: Callable[[], float]) -> dict[NodeId, Participant]:
        """Return all devices by node, freshly started, with a clock."""
        return {self.node(number): self.started(number, clock) for number in range(len(self.homes))}

    def ledger(self, run: str) -> dict[DeviceId, LedgerLine]:
        """Return the service's ledger of a run, by device."""
        with self.fleet.open_store() as store:
            return {line.device: line for line in store.runs.ledger() if line.run == run}

    def charged(self, number: int, run: str) -> list[tuple[int, int]]:
        """Return the rounds and attempts of a run that a device's own ledger holds."""
        with Ledger(self.homes[number].ledger) as ledger:
            return [(charge.round, charge.attempt) for charge in ledger.charges() if charge.run == run]

    def _publish(self) -> Package:
        key = self.fleet.release_signer()
        manifest, files = package_parts()
        data = write_package(manifest, files, key)
        with self.fleet.open_store() as store:
            publish(self.fleet, store, data)
        return read_package(data, release_key=key.public)


def check_run(federation: TinyFederation, plan: RunPlan, run: str) -> tuple[RoundRecord, ...]:
    """Assert that a run is whole: every round opened once, attempts in order, ledgers agree, sums are right."""
    record, rounds = federation.record(run)
    assert (record.state, record.reason) == ("finished", "")
    check_attempts(rounds)
    assert [r.round for r in rounds if r.state == "opened"] == list(range(1, plan.rounds + 1))
    check_ledgers(federation, rounds, run)
    check_learned(federation, plan, rounds, run)
    return rounds


def check_attempts(rounds: tuple[RoundRecord, ...]) -> None:
    """Assert that attempts are numbered from 1 without gaps, and that only the last of a round opened."""
    by_round: dict[int, list[RoundRecord]] = {}
    for each in rounds:
        by_round.setdefault(each.round, []).append(each)
    for tries in by_round.values():
        assert [each.attempt for each in tries] == list(range(1, len(tries) + 1))
        assert all(each.state == "aborted" and each.reason for each in tries[:-1])


def check_ledgers(federation: TinyFederation, rounds: tuple[RoundRecord, ...], run: str) -> None:
    """Assert that devices were charged at most once an attempt, and never without the service's knowing."""
    lines = federation.ledger(run)
    for number in range(len(federation.homes)):
        device = DeviceId(f"dev-{number}")
        own = federation.charged(number, run)
        assert len(set(own)) == len(own)
        parts = [(r, part) for r in rounds for part in r.participations if part.device == device]
        known = {(r.round, r.attempt) for r, part in parts if part.outcome != "dropped"}
        summed = {(r.round, r.attempt) for r, part in parts if part.outcome == "summed"}
        assert summed <= set(own) <= known, device
        line = lines.get(device)
        assert (line.summed + line.charged if line else 0) == len(known), device


def check_learned(
    federation: TinyFederation, plan: RunPlan, rounds: tuple[RoundRecord, ...], run: str
) -> None:
    """Assert that each opened round moved the model by the mean of its survivors' updates, and by nothing else.

    The sums hold no noise. What is left is rounding, below 1 in each coordinate of each device's codes; so the
    mean is off by less than sqrt(padded) / scale, as the rotation keeps lengths: 0.002. A device that is lost, or
    counted twice, or with the update of another round, moves it by more than ten times as much.
    """
    package, directory = federation.package, federation.fleet.runs / run
    encoding = plan_privacy(plan, federation.fleet.policy(), package.manifest.dim).encoding
    most = encoding.padded**0.5 / encoding.scale + 1e-5
    assert most < 2e-3
    trainer = OnnxTrainer(package)
    before = package.parameters()
    for each in rounds:
        if each.state != "opened":
            continue
        survivors = [part.device for part in each.participations if part.outcome == "summed"]
        updates = [_update(federation, trainer, before, each.round, device) for device in survivors]
        assert max(map(np.linalg.norm, updates)) < encoding.clip
        after = checkpoint.load(directory, each.round, package).parameters
        error = np.linalg.norm(after - before - np.mean(updates, axis=0, dtype=np.float64))
        assert error < most, (each.round, each.attempt, error)
        before = after
    if len([r for r in rounds if r.state == "opened"]) == plan.rounds:
        assert (federation.trained(run) == before).all()


def _update(
    federation: TinyFederation,
    trainer: OnnxTrainer,
    start: NDArray[np.float32],
    number: int,
    device: DeviceId,
) -> NDArray[np.float32]:
    examples = read_examples(federation.data[int(device.removeprefix("dev-"))])
    plan = TrainPlan(
        TRAINING.epochs, TRAINING.batch_size, TRAINING.learning_rate, TRAINING.momentum, TRAINING.seed
    )
    return train_locally(trainer, start, examples, plan, round_=number, device=device).parameters - start


def package_parts(
    inputs: NDArray[np.float32] | None = None,
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the model's manifest and files; its golden answers are to these inputs, or to random ones."""
    shapes = {"weight": (FEATURES, CLASSES), "bias": (CLASSES,)}
    chance = np.random.default_rng(5)
    values = {name: chance.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    outputs = tuple(TensorSpec(name, "float32", (BATCH, CLASSES)) for name in ("probabilities", "logits"))
    manifest = Manifest(
        model=ModelName("tiny"),
        version=1,
        parameters=tuple(Parameter(name, shape) for name, shape in shapes.items()),
        inputs=(TensorSpec("x", "float32", (BATCH, FEATURES)),),
        outputs=outputs,
        labels=("a", "b", "c"),
        contract=DataContract((Field("x", "float32", (FEATURES,), -10, 10),)),
        variants={"fp32": Variant("onnx", "infer.onnx", weights=INSIDE, tolerance=1e-4)},
        default_variant="fp32",
        decision_threshold=0.5,
        graphs={GRADIENT: "grad.onnx"},
    )
    files = {
        "infer.onnx": _inference(values),
        "grad.onnx": _gradient(),
        PARAMETERS: safetensors.numpy.save(values),
    }
    if inputs is None:
        inputs = chance.standard_normal((32, FEATURES)).astype(np.float32)
    return manifest, {**files, GOLDEN: golden(manifest, files, inputs)}


_FORWARD = (
    make_node("Gemm", ["x", "weight", "bias"], ["logits"]),
    make_node("Softmax", ["logits"], ["probabilities"], axis=1),
)
_X = make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, FEATURES])


def _inference(values: dict[str, NDArray[np.float32]]) -> bytes:
    outputs = [
        make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, CLASSES])
        for name in ("probabilities", "logits")
    ]
    initial = [from_array(value, name) for name, value in values.items()]
    return _model(make_graph(_FORWARD, "tiny", [_X], outputs, initial))


def _gradient() -> bytes:
    """Mean loss over what w weighs, and its gradient: (probabilities - one-hot labels) w / sum(w)."""
    constants: dict[str, NDArray[Any]] = {
        "classes": np.array(CLASSES, np.int64),
        "off_on": np.array([0, 1], np.float32),
        "rows": np.array([0], np.int64),
        "columns": np.array([1], np.int64),
    }
    nodes = [
        *_FORWARD,
        make_node("OneHot", ["y", "classes", "off_on"], ["target"], axis=1),
        make_node("ReduceSum", ["w"], ["weight_sum"], keepdims=0),
        make_node("Div", ["w", "weight_sum"], ["share"]),
        make_node("Unsqueeze", ["share", "columns"], ["share_column"]),
        make_node("Sub", ["probabilities", "target"], ["difference"]),
        make_node("Mul", ["difference", "share_column"], ["delta"]),
        make_node("Gemm", ["x", "delta"], ["grad.weight"], transA=1),
        make_node("ReduceSum", ["delta", "rows"], ["grad.bias"], keepdims=0),
        make_node("LogSoftmax", ["logits"], ["log"], axis=1),
        make_node("Mul", ["log", "target"], ["picked"]),
        make_node("Mul", ["picked", "share_column"], ["weighed"]),
        make_node("ReduceSum", ["weighed"], ["minus_loss"], keepdims=0),
        make_node("Neg", ["minus_loss"], ["loss"]),
    ]
    inputs = [
        make_tensor_value_info("weight", TensorProto.FLOAT, [FEATURES, CLASSES]),
        make_tensor_value_info("bias", TensorProto.FLOAT, [CLASSES]),
        _X,
        make_tensor_value_info("y", TensorProto.INT64, [BATCH]),
        make_tensor_value_info("w", TensorProto.FLOAT, [BATCH]),
    ]
    outputs = [
        make_tensor_value_info("grad.weight", TensorProto.FLOAT, [FEATURES, CLASSES]),
        make_tensor_value_info("grad.bias", TensorProto.FLOAT, [CLASSES]),
        make_tensor_value_info("loss", TensorProto.FLOAT, []),
    ]
    initial = [from_array(value, name) for name, value in constants.items()]
    return _model(make_graph(nodes, "tiny-gradient", inputs, outputs, initial))


def _model(graph: onnx.GraphProto) -> bytes:
    model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
