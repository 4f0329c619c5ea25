"""Law: a device trains with noise when the plan asks for it, has charged its examples' line before it begins, and
keeps the two units of privacy apart.

Real devices, training and protocol; only the carrier of messages is in memory.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulation.federation import TRAINING, Federation, MemoryLink, lenient_policy
from umbel._data.examples import read_examples
from umbel._rounds.ledger import Ledger
from umbel._rounds.spending import spending
from umbel.train import ExamplePrivacy, Trainer, TrainPlan
from umbel.train.local import train_locally
from umbel.train.onnx import OnnxTrainer
from umbel_proto.errors import BudgetError, UmbelError, UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.accounting import rdp_to_epsilon
from umbel_proto.privacy.examples import NoisySteps
from umbel_proto.secagg.session import plan_hash
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.learning.link import Answer, NodeId, Payload
from umbel_server.learning.plan import Training
from umbel_server.learning.run import run_to_end

DELTA = 1e-5
PRIVATE = replace(TRAINING, epochs=1, example_clip=1.0, example_noise=1.2)
OPEN = replace(TRAINING, epochs=1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Four devices, in a directory that tests copy from."""
    return Federation(tmp_path_factory.mktemp("examples"), 4)


@pytest.fixture
def federation(shared: Federation, tmp_path: Path) -> Federation:
    return shared.copy(tmp_path / "fleet")


def run(federation: Federation, name: str, training: Training, rounds: int = 1) -> None:
    plan = replace(federation.plan(rounds=rounds), training=training)
    record, _ = federation.run(MemoryLink(federation.participants()), plan, name)
    assert record.state == "finished"


def asked(federation: Federation, training: Training) -> list[str]:
    """Ask every device to train, as a server does that has not looked at the policy; return what each says."""
    heard: list[str] = []

    class Asking(MemoryLink):
        def answer(self, node: NodeId, kind: str, payload: Payload) -> Answer:
            request = pb.TrainRequest.FromString(payload.body)
            plan = pb.TrainPlan.FromString(request.plan)
            plan.example_clip, plan.example_noise = training.example_clip, training.example_noise
            request.plan = plan.SerializeToString(deterministic=True)
            descriptor = pb.SessionDescriptor.FromString(request.descriptor)
            descriptor.plan_hash = plan_hash(request.plan)
            request.descriptor = descriptor.SerializeToString(deterministic=True)
            body = request.SerializeToString(deterministic=True)
            answer = super().answer(node, kind, replace(payload, body=body))
            heard.append(answer.reason)
            return answer

    plan = replace(federation.plan(rounds=1), training=PRIVATE, attempts=1)
    with pytest.raises(UmbelError):
        run_to_end(federation.fleet, federation.create(plan), Asking(federation.participants()))
    return heard


def release(federation: Federation, device: int) -> NoisySteps:
    with np.load(federation.data[device]) as archive:
        count = len(archive["y"])
    return NoisySteps(min(1.0, 32 / count), math.ceil(count / 32), 1.2)


def test_every_private_round_is_charged_to_the_examples_and_composes(federation: Federation) -> None:
    run(federation, "r1", PRIVATE, rounds=2)
    for number, home in enumerate(federation.homes):
        expected = release(federation, number)
        with Ledger(home.ledger) as ledger:
            trainings, charges = ledger.trainings(), ledger.charges()
        assert [each.release for each in trainings] == [expected] * 2
        assert [each.sid for each in trainings] == [each.sid for each in charges]
        found = spending(home)
        assert found.example_epsilon == pytest.approx(rdp_to_epsilon(2 * expected.rdp(), DELTA), rel=1e-12)
        assert found.unprotected == 0
        assert found.epsilon == math.inf  # no noise in the sum: the device's own line is another matter


def test_one_open_round_makes_the_examples_epsilon_infinite_and_is_counted(federation: Federation) -> None:
    run(federation, "r1", PRIVATE)
    run(federation, "r2", OPEN)
    found = spending(federation.homes[0])
    assert (len(found.trainings), found.unprotected) == (1, 1)
    assert math.isfinite(found.trainings[0][1])
    assert found.example_epsilon == math.inf


def test_what_leaves_a_device_has_the_noise(federation: Federation) -> None:
    # Huge noise and tiny steps: the mean update is noise of a known size, and gradients are lost in it.
    noisy = replace(PRIVATE, example_noise=300.0, learning_rate=0.01, momentum=0.0)
    run(federation, "r1", noisy)
    moved = (federation.trained() - federation.package.parameters()).astype(np.float64)
    steps = sum(release(federation, number).steps for number in range(4))
    deviation = 0.01 * 300.0 / 32 * math.sqrt(steps) / 4  # the mean of four devices' updates
    assert np.sqrt((moved**2).mean()) == pytest.approx(deviation, rel=0.05)


def test_a_training_over_the_examples_budget_does_not_begin(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path / "fleet", 3, policy=replace(lenient_policy(), example_budget_epsilon=1e-3)
    )
    plan = replace(federation.plan(rounds=1), training=PRIVATE, attempts=1)
    link = MemoryLink(federation.participants())
    with pytest.raises(UmbelError):
        run_to_end(federation.fleet, federation.create(plan), link)
    for home in federation.homes:
        found = spending(home)
        assert (found.trainings, found.charges, found.example_budget) == ((), (), 1e-3)


def test_a_budget_for_examples_covers_no_training_that_protects_none(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path / "fleet", 3, policy=replace(lenient_policy(), example_budget_epsilon=1e9)
    )
    heard = asked(federation, OPEN)
    assert all("set example_clip and example_noise" in reason for reason in heard)


def test_a_run_that_would_spend_a_bounded_budget_at_once_is_refused_before_any_device_is_asked(
    tmp_path: Path,
) -> None:
    policy = replace(lenient_policy(), example_budget_epsilon=8.0)
    federation = Federation(tmp_path / "fleet", 3, policy=policy)
    link = MemoryLink(federation.participants())
    plan = replace(federation.plan(rounds=1), training=OPEN)
    with pytest.raises(BudgetError, match="choose an example_clip and example_noise above 0"):
        run_to_end(federation.fleet, federation.create(plan), link)
    assert link.sent == []


def test_what_the_server_is_told_of_a_spent_budget_counts_no_examples(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path / "fleet", 3, policy=replace(lenient_policy(), example_budget_epsilon=1e-3)
    )
    heard = asked(federation, PRIVATE)
    assert set(heard) == {"The budget of this device's examples does not cover the training."}


def test_the_charge_is_made_before_training_and_without_it_there_is_none(federation: Federation) -> None:
    examples = read_examples(federation.data[0])
    order: list[str] = []
    trainer: Trainer = OnnxTrainer(federation.package)

    class Noting:
        def train(self, *args: object, **settings: object) -> object:
            order.append("trained")
            return trainer.train(*args, **settings)  # type: ignore[arg-type]

        def close(self) -> None:
            pass

    plan = TrainPlan(1, 32, 0.1, 0.0, 0, ExamplePrivacy(1.0, 1.2))
    settings = {"round_": 1, "device": DeviceId("dev-0")}
    start = federation.package.parameters()

    def charge(given: NoisySteps) -> None:
        assert given == release(federation, 0)
        order.append("charged")

    train_locally(Noting(), start, examples, plan, charge=charge, **settings)  # type: ignore[arg-type]
    assert order == ["charged", "trained"]

    def refuse(_: NoisySteps) -> None:
        raise BudgetError("spent")

    with pytest.raises(BudgetError):
        train_locally(Noting(), start, examples, plan, charge=refuse, **settings)  # type: ignore[arg-type]
    assert order == ["charged", "trained"]
    told: list[NoisySteps | None] = []
    open_plan = replace(plan, privacy=None)
    train_locally(Noting(), start, examples, open_plan, charge=told.append, **settings)  # type: ignore[arg-type]
    assert told == [None]


def test_a_device_killed_in_training_has_been_charged(federation: Federation) -> None:
    # A process of its own answers an invitation, and is killed by the trainer as soon as it begins.
    plan = replace(federation.plan(rounds=1), training=PRIVATE, attempts=1)
    home, data = federation.homes[0], federation.data[0]
    kept = federation.root / "invitation"

    class Keeping(MemoryLink):
        def answer(self, node, kind, payload):  # type: ignore[no-untyped-def]
            kept.with_suffix(".body").write_bytes(payload.body)
            kept.with_suffix(".vector").write_bytes(payload.vector)
            return super().answer(node, kind, replace(payload, body=b"\x00"))

    with pytest.raises(UmbelError):
        run_to_end(federation.fleet, federation.create(plan), Keeping(federation.participants()))
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from umbel._home.directory import DeviceHome\n"
        "from umbel._rounds.participant import Participant\n"
        "from umbel.train.onnx import OnnxTrainer\n"
        "OnnxTrainer.train = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "body, vector = (Path(sys.argv[3] + end).read_bytes() for end in ('.body', '.vector'))\n"
        "Participant(DeviceHome(Path(sys.argv[1])), Path(sys.argv[2])).answer('train', body, vector, None)\n"
    )
    for times in (1, 2):  # asked again, it trains again: a second release, charged again
        done = subprocess.run([sys.executable, "-c", code, home.path, data, kept], check=False)
        assert done.returncode == -9
        with Ledger(home.ledger) as ledger:
            assert [each.release for each in ledger.trainings()] == [release(federation, 0)] * times
            assert ledger.charges() == ()


@pytest.mark.parametrize(
    ("clip", "noise", "sentence"),
    [
        (1.0, 0.0, "example_clip is 1 and example_noise 0"),
        (0.0, 1.0, "example_clip is 0 and example_noise 1"),
        (-1.0, 1.0, "example_clip is -1"),
        (math.nan, 1.0, "example_clip is nan"),
        (1.0, math.inf, "example_noise is inf"),
    ],
)
def test_a_plan_that_protects_nothing_is_refused_before_any_device_is_asked(
    clip: float, noise: float, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        Training(example_clip=clip, example_noise=noise)


def test_umbel_privacy_shows_both_units_apart(federation: Federation) -> None:
    run(federation, "r1", PRIVATE)
    home = federation.homes[0]
    base = [sys.executable, "-m", "umbel", "privacy", "--home", str(home.path)]
    shown = json.loads(subprocess.run([*base, "--json"], capture_output=True, check=True, text=True).stdout)
    expected = release(federation, 0)
    (line,) = shown["examples"]["charges"]
    assert (line["sampling_rate"], line["steps"], line["noise_multiplier"]) == (
        expected.rate,
        expected.steps,
        1.2,
    )
    assert shown["examples"]["epsilon"] == line["epsilon_after"] == spending(home).example_epsilon
    assert shown["examples"]["unprotected_rounds"] == 0
    assert shown["examples"]["budget"] == {"epsilon": None, "delta": DELTA}
    assert shown["epsilon"] is None  # infinite: this fleet's sums have no noise
    assert len(shown["charges"]) == 1
    table = subprocess.run(base, capture_output=True, check=True, text=True).stdout
    assert "the device: epsilon infinite of infinite at delta 1e-05" in table
    assert f"one example: epsilon {spending(home).example_epsilon:.4g} of infinite at delta 1e-05" in table


def test_umbel_train_says_what_one_example_costs(federation: Federation) -> None:
    package = federation.fleet.package(bytes.fromhex(federation.package.sha256))
    command = [
        sys.executable, "-m", "umbel", "train", str(package), "--release-key", str(federation.fleet.release_pub),
        "--heldout", str(federation.heldout), "--rounds", "2", "--delta", "1e-5",
        *(option for path in federation.data for option in ("--data", str(path))),
    ]  # fmt: skip
    private = [*command, "--example-clip", "1", "--example-noise", "1.2"]
    told = json.loads(subprocess.run([*private, "--json"], capture_output=True, check=True, text=True).stdout)
    worst = max(rdp_to_epsilon(2 * release(federation, n).rdp(), DELTA) for n in range(4))
    assert told["example_epsilon"] == pytest.approx(worst, rel=1e-12)
    text = subprocess.run(private, capture_output=True, check=True, text=True).stdout
    assert text.splitlines()[-1] == f"one example: epsilon {worst:.4g} at delta 1e-05"
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True, text=True).stdout)
    assert told["example_epsilon"] is None  # nothing protects it: infinite
    half = subprocess.run([*command, "--example-noise", "1"], capture_output=True, check=False, text=True)
    assert (half.returncode, "example_clip is 0" in half.stderr) == (2, True)
