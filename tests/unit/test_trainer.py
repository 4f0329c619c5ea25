"""Training with onnxruntime and numpy is torch's training, to the rounding of a float."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from model_packages import digits, first, opened, resigned
from umbel._data.examples import Examples
from umbel.engines.onnx import open_session
from umbel.train import Controls, Ended, ExamplePrivacy, Meter, TrainPlan, TrainResult
from umbel.train.descent import _mean_loss as mean_loss
from umbel.train.graph import GraphGradients, Signature
from umbel.train.onnx import OnnxTrainer
from umbel.train.prepare import SHUFFLE_LABEL
from umbel_models.task import cross_entropy as loss
from umbel_models.tasks.digits.module import DigitsNet
from umbel_proto.encoding import digest
from umbel_proto.errors import UsageError
from umbel_proto.prg import Keystream


@functools.cache
def trainer() -> OnnxTrainer:
    return OnnxTrainer(opened(first()))


PLAN = TrainPlan(epochs=2, batch_size=16, learning_rate=0.05, momentum=0.9, seed=7)
SHORT = TrainPlan(epochs=1, batch_size=8, learning_rate=0.1, momentum=0.0, seed=0)


def train(rows: int = 50, **settings: Any) -> TrainResult:
    x, y = digits().train[:2]
    return trainer().train(opened(first()).parameters(), x[:rows], y[:rows], replace(PLAN, **settings))


def torch_net() -> DigitsNet:
    arrays = opened(first()).split(opened(first()).parameters())
    net = DigitsNet()
    net.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
    return net


def vector(net: DigitsNet) -> NDArray[np.float32]:
    return np.concatenate([value.detach().numpy().ravel() for value in net.parameters()])


def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.argsort(Keystream(digest(SHUFFLE_LABEL, seed, epoch)).uint64(count), kind="stable")


def test_gradients_are_torchs() -> None:
    package = opened(first())
    session = open_session(package.file("grad.onnx"), "grad.onnx")
    x, y = (values[:32] for values in digits().train[:2])
    feed = {**package.split(package.parameters()), "x": x, "y": y, "w": np.ones(32, np.float32)}
    names = [value.name for value in session.get_outputs()]
    results = dict(zip(names, session.run(names, feed), strict=True))
    net = torch_net()
    mean = loss(net(torch.tensor(x)), torch.tensor(y)).mean()
    mean.backward()
    assert results["loss"] == pytest.approx(float(mean.detach()), rel=1e-6)
    for name, value in net.named_parameters():
        assert value.grad is not None
        np.testing.assert_allclose(results[f"grad.{name}"], value.grad.numpy(), atol=5e-7)


def test_a_padded_batch_is_the_unpadded_one() -> None:
    # 10 examples in a batch of 64 are one step, as they are in a batch of 10.
    padded, exact = train(10, epochs=3, batch_size=64), train(10, epochs=3, batch_size=10)
    assert padded.steps == exact.steps == 3
    np.testing.assert_allclose(padded.parameters, exact.parameters, atol=1e-6)
    assert padded.loss == pytest.approx(exact.loss, rel=1e-5)


def test_what_fills_a_batch_up_has_no_influence() -> None:
    package = opened(first())
    session = open_session(package.file("grad.onnx"), "grad.onnx")
    x, y = (values[:8].copy() for values in digits().train[:2])
    w = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    feed = {**package.split(package.parameters()), "w": w}
    names = [value.name for value in session.get_outputs()]
    before = session.run(names, {**feed, "x": x, "y": y})
    x[5:], y[5:] = 16.0, 3
    for left, right in zip(before, session.run(names, {**feed, "x": x, "y": y}), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-7)


def test_a_gradient_that_a_graph_knows_without_computing_is_written_in_every_step() -> None:
    # Weight decay uses gradients up where the graph has written them: one left unwritten would add up.
    data = first()
    still = opened(data).manifest.parameters[0]
    graph = onnx.load_from_string(opened(data).file("grad.onnx"))
    for node in graph.graph.node:
        node.output[:] = ["unread" if name == f"grad.{still.name}" else name for name in node.output]
    zeros = numpy_helper.from_array(np.zeros(still.shape, np.float32), f"grad.{still.name}")
    graph.graph.initializer.append(zeros)
    package = opened(resigned(data, lambda _: None, **{"grad.onnx": graph.SerializeToString()}))
    x, y = (values[:50] for values in digits().train[:2])
    plan = replace(PLAN, weight_decay=0.5, momentum=0.0)
    result = OnnxTrainer(package).train(package.parameters(), x, y, plan)
    before, after = (
        package.split(vector)[still.name] for vector in (package.parameters(), result.parameters)
    )
    decayed = before * (1 - plan.learning_rate * plan.weight_decay) ** result.steps
    np.testing.assert_allclose(after, decayed, rtol=1e-5)


def test_training_follows_torchs_sgd_with_momentum() -> None:
    rows, epochs, batch = 100, 3, 32
    x, y = (torch.tensor(values[:rows]) for values in digits().train[:2])
    net = torch_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    total = 0.0
    for epoch in range(epochs):
        total = 0.0
        for part in torch.tensor(order(7, epoch, rows)).split(batch):
            mean = loss(net(x[part]), y[part]).mean()
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            total += float(mean.detach()) * len(part)
    ours = train(rows, epochs=epochs, batch_size=batch)
    np.testing.assert_allclose(ours.parameters, vector(net), atol=2e-5)
    assert ours.loss == pytest.approx(total / rows, rel=1e-4)
    assert (ours.examples, ours.steps) == (100, 12)


def test_training_repeats_to_the_bit() -> None:
    assert train().parameters.tobytes() == train().parameters.tobytes()


def test_another_seed_takes_another_way() -> None:
    assert train().parameters.tobytes() != train(seed=8).parameters.tobytes()


def test_training_leaves_the_given_parameters_alone() -> None:
    start = opened(first()).parameters()
    kept = start.copy()
    x, y = digits().train[:2]
    trainer().train(start, x[:20], y[:20], SHORT)
    np.testing.assert_array_equal(start, kept)


def test_training_lowers_the_loss() -> None:
    assert train(400, epochs=6).loss < 0.5 < train(400, epochs=1).loss


def test_a_closed_trainer_opens_again() -> None:
    own = OnnxTrainer(opened(first()))
    x, y = digits().train[:2]
    before = own.train(opened(first()).parameters(), x[:20], y[:20], SHORT)
    own.close()
    own.close()
    after = own.train(opened(first()).parameters(), x[:20], y[:20], SHORT)
    assert before.parameters.tobytes() == after.parameters.tobytes()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("seed", -1),
        ("seed", 1 << 64),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(setting: str, value: float) -> None:
    with pytest.raises(UsageError, match=setting):
        train(**{setting: value})


def test_training_that_diverges_says_so() -> None:
    with pytest.raises(UsageError, match="diverged at learning rate 1e\\+20"):
        train(learning_rate=1e20)


@pytest.mark.parametrize(
    "y",
    [
        np.zeros(3, np.int64),
        np.zeros((4, 1), np.int64),
        np.full(4, 10),
        np.full(4, -1),
        np.zeros(4),
        ["a"] * 4,
    ],
)
def test_labels_that_are_no_labels_are_refused(y: NDArray[np.int64]) -> None:
    x = digits().train.x[:4]
    with pytest.raises(UsageError, match=r"[Ll]abel"):
        trainer().train(opened(first()).parameters(), x, y, SHORT)


def test_examples_that_break_the_contract_are_refused() -> None:
    x, y = digits().train[:2]
    with pytest.raises(UsageError, match="over 16"):
        trainer().train(opened(first()).parameters(), x[:4] * 16, y[:4], SHORT)


def test_parameters_of_another_model_are_refused() -> None:
    x, y = digits().train[:2]
    with pytest.raises(UsageError, match="13706 parameters"):
        trainer().train(np.zeros(5, np.float32), x[:4], y[:4], SHORT)


def test_a_model_without_a_gradient_graph_cannot_be_trained() -> None:
    data = resigned(first(), lambda body: body["graphs"].pop("gradient"))
    with pytest.raises(UsageError, match="no gradient graph"):
        OnnxTrainer(opened(data))


def test_fedprox_follows_torchs_loop_with_the_term_in_the_loss() -> None:
    rows, epochs, batch, mu, clip = 60, 2, 16, 0.3, 1.5
    x, y = (torch.tensor(values[:rows]) for values in digits().train[:2])
    net, start = torch_net(), [value.detach().clone() for value in torch_net().parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        for part in torch.tensor(order(7, epoch, rows)).split(batch):
            away = sum((p - p0).square().sum() for p, p0 in zip(net.parameters(), start, strict=True))
            optimizer.zero_grad()
            (loss(net(x[part]), y[part]).mean() + mu / 2 * away).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
    ours = train(rows, epochs=epochs, batch_size=batch, fedprox_mu=mu, gradient_clip=clip)
    np.testing.assert_allclose(ours.parameters, vector(net), atol=2e-5)
    assert np.abs(ours.parameters - train(rows, epochs=epochs, batch_size=batch).parameters).max() > 1e-3


PLAIN = replace(PLAN, momentum=0.0)


def controls(seed: int) -> Controls:
    chance = np.random.default_rng(seed)
    server, own = chance.normal(scale=0.01, size=(2, opened(first()).manifest.dim)).astype(np.float32)
    return Controls(server, own)


def corrected(given: Controls | None, rows: int = 50, **settings: Any) -> TrainResult:
    x, y = digits().train[:2]
    plan = replace(PLAIN, **settings)
    return trainer().train(opened(first()).parameters(), x[:rows], y[:rows], plan, controls=given)


def test_scaffold_takes_the_steps_of_its_algorithm() -> None:
    given, rows = controls(1), 50
    x, y = (torch.tensor(values[:rows]) for values in digits().train[:2])
    net, steps = torch_net(), 0
    drift = torch.tensor(given.server - given.own)
    for epoch in range(2):
        for part in torch.tensor(order(7, epoch, rows)).split(16):
            gradients = torch.autograd.grad(loss(net(x[part]), y[part]).mean(), list(net.parameters()))
            pieces = torch.split(drift, [value.numel() for value in net.parameters()])
            with torch.no_grad():
                for value, gradient, piece in zip(net.parameters(), gradients, pieces, strict=True):
                    value -= 0.05 * (gradient + piece.view_as(value))
            steps += 1
    ours = corrected(given)
    np.testing.assert_allclose(ours.parameters, vector(net), atol=2e-5)
    # Option II, as it is printed.
    moved = opened(first()).parameters() - vector(net)
    expected = given.own - given.server + moved / (steps * 0.05)
    assert ours.control is not None
    np.testing.assert_allclose(ours.control, expected, atol=1e-4)


def test_equal_controls_correct_nothing_and_the_next_one_is_the_mean_gradient() -> None:
    same = Controls(controls(1).own, controls(1).own)
    result, plain = corrected(same), corrected(None)
    assert result.parameters.tobytes() == plain.parameters.tobytes()
    assert plain.control is None
    one = corrected(same, 16, epochs=1)  # a single step: the mean of gradients is that gradient
    net = torch_net()
    x, y = (torch.tensor(values[:16]) for values in digits().train[:2])
    loss(net(x), y).mean().backward()
    gradient = np.concatenate([value.grad.numpy().ravel() for value in net.parameters()])  # type: ignore[union-attr]
    assert one.control is not None
    np.testing.assert_allclose(one.control, gradient, atol=1e-5)


def test_scaffold_corrects_what_was_clipped_and_is_not_clipped_itself() -> None:
    given, rows, clip = controls(1), 16, 0.05
    x, y = (torch.tensor(values[:rows]) for values in digits().train[:2])
    net = torch_net()
    loss(net(x), y).mean().backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
    gradient = np.concatenate([value.grad.numpy().ravel() for value in net.parameters()])  # type: ignore[union-attr]
    drift = given.server - given.own
    assert np.linalg.norm(drift) > 10 * clip
    ours = corrected(given, rows, epochs=1, gradient_clip=clip)
    expected = opened(first()).parameters() - 0.05 * (gradient + drift)
    np.testing.assert_allclose(ours.parameters, expected, atol=1e-6)


def test_training_leaves_the_given_controls_alone() -> None:
    given = controls(2)
    corrected(given)
    np.testing.assert_array_equal(given.server, controls(2).server)
    np.testing.assert_array_equal(given.own, controls(2).own)


@pytest.mark.parametrize(
    "settings", [{"momentum": 0.9}, {"optimizer": "adam"}, {"weight_decay": 0.1}, {"fedprox_mu": 0.1}]
)
def test_scaffold_is_refused_where_its_algorithm_says_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="SCAFFOLD takes plain steps"):
        corrected(controls(1), **settings)


def test_controls_of_another_model_are_refused() -> None:
    short = np.zeros(5, np.float32)
    for given in (Controls(short, controls(1).own), Controls(controls(1).server, short)):
        with pytest.raises(UsageError, match="13706 parameters"):
            corrected(given)


def held_back(rows: int = 30) -> Examples:
    x, y = digits().train[:2]
    return Examples(x[-rows:], y[-rows:])


def patient(patience: int, judge: Examples | None, **settings: Any) -> TrainResult:
    x, y = digits().train[:2]
    plan = replace(PLAN, patience=patience, **settings)
    return trainer().train(opened(first()).parameters(), x[:50], y[:50], plan, held_back=judge)


def test_training_ends_when_the_loss_on_what_was_held_back_has_stopped_falling() -> None:
    # A rate so high that the held-back loss jumps about: judged here by torch, epoch after epoch.
    rate, patience, judge = 0.2, 2, held_back()
    losses: list[float] = []
    for epochs in range(1, 13):
        arrays = opened(first()).split(train(epochs=epochs, learning_rate=rate).parameters)
        net = torch_net()
        net.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
        losses.append(float(loss(net(torch.tensor(judge.x)), torch.tensor(judge.y)).mean().detach()))
    last = next(
        epoch
        for epoch in range(patience, len(losses))
        if min(losses[epoch - 1 : epoch + 1]) >= min(losses[: epoch - 1])
    )
    ours = patient(patience, judge, epochs=12, learning_rate=rate)
    assert (ours.ended, ours.steps) == (Ended.PATIENCE, 4 * (last + 1))
    assert last + 1 < 12
    expected = train(epochs=last + 1, learning_rate=rate).parameters
    assert ours.parameters.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [7, 30, 64])
def test_the_loss_on_what_was_held_back_counts_each_example_once(size: int) -> None:
    judge, package = held_back(), opened(first())
    session = open_session(package.file("grad.onnx"), "grad.onnx")
    gradients = GraphGradients(session, Signature.of(package.manifest, PLAN), package.parameters())
    assert judge.y is not None
    expected = float(loss(torch_net()(torch.tensor(judge.x)), torch.tensor(judge.y)).mean().detach())
    assert mean_loss(gradients, judge.x, judge.y, size) == pytest.approx(expected, rel=1e-5)


def test_patience_that_is_never_tried_changes_nothing() -> None:
    assert patient(5, held_back()).parameters.tobytes() == train().parameters.tobytes()
    assert patient(5, held_back()).ended is Ended.EPOCHS


def test_patience_needs_examples_to_judge_by() -> None:
    for nothing in (None, Examples(held_back().x, None)):
        with pytest.raises(UsageError, match="hold some back"):
            patient(1, nothing)
    with pytest.raises(UsageError, match="over 16"):
        patient(1, Examples(held_back().x * 16, held_back().y))


def test_patience_would_tell_of_private_examples_and_is_refused() -> None:
    with pytest.raises(UsageError, match="would not stay private"):
        replace(PLAN, patience=1, privacy=ExamplePrivacy(1.0, 1.0))


class Ticking:
    """A clock, or a counter of joules, that goes on by one unit whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def metered(meter: Meter, **settings: Any) -> TrainResult:
    own = OnnxTrainer(opened(first()), meter=meter)
    x, y = digits().train[:2]
    return own.train(opened(first()).parameters(), x[:50], y[:50], replace(PLAN, **settings))


@pytest.mark.parametrize("privacy", [None, ExamplePrivacy(1.0, 1.0)])
@pytest.mark.parametrize(("limit", "ended"), [("time_limit_s", Ended.TIME), ("energy_limit_j", Ended.ENERGY)])
def test_a_limit_ends_training_after_the_step_that_reached_it(
    limit: str, ended: Ended, privacy: ExamplePrivacy | None
) -> None:
    meter = Meter(Ticking(), None) if ended is Ended.TIME else Meter(joules=Ticking())
    result = metered(meter, privacy=privacy, **{limit: 3.0})
    assert (result.ended, result.steps) == (ended, 3)
    if privacy is None:
        # The same three steps that an unlimited training begins with: 3 full batches of 16 are 48 rows of 50.
        assert result.parameters.tobytes() != train().parameters.tobytes()
        x, y = digits().train[:2]
        rows = order(7, 0, 50)[:48]
        net = torch_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for part in np.split(rows, 3):
            optimizer.zero_grad()
            loss(net(torch.tensor(x[part])), torch.tensor(y[part])).mean().backward()
            optimizer.step()
        np.testing.assert_allclose(result.parameters, vector(net), atol=2e-5)


def test_a_limit_charges_what_was_planned() -> None:
    private = replace(PLAN, privacy=ExamplePrivacy(1.0, 1.0))
    limited = replace(private, time_limit_s=1e-9, energy_limit_j=1e-9)
    assert limited.release(50) == private.release(50)


def test_the_first_step_is_always_taken() -> None:
    assert metered(Meter(joules=Ticking()), time_limit_s=1e-9, energy_limit_j=1e-9).steps == 1


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    result = metered(Meter(Ticking(), Ticking()), time_limit_s=1e6, energy_limit_j=1e6)
    assert result.ended is Ended.EPOCHS
    assert result.parameters.tobytes() == train().parameters.tobytes()


def test_training_says_what_time_and_energy_it_took() -> None:
    result = metered(Meter(Ticking(), Ticking()))
    assert (result.seconds, result.joules) == (1.0, 1.0)  # looked at when it began, and when it had ended
    assert metered(Meter(Ticking())).joules is None


def test_an_energy_limit_that_nobody_can_measure_is_refused() -> None:
    with pytest.raises(UsageError, match="counter of joules"):
        metered(Meter(), energy_limit_j=5.0)
