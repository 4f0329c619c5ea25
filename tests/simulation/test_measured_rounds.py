"""Law: what a round says beside the mean update is the devices' true mean, and no device's own number reaches the
server; weights, clips and server optimizers do what their papers say.

Real devices, training and protocol; only the carrier of messages is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from simulation.federation import TRAINING, Federation, MemoryLink
from simulation.fleet import descriptor, encoding
from umbel._data.examples import Examples, read_examples
from umbel._rounds.contribution import asked_for
from umbel._rounds.ledger import Ledger
from umbel.train import TrainPlan, TrainResult
from umbel.train.evaluate import evaluate, hold_back
from umbel.train.local import train_locally
from umbel.train.onnx import OnnxTrainer
from umbel_proto.errors import RemoteProtocolError, UmbelError, UsageError
from umbel_proto.ids import DeviceId
from umbel_proto.privacy.auxiliary import Quantity
from umbel_proto.secagg.session import plan_hash
from umbel_proto.wire import rounds_pb2 as pb
from umbel_server.learning.checkpoint import load
from umbel_server.learning.link import Answer, NodeId, Payload
from umbel_server.learning.norms import histogram
from umbel_server.learning.plan import Clipping, Metrics, Optimizer, RunPlan, Training
from umbel_server.learning.run import run_to_end

SHORT = replace(TRAINING, epochs=1)
ALL = Metrics(names=("loss", "accuracy", "training_loss"), loss_high=8.0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Five devices; tests give each run a name of its own."""
    return Federation(tmp_path_factory.mktemp("measured"), 5)


def planned(shared: Federation, **changes: object) -> RunPlan:
    return replace(shared.plan(rounds=1, clip=5.0), **{"training": SHORT, "metrics": ALL, **changes})  # type: ignore[arg-type]


def trained_by_each(shared: Federation, training: Training) -> dict[DeviceId, TrainResult]:
    settings = TrainPlan(
        training.epochs, training.batch_size, training.learning_rate, training.momentum, training.seed
    )
    start = shared.package.parameters()
    results = {}
    for number, path in enumerate(shared.data):
        device = DeviceId(f"dev-{number}")
        rows, _ = hold_back(read_examples(path), training.holdback)
        trainer = OnnxTrainer(shared.package)
        results[device] = train_locally(trainer, start, rows, settings, round_=1, device=device)
    return results


@pytest.mark.parametrize("holdback", [0.0, 0.3])
def test_a_round_s_metrics_are_the_devices_means(shared: Federation, holdback: float) -> None:
    training = replace(SHORT, holdback=holdback)
    _, (only,) = shared.run(
        MemoryLink(shared.participants()), planned(shared, training=training), f"metrics-{holdback}"
    )
    start = shared.package.parameters()
    judged = [
        evaluate(shared.package, start, hold_back(read_examples(path), holdback)[1]) for path in shared.data
    ]
    trained = trained_by_each(shared, training).values()
    metrics = only.figures["metrics"]
    expected = {
        "loss": np.mean([each.loss for each in judged]),
        "accuracy": np.mean([each.score for each in judged]),
        "training_loss": np.mean([each.loss for each in trained]),
    }
    assert metrics.keys() == expected.keys()
    for name, mean in expected.items():
        # Without noise only rounding to whole steps is left.
        assert metrics[name]["mean"] == pytest.approx(mean, abs=6 * metrics[name]["error"])
        assert metrics[name]["error"] < 0.01


def test_with_noise_the_error_of_a_metric_is_as_announced(shared: Federation) -> None:
    """Ten rounds of three metrics against their announced deviation: within 6 deviations each (2e-9 a value)."""
    quiet = planned(shared, training=replace(SHORT, learning_rate=1e-9), rounds=1)
    _, (truth,) = shared.run(MemoryLink(shared.participants()), quiet, "quiet")
    noisy = replace(quiet, rounds=10, privacy=replace(quiet.privacy, clip=1.0, noise_multiplier=0.1))
    _, rounds = shared.run(MemoryLink(shared.participants()), noisy, "noisy")
    scores = []
    for record in rounds:
        for name, metric in record.figures["metrics"].items():
            scores.append((metric["mean"] - truth.figures["metrics"][name]["mean"]) / metric["error"])
    assert max(map(abs, scores)) < 6
    # A chi-square of 30: outside [8, 74] with probability 3e-5. The model hardly moves, so nothing else does.
    assert 8 < sum(score**2 for score in scores) < 74


def test_the_server_never_holds_a_device_s_metrics(shared: Federation) -> None:
    """The words beside the update are masked as the update's are: two of the same device share no value."""

    class Keeping(MemoryLink):
        def answer(self, node: NodeId, kind: str, payload: Payload):  # type: ignore[no-untyped-def]
            answer = super().answer(node, kind, payload)
            if answer.payload is not None and answer.payload.vector:
                seen.setdefault(node, []).append(np.frombuffer(answer.payload.vector, "<u8")[-3:])
            return answer

    seen: dict[NodeId, list[np.ndarray]] = {}
    shared.run(Keeping(shared.participants()), planned(shared, rounds=2), "masked")
    tails = np.array([tail for each in seen.values() for tail in each])
    assert tails.shape == (10, 3)
    assert len(np.unique(tails)) == tails.size
    # Unmasked they would be small numbers; a masked one is below 2**48 with probability 2**-16.
    assert (tails > 2**48).mean() > 0.9


def test_devices_count_by_their_examples_where_the_plan_says_so(shared: Federation) -> None:
    cap = 250
    weighted = planned(shared, weight_cap=cap)
    shared.run(MemoryLink(shared.participants()), weighted, "weighted")
    results = trained_by_each(shared, SHORT).values()
    start = shared.package.parameters()
    weights = [min(each.examples, cap) for each in results]
    assert len(set(weights)) > 1
    expected = start + np.average([each.parameters - start for each in results], axis=0, weights=weights)
    plain = start + np.mean([each.parameters - start for each in results], axis=0)
    trained = shared.trained("weighted")
    assert np.abs(trained - expected).max() < 2e-3
    assert np.linalg.norm(trained - expected) < 0.2 * np.linalg.norm(trained - plain)


def test_weights_drowned_in_noise_abort_the_round(shared: Federation) -> None:
    """A cap a million times the devices' examples leaves no weight to divide by."""
    drowned = planned(shared, weight_cap=10**9, attempts=1)
    with pytest.raises(UmbelError):
        shared.run(MemoryLink(shared.participants()), drowned, "drowned")
    _, (only,) = shared.record("drowned")
    assert (only.state, "noise drowns so little" in only.reason) == ("aborted", True)


def test_an_adaptive_clip_follows_the_updates_and_survives_a_restart(shared: Federation) -> None:
    class PowerCut(BaseException):
        pass

    class Dying(MemoryLink):
        def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
            if group == "4":
                raise PowerCut
            return super().send(kind, group, payloads, ttl_s=ttl_s)

    chased = planned(
        shared, rounds=6, clipping=Clipping(rate=0.5, low=0.01, high=50), metrics=Metrics(names=())
    )
    chased = replace(chased, privacy=replace(chased.privacy, clip=40.0))
    run = shared.create(chased, "chased")
    with pytest.raises(PowerCut):
        run_to_end(shared.fleet, run, Dying(shared.participants()))
    run_to_end(shared.fleet, run, MemoryLink(shared.participants()))
    record, rounds = shared.record("chased")
    assert record.state == "finished"
    opened = [r for r in rounds if r.state == "opened"]
    clips = [r.figures["clip"] for r in opened]
    assert clips[0] == 40
    # All updates are far shorter: all are within the clip, and it shrinks by exp(-0.5 * 0.5) a round.
    assert clips == pytest.approx([40 * np.exp(-0.25 * i) for i in range(6)], rel=0.02)
    assert len({r.figures["epsilon_server"] for r in opened}) == 1  # Infinite, and the same: no noise here.


def test_an_adaptive_clip_costs_the_epsilon_of_a_fixed_one(shared: Federation) -> None:
    def epsilons(run: str, clipping: Clipping, metrics: Metrics) -> list[float]:
        noisy = planned(shared, rounds=3, clipping=clipping, metrics=metrics)
        noisy = replace(noisy, privacy=replace(noisy.privacy, clip=5.0, noise_multiplier=0.5))
        _, rounds = shared.run(MemoryLink(shared.participants()), noisy, run)
        return [r.figures["epsilon_server"] for r in rounds]

    moving = epsilons("moving", Clipping(rate=0.3), Metrics(names=()))
    still = epsilons("still", Clipping(), Metrics(names=("accuracy",)))  # As many quantities: one.
    assert moving == pytest.approx(still, rel=1e-12)


def test_every_server_optimizer_trains_and_remembers_across_a_restart(
    shared: Federation,
) -> None:
    class PowerCut(BaseException):
        pass

    class Dying(MemoryLink):
        def send(self, kind: str, group: str, payloads: Mapping[NodeId, Payload], *, ttl_s: float) -> int:
            if group == "3":
                raise PowerCut
            return super().send(kind, group, payloads, ttl_s=ttl_s)

    for kind, rate in (("fedavgm", 0.5), ("fedadam", 0.02), ("fedyogi", 0.02)):
        wanted = planned(
            shared, rounds=3, optimizer=Optimizer(kind, learning_rate=rate), metrics=Metrics(names=())
        )
        whole, cut = f"{kind}-whole", f"{kind}-cut"
        shared.run(MemoryLink(shared.participants()), wanted, whole)
        run = shared.create(wanted, cut)
        with pytest.raises(PowerCut):
            run_to_end(shared.fleet, run, Dying(shared.participants()))
        run_to_end(shared.fleet, run, MemoryLink(shared.participants()))
        # Rounding's coins differ, so not to the bit.
        gap = np.linalg.norm(shared.trained(whole) - shared.trained(cut))
        assert gap < 0.05 * np.linalg.norm(shared.trained(whole) - shared.package.parameters())


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ([("loss", 0, 1), ("loss", 0, 2)], "twice"),
        ([("loss", 0, 1)], "asks for 1 quantities, and the session sums 2"),
        ([("loss", 0, 1), ("salary", 0, 2)], "no device answers"),
        ([("loss", 1, 1), ("accuracy", 0, 1)], "no device answers"),
        ([("within_clip", 0, 3), ("accuracy", 0, 1)], "no device answers"),
        ([("within_half_clip", 0, 3), ("accuracy", 0, 1)], "no device answers"),
    ],
)
def test_a_device_refuses_to_be_asked_for_anything_else(
    asked: list[tuple[str, float, float]], reason: str
) -> None:
    two = descriptor(encoding=replace(encoding(), auxiliary=(8, 8)))
    message = pb.TrainPlan(auxiliary=[pb.Quantity(name=n, low=low, high=high) for n, low, high in asked])
    with pytest.raises(RemoteProtocolError, match=reason):
        asked_for(message, two)


def test_a_device_answers_what_it_knows() -> None:
    two = descriptor(encoding=replace(encoding(), auxiliary=(8, 8)))
    message = pb.TrainPlan(
        auxiliary=[pb.Quantity(name="weight", low=0, high=9), pb.Quantity(name="loss", low=0, high=2)]
    )
    assert asked_for(message, two) == (Quantity("weight", 0, 9), Quantity("loss", 0, 2))


def examples(count: int) -> Examples:
    return Examples(np.arange(count, dtype=np.float32)[:, None], np.arange(count))


def test_an_example_held_back_stays_held_back_as_data_grows() -> None:
    small, large = (set(hold_back(examples(n), 0.2)[1].x[:, 0]) for n in (50, 400))
    assert small == {value for value in large if value < 50}
    assert 40 < len(large) < 125


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_training_and_evaluation_divide_the_examples_and_neither_is_empty(count: int, share: float) -> None:
    training, evaluation = hold_back(examples(count), share)
    assert len(training) > 0
    assert len(evaluation) > 0
    assert sorted([*training.x[:, 0], *evaluation.x[:, 0]]) == list(range(count))
    assert (training.x[:, 0] == training.y).all()


@pytest.mark.parametrize(("count", "share"), [(1, 0.2), (9, -0.1), (9, 0.6), (9, float("nan"))])
def test_what_cannot_be_divided_is_refused(count: int, share: float) -> None:
    with pytest.raises(UsageError):
        hold_back(examples(count), share)


def test_a_run_that_asks_for_norms_has_numpy_s_histogram_of_its_devices_lengths(shared: Federation) -> None:
    """Real devices, and clips around their lengths; the clip itself stays where the plan has it."""
    start = shared.package.parameters()
    lengths = [np.linalg.norm(each.parameters - start) for each in trained_by_each(shared, SHORT).values()]
    middle = float(np.median(lengths))
    edges = -np.array([np.inf, 4, 2, 1, 0.5, 0.25, 0])
    seen = []
    for place, times in enumerate((0.22, 0.93, 1.07, 3.2)):
        wanted = planned(
            shared, metrics=Metrics(names=(), norms=True), clipping=Clipping(low=1e-6, high=2e-6)
        )
        wanted = replace(wanted, privacy=replace(wanted.privacy, clip=times * middle))
        _, (only,) = shared.run(MemoryLink(shared.participants()), wanted, f"lengths-{place}")
        told = [share.value for share in histogram(only.figures["metrics"])]
        expected = np.histogram(-np.array(lengths) / (times * middle), edges)[0][::-1] / len(lengths)
        assert told == pytest.approx(expected, abs=1e-9)
        assert load(shared.fleet.runs / f"lengths-{place}", 1, shared.package).clip == times * middle
        seen.append(expected)
    assert (np.sum(seen, axis=0) > 0).sum() >= 4, "bins that some update is in"


@dataclass
class Newer(MemoryLink):
    """Some devices are of a version before a quantity: they are asked for one that no version knows.

    Args:
        old: Their numbers.
    """

    old: Sequence[int] = ()

    def answer(self, node: NodeId, kind: str, payload: Payload) -> Answer:
        if kind == "train" and node in map(Federation.node, self.old):
            request = pb.TrainRequest.FromString(payload.body)
            plan = pb.TrainPlan.FromString(request.plan)
            plan.auxiliary[0].name = "within_a_hair"
            request.plan = plan.SerializeToString()
            described = pb.SessionDescriptor.FromString(request.descriptor)
            described.plan_hash = plan_hash(request.plan)
            request.descriptor = described.SerializeToString(deterministic=True)
            payload = replace(payload, body=request.SerializeToString())
        return super().answer(node, kind, payload)


def test_devices_that_do_not_know_a_quantity_are_dropped_before_the_charge_and_say_its_name(
    shared: Federation,
) -> None:
    _, (only,) = shared.run(
        Newer(shared.participants(), old=(0, 1)),
        planned(shared, metrics=Metrics(names=(), norms=True)),
        "newer",
    )
    assert only.state == "opened"
    became = {part.device: (part.outcome, part.reason) for part in only.participations}
    for device in ("dev-0", "dev-1"):
        outcome, reason = became[DeviceId(device)]
        assert outcome == "dropped"
        assert "the plan asks for what no device answers: 'within_a_hair'" in reason
    assert [became[DeviceId(f"dev-{each}")][0] for each in (2, 3, 4)] == ["summed"] * 3


def test_a_run_that_too_few_devices_know_the_quantities_of_fails_and_charges_nobody(
    shared: Federation,
) -> None:
    """As docs/how-to/run-rounds.md says of norms: the policy wants three, and two know them."""
    wanted = planned(shared, metrics=Metrics(names=(), norms=True), attempts=2)
    with pytest.raises(UmbelError):
        shared.run(Newer(shared.participants(), old=(0, 1, 2)), wanted, "too-new")
    record, rounds = shared.record("too-new")
    assert record.state == "failed"
    assert [(each.attempt, each.state) for each in rounds] == [(1, "aborted"), (2, "aborted")]
    for each in rounds:
        told = {part.device: part.reason for part in each.participations}
        assert all("'within_a_hair' is no quantity" in told[DeviceId(f"dev-{old}")] for old in (0, 1, 2))
        assert {part.outcome for part in each.participations} == {"dropped"}
    for home in shared.homes:
        with Ledger(home.ledger) as ledger:
            assert [charge for charge in ledger.charges() if charge.run == "too-new"] == []


def test_a_device_s_reason_is_one_short_line_on_record(
    shared: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """A device may answer anything: it must not write lines of its own into the server's log."""

    class Chatty(MemoryLink):
        def answer(self, node: NodeId, kind: str, payload: Payload) -> Answer:
            if node == shared.node(0):
                return Answer(node, None, "tired\n2026-01-01 INFO all is well\x1b[2J" + "!" * 10_000)
            return super().answer(node, kind, payload)

    _, (only,) = shared.run(Chatty(shared.participants()), planned(shared), "chatty")
    (refused,) = [part for part in only.participations if part.outcome == "dropped"]
    assert refused.reason.startswith("tired 2026-01-01")
    assert len(refused.reason) == 300
    assert refused.reason.isprintable()
    assert not any("\n" in record.getMessage() or "\x1b" in record.getMessage() for record in caplog.records)
