"""Laws: a device trains as the run's plan says, to its last setting, and by the trainer that its owner chose."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from simulation.federation import MemoryLink
from simulation.tiny import CLASSES, FEATURES, TRAINING, TinyFederation
from umbel._data.examples import read_examples
from umbel._rounds.contribution import settings_of
from umbel._rounds.participant import Participant
from umbel.train import ExamplePrivacy, Trainer, TrainPlan
from umbel.train.evaluate import hold_back
from umbel.train.local import federated_averaging, train_locally
from umbel.train.onnx import OnnxTrainer
from umbel.train.torch import TorchTrainer
from umbel_models.task import cross_entropy
from umbel_proto.errors import UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.package import Package
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.learning import checkpoint
from umbel_server.learning.budget import plan_privacy
from umbel_server.learning.invitation import invite
from umbel_server.learning.plan import RunPlan, Training

ADAM = {
    "optimizer": "adam",
    "momentum": 0.9,
    "second_momentum": 0.95,
    "adaptivity": 1e-3,
    "learning_rate": 0.05,
}
LIMITS = {"weight_decay": 0.01, "gradient_clip": 0.5, "fedprox_mu": 0.2, "time_limit_s": 50.0}
PATIENT = {"holdback": 0.25, "patience": 1, "epochs": 30, "batch_size": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
    return TinyFederation(tmp_path_factory.mktemp("settings"), 4)


def request(tiny: TinyFederation, training: Training) -> tuple[bytes, bytes]:
    """An invitation as a device gets it: the request, and the model."""
    plan = replace(tiny.plan(rounds=1), training=training)
    policy = tiny.fleet.policy()
    invitation = invite(
        tiny.create(plan, f"said-{time.monotonic_ns()}"),
        1,
        1,
        plan=plan,
        policy=policy,
        encoding=plan_privacy(plan, policy, tiny.package.manifest.dim).encoding,
        quantities=(),
        parameters=tiny.package.parameters(),
        now_s=time.time(),
    )
    body = pb.TrainRequest(descriptor=invitation.descriptor.to_bytes(), plan=invitation.plan)
    return body.SerializeToString(deterministic=True), invitation.model


def invited(tiny: TinyFederation, training: Training) -> pb.TrainPlan:
    return pb.TrainPlan.FromString(pb.TrainRequest.FromString(request(tiny, training)[0]).plan)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nesterov": True, "momentum": 0.9},
        {**ADAM, **LIMITS, **PATIENT},
        {**ADAM, **LIMITS, "example_clip": 1.0, "example_noise": 1.5},
    ],
)
def test_every_setting_arrives_at_the_device(tiny: TinyFederation, settings: dict[str, Any]) -> None:
    training = replace(TRAINING, **settings)
    arrived = settings_of(invited(tiny, training))
    private = ExamplePrivacy(training.example_clip, training.example_noise) if training.example_clip else None
    assert arrived.privacy == private
    # What the wire does not carry is the device's own: how much energy it may use.
    for each in fields(TrainPlan):
        if each.name not in ("privacy", "energy_limit_j"):
            assert getattr(arrived, each.name) == getattr(training, each.name), each.name
    assert arrived.energy_limit_j == 0


def test_settings_that_nobody_chose_are_not_sent(tiny: TinyFederation) -> None:
    """So devices that do not know them yet take part in the runs of before."""
    sent = {field.number for field, _ in invited(tiny, TRAINING).ListFields()}
    assert sent.isdisjoint(range(11, 20))


class Softmax(nn.Module):
    """The tiny model, as its makers would hand it in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(FEATURES, CLASSES))
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def with_torch(package: Package) -> Trainer:
    return TorchTrainer(package, Softmax(), cross_entropy)


def alone(tiny: TinyFederation, training: Training, plan: TrainPlan) -> dict[str, Any]:
    """What each device makes of the first round, by itself."""
    found = {}
    for number, path in enumerate(tiny.data):
        device = DeviceId(f"dev-{number}")
        rows, judge = hold_back(read_examples(path), training.holdback)
        found[device] = train_locally(
            OnnxTrainer(tiny.package),
            tiny.package.parameters(),
            rows,
            plan,
            round_=1,
            device=device,
            held_back=judge,
        )
    return found


def opened(tiny: TinyFederation, plan: RunPlan, run: str, link: MemoryLink) -> NDArray[np.float32]:
    tiny.run(link, plan, run)
    after: NDArray[np.float32] = checkpoint.load(tiny.fleet.runs / run, 1, tiny.package).parameters
    return after


@pytest.mark.parametrize("brought", [False, True], ids=["onnx", "torch on one device"])
def test_a_round_is_the_mean_of_what_devices_make_of_the_plan(tiny: TinyFederation, brought: bool) -> None:
    training = replace(TRAINING, **ADAM, **LIMITS, **PATIENT)
    plan = replace(tiny.plan(rounds=1, clip=3.0), training=training)
    made: list[str] = []

    def factory(package: Package) -> Trainer:
        made.append(package.manifest.model)
        return with_torch(package)

    devices = tiny.participants()
    if brought:
        devices[tiny.node(0)] = Participant(tiny.homes[0], tiny.data[0], trainer=factory)
    after = opened(tiny, plan, f"mean-{int(brought)}", MemoryLink(devices))
    assert made == (["tiny"] if brought else [])
    results = alone(tiny, training, settings_of(invited(tiny, training)))
    assert {str(each.ended) for each in results.values()} >= {"patience"}
    before = tiny.package.parameters()
    updates = [each.parameters - before for each in results.values()]
    assert max(map(np.linalg.norm, updates)) < 3.0
    np.testing.assert_allclose(after - before, np.mean(updates, axis=0), atol=2e-3)
    # Another plan leads elsewhere: the settings are not read and forgotten.
    plain = alone(tiny, training, TrainPlan(30, 4, 0.05, 0.9, TRAINING.seed))
    other = np.mean([each.parameters - before for each in plain.values()], axis=0)
    assert np.abs(other - (after - before)).max() > 0.05


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "lion"}, "There is no optimizer 'lion': choose sgd or adam"),
        ({"optimizer": "scaffold"}, "SCAFFOLD works in local rounds only"),
        ({"nesterov": True}, "nesterov needs"),
        ({"second_momentum": -0.1}, "second_momentum is -0.1"),
        ({"adaptivity": 0.0}, "adaptivity is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"gradient_clip": float("inf")}, "gradient_clip is inf"),
        ({"fedprox_mu": -0.5}, "fedprox_mu is -0.5"),
        ({"time_limit_s": -1.0}, "time_limit_s is -1"),
        ({"patience": 2}, "set a holdback"),
        ({"patience": 1001, "holdback": 0.2}, "patience is 1001"),
        (
            {"patience": 2, "holdback": 0.2, "example_clip": 1.0, "example_noise": 1.0},
            "examples would not stay private",
        ),
    ],
)
def test_a_plan_whose_settings_make_no_sense_is_refused(settings: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Training(**settings)


def test_a_time_limit_that_the_server_does_not_wait_for_is_refused(tiny: TinyFederation) -> None:
    plan = tiny.plan(rounds=1)
    limit = plan.timing.train_timeout_s + 1
    with pytest.raises(UsageError, match=r"lower it, or raise timing\.train_timeout_s"):
        replace(plan, training=replace(TRAINING, time_limit_s=limit))


def test_flowers_app_trains_with_the_trainer_that_it_was_made_with(tiny: TinyFederation) -> None:
    from flwr.app import ConfigRecord, Context, Metadata, RecordDict
    from flwr.app.message import make_message

    from umbel.flower import client_app

    asked: list[str] = []

    def factory(package: Package) -> Trainer:
        asked.append(package.manifest.model)
        return with_torch(package)

    body, vector = request(tiny, TRAINING)
    metadata = Metadata(1, "m", 1, 7, "", "", time.time(), 60.0, "train")
    content = RecordDict({"umbel": ConfigRecord({"body": body, "vector": vector})})
    message = make_message(metadata=metadata, content=content)
    node_config = {"home": str(tiny.homes[1].path), "data": str(tiny.data[1])}
    context = Context(run_id=1, node_id=7, node_config=node_config, state=RecordDict(), run_config={})
    answer = client_app(factory)(message, context)
    assert not answer.has_error()
    assert asked == ["tiny"]


def slope(tiny: TinyFederation, at: NDArray[np.float32]) -> float:
    """Length of the gradient of the mean of the devices' losses: 0 where that mean is least."""
    net = Softmax()
    net.load_state_dict({name: torch.tensor(value) for name, value in tiny.package.split(at).items()})
    for path in tiny.data:
        each = read_examples(path)
        mean = cross_entropy(net(torch.tensor(np.asarray(each.x))), torch.tensor(each.y)).mean()
        (mean / len(tiny.data)).backward()
    return float(
        sum(value.grad.square().sum() for value in net.parameters() if value.grad is not None) ** 0.5
    )


def test_where_devices_differ_scaffold_ends_at_what_is_best_for_all_and_averaging_beside_it(
    tiny: TinyFederation,
) -> None:
    shards = {DeviceId(f"dev-{number}"): read_examples(path) for number, path in enumerate(tiny.data)}
    ends = {
        scaffold: list(
            federated_averaging(
                OnnxTrainer(tiny.package),
                tiny.package.parameters(),
                shards,
                rounds=60,
                plan=TrainPlan(20, 16, 0.3, 0.0, 0),
                scaffold=scaffold,
            )
        )[-1]
        for scaffold in (False, True)
    }
    assert slope(tiny, ends[True]) < 1e-3
    assert slope(tiny, ends[False]) > 1e-2
