"""One suite for every trainer: it gives what the interface promises, whatever computes the gradients."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from model_packages import RELEASE, digits, first, opened, resigned
from umbel._data.examples import Examples
from umbel.engines.onnx import open_session
from umbel.train import Controls, Ended, ExamplePrivacy, Meter, Trainer, TrainPlan, TrainResult
from umbel.train.apart import ApartTrainer
from umbel.train.descent import MAX_ROWS, SLACK
from umbel.train.onnx import OnnxTrainer
from umbel.train.torch import TorchTrainer
from umbel_models.pack import build
from umbel_models.task import cross_entropy as loss
from umbel_models.tasks.digits.module import DigitsNet
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.errors import UsageError
from umbel_proto.package import Package

ALARM = 1e-9
"""How often a statistical test here is allowed to fail by chance."""

TRAINERS: dict[str, Callable[..., Trainer]] = {
    "onnx": OnnxTrainer,
    "apart": ApartTrainer,
    "torch": lambda package, **more: TorchTrainer(package, DigitsNet(), loss, **more),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other make small steps slow
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=TRAINERS)
def make(request: pytest.FixtureRequest) -> Callable[..., Trainer]:
    return TRAINERS[request.param]


@pytest.fixture(scope="module")
def trainer(make: Callable[..., Trainer]) -> Trainer:
    return make(opened(first()))


@functools.cache
def start() -> NDArray[np.float32]:
    return opened(first()).parameters()


PLAN = TrainPlan(epochs=2, batch_size=16, learning_rate=0.05, momentum=0.9, seed=7)


def train(
    trainer: Trainer,
    rows: int | slice = 50,
    *,
    held_back: Examples | None = None,
    controls: Controls | None = None,
    **settings: Any,
) -> TrainResult:
    x, y = digits().train[:2]
    part = slice(rows) if isinstance(rows, int) else rows
    plan = replace(PLAN, **settings)
    return trainer.train(start(), x[part], y[part], plan, held_back=held_back, controls=controls)


def one_step(trainer: Trainer, rows: int | slice, privacy: ExamplePrivacy) -> NDArray[np.float64]:
    """The sum that a step over all rows releases: every row is drawn, and the step has length 1."""
    count = len(digits().train.y[slice(rows) if isinstance(rows, int) else rows])
    result = train(
        trainer, rows, epochs=1, batch_size=count, learning_rate=1.0, momentum=0.0, privacy=privacy
    )
    return (start().astype(np.float64) - result.parameters) * count


@functools.cache
def each_gradient(rows: int) -> NDArray[np.float64]:
    """Gradients of the first rows by the package's plain gradient graph, one at a time, (rows, dim)."""
    package = opened(first())
    session = open_session(package.file("grad.onnx"), "grad.onnx")
    names = [f"grad.{parameter.name}" for parameter in package.manifest.parameters]
    x, y = digits().train[:2]
    found = []
    for row in range(rows):
        feed = {"x": x[[row]], "y": y[[row]], "w": np.ones(1, np.float32)}
        pieces = session.run(names, {**package.split(start()), **feed})
        found.append(np.concatenate([piece.ravel() for piece in pieces]).astype(np.float64))
    return np.stack(found)


def clipped_sum(rows: int, clip: float) -> NDArray[np.float64]:
    gradients = each_gradient(rows)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    total: NDArray[np.float64] = (gradients * np.minimum(1, clip * SLACK / norms)).sum(0)
    return total


def test_every_trainer_gives_what_the_first_gives(trainer: Trainer) -> None:
    reference = train(OnnxTrainer(opened(first())), 100, epochs=3)
    result = train(trainer, 100, epochs=3)
    np.testing.assert_allclose(result.parameters, reference.parameters, atol=2e-5)
    assert result.loss == pytest.approx(reference.loss, rel=1e-4)
    assert (result.examples, result.steps) == (reference.examples, reference.steps) == (100, 21)


DRAWN = ExamplePrivacy(0.5, 0.0)
"""Without noise, and at rate 1, both trainers make the same steps."""

PLANS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"weight_decay": 0.05},
    "adam": {"optimizer": "adam", "momentum": 0.9, "learning_rate": 0.003},
    "adam with decay": {"optimizer": "adam", "momentum": 0.9, "learning_rate": 0.003, "weight_decay": 0.05},
    "clipped": {"gradient_clip": 0.8},
    "fedprox": {"fedprox_mu": 0.5},
    "fedprox, clipped, by adam": {
        "optimizer": "adam", "momentum": 0.9, "learning_rate": 0.003, "fedprox_mu": 0.5, "gradient_clip": 0.8,
    },
    "scaffold": {"momentum": 0.0},
    "scaffold, clipped": {"momentum": 0.0, "gradient_clip": 0.8},
    "patience": {"patience": 1, "epochs": 30, "learning_rate": 0.15},
    "patience, by adam": {"patience": 1, "epochs": 30, "optimizer": "adam", "learning_rate": 0.01},
    "energy": {"energy_limit_j": 5.0},
    "private": {"privacy": DRAWN, "batch_size": 50},
    "private, by adam": {
        "privacy": DRAWN, "batch_size": 50, "optimizer": "adam", "momentum": 0.9, "learning_rate": 0.003,
    },
    "private scaffold": {"privacy": DRAWN, "batch_size": 50, "momentum": 0.0},
    "private fedprox, clipped, with a limit": {
        "privacy": DRAWN, "batch_size": 50, "fedprox_mu": 0.5, "gradient_clip": 0.8, "epochs": 9, "energy_limit_j": 3.0,
    },
}  # fmt: skip


def planned(trainer: Trainer, name: str) -> TrainResult:
    x, y = digits().train[:2]
    chance = np.random.default_rng(3)
    server, own = (chance.normal(scale=0.01, size=start().shape).astype(np.float32) for _ in range(2))
    return train(
        trainer,
        50,
        held_back=Examples(x[-40:], y[-40:]) if "patience" in name else None,
        controls=Controls(server, own) if "scaffold" in name else None,
        **PLANS[name],
    )


@functools.cache
def by_the_first(name: str) -> TrainResult:
    return planned(OnnxTrainer(opened(first()), meter=Meter(joules=itertools.count().__next__)), name)


@pytest.mark.parametrize("name", PLANS)
def test_every_trainer_makes_the_same_of_every_plan(name: str, make: Callable[..., Trainer]) -> None:
    reference = by_the_first(name)
    result = planned(make(opened(first()), meter=Meter(joules=itertools.count().__next__)), name)
    assert (result.steps, result.ended) == (reference.steps, reference.ended)
    moved = np.linalg.norm(reference.parameters - start())
    assert np.linalg.norm(result.parameters - reference.parameters) <= 5e-4 * moved
    np.testing.assert_allclose(result.parameters, reference.parameters, rtol=1e-4, atol=1e-4)
    assert result.loss == pytest.approx(reference.loss, rel=1e-4)
    assert (result.control is None) == (reference.control is None) == ("scaffold" not in name)
    if reference.control is not None:
        np.testing.assert_allclose(result.control, reference.control, atol=1e-4)


def test_the_plans_above_end_for_the_reasons_they_name_and_differ() -> None:
    for name in PLANS:
        ended = Ended.PATIENCE if "patience" in name else Ended.EPOCHS
        if "energy_limit_j" in PLANS[name]:
            ended = Ended.ENERGY
        assert by_the_first(name).ended is ended, name
    found = {by_the_first(name).parameters.tobytes() for name in PLANS}
    assert len(found) == len(PLANS)


def test_training_repeats_to_the_bit(trainer: Trainer) -> None:
    assert train(trainer).parameters.tobytes() == train(trainer).parameters.tobytes()


def test_the_given_parameters_are_left_alone_and_a_trainer_keeps_nothing(trainer: Trainer) -> None:
    kept = start().copy()
    before = train(trainer).parameters
    train(trainer, privacy=ExamplePrivacy(1.0, 1.0))
    trainer.close()
    np.testing.assert_array_equal(train(trainer).parameters, before)
    np.testing.assert_array_equal(start(), kept)


def test_what_fills_a_batch_up_does_nothing(trainer: Trainer) -> None:
    padded, exact = train(trainer, 10, batch_size=64), train(trainer, 10, batch_size=10)
    np.testing.assert_allclose(padded.parameters, exact.parameters, atol=1e-6)
    privacy = ExamplePrivacy(0.5, 0.0)
    for rows in (10, 16):
        np.testing.assert_allclose(one_step(trainer, rows, privacy), clipped_sum(rows, 0.5), atol=1e-5)


@pytest.mark.parametrize("clip", [0.01, 1.5, 1e4])
def test_a_step_sums_clipped_gradients(trainer: Trainer, clip: float) -> None:
    total = one_step(trainer, 24, ExamplePrivacy(clip, 0.0))
    # Parameters are float32 near 0.1: a step of length 1 leaves 2**-28 of error for each of 24 examples.
    np.testing.assert_allclose(total, clipped_sum(24, clip), atol=1e-5)


def test_more_examples_than_one_sum_takes_are_summed_all(trainer: Trainer) -> None:
    rows = 2 * MAX_ROWS + 5
    total = one_step(trainer, rows, ExamplePrivacy(0.7, 0.0))
    np.testing.assert_allclose(total, clipped_sum(rows, 0.7), atol=4e-5)


def test_one_example_moves_the_sum_by_clip_at_most(trainer: Trainer) -> None:
    for clip in (0.02, 1.0):
        for row in range(5):
            total = one_step(trainer, slice(row, row + 1), ExamplePrivacy(clip, 0.0))
            assert np.linalg.norm(total) <= clip


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_the_noise_has_the_variance_it_is_accounted_with(trainer: Trainer, noise: float) -> None:
    # chi-square of 13,706 coordinates: a percent and a half off is seen at odds of 1e9 against.
    clip = 0.3
    error = one_step(trainer, 12, ExamplePrivacy(clip, noise)) - clipped_sum(12, clip)
    statistic = float((error**2).sum()) / (noise * clip) ** 2
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], len(error))
    assert low < statistic < high
    assert stats.kstest(error / (noise * clip), "norm").pvalue > ALARM


def test_every_step_has_noise_of_its_own(trainer: Trainer) -> None:
    # Steps so short that gradients stay; the sum of T independent noises has T times the variance.
    steps, clip, noise = 9, 1e-6, 1.0
    settings = {
        "batch_size": 4,
        "learning_rate": 1e5,
        "momentum": 0.0,
        "privacy": ExamplePrivacy(clip, noise),
    }
    moved = start().astype(np.float64) - train(trainer, 4, epochs=steps, **settings).parameters
    error = moved * 4 / 1e5
    statistic = float((error**2).sum()) / (steps * (noise * clip) ** 2)
    bound = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], len(error)) / len(error)
    drift = steps * 4 * clip / (noise * clip * np.sqrt(steps * len(error)))  # all that gradients can add
    assert bound[0] * (1 - drift) ** 2 < statistic / len(error) < bound[1] * (1 + drift) ** 2


def test_privacy_draws_anew_whatever_the_seed(trainer: Trainer) -> None:
    # Without noise only the draws can differ, at rate 1 only the noise.
    for settings in (
        {"privacy": ExamplePrivacy(1.0, 0.0), "batch_size": 5, "epochs": 1},
        {"privacy": ExamplePrivacy(1.0, 1.0), "batch_size": 50, "epochs": 1},
    ):
        one, two = (train(trainer, 50, seed=1, **settings).parameters for _ in range(2))
        assert (one == two).mean() < 0.9  # a third of the gradient is 0 for every digit


def test_a_step_is_divided_by_what_was_planned_and_not_by_what_was_drawn(trainer: Trainer) -> None:
    # One example at rate 1 in a batch of 1: the same example in a batch of 4 moves a quarter as far.
    privacy = ExamplePrivacy(0.1, 0.0)
    settings = {"epochs": 1, "learning_rate": 1.0, "momentum": 0.0, "privacy": privacy}
    one = start() - train(trainer, 1, batch_size=1, **settings).parameters
    four = start() - train(trainer, 1, batch_size=4, **settings).parameters
    np.testing.assert_allclose(one, 4 * four, atol=1e-6)


def test_steps_that_draw_nobody_add_noise_all_the_same(trainer: Trainer) -> None:
    # 40 steps at rate 1/40: about 15 draw nobody. What is released has every step's noise.
    privacy = ExamplePrivacy(1e-6, 1.0)
    settings = {"epochs": 1, "batch_size": 1, "learning_rate": 1e4, "momentum": 0.0, "privacy": privacy}
    result = train(trainer, 40, **settings)
    error = (start().astype(np.float64) - result.parameters) / (1e4 * 1e-6)
    assert result.steps == 40
    statistic = float((error**2).sum()) / 40
    drift = 40 * 10 / np.sqrt(40 * len(error))
    assert 0.9 * len(error) < statistic < 1.1 * len(error) * (1 + drift)


def test_private_training_learns(trainer: Trainer) -> None:
    private = {"privacy": ExamplePrivacy(3.0, 0.02), "learning_rate": 0.3, "momentum": 0.8}
    result = train(trainer, 150, epochs=25, batch_size=50, **private)
    # Over 30 runs 0.18 to 0.68, its logarithm about normal: 2 is five deviations away.
    assert result.loss < 2.0 < np.log(10)


def test_an_example_whose_gradient_overflows_counts_nothing_and_is_not_told(trainer: Trainer) -> None:
    # A server that sends huge parameters must not learn from a refusal which examples overflow.
    x, y = digits().train[:2]
    huge = start() * np.float32(1e12)
    plan = TrainPlan(1, 8, 1.0, 0.0, 0, ExamplePrivacy(1.0, 1.0))
    blank = np.concatenate([np.zeros_like(x[:1]), x[:7]])
    result = trainer.train(huge, blank, y[:8], plan)
    assert np.isfinite(result.parameters).all()


@pytest.mark.parametrize(
    ("clip", "noise", "word"),
    [
        (0.0, 1.0, "example_clip"),
        (-1.0, 1.0, "example_clip"),
        (1e-300, 1.0, "example_clip"),
        (1.0, 1e-300, "example_noise"),
        (float("nan"), 1.0, "example_clip"),
        (float("inf"), 1.0, "example_clip"),
        (1.0, -0.1, "example_noise"),
        (1.0, float("nan"), "example_noise"),
        (1.0, float("inf"), "example_noise"),
    ],
)
def test_privacy_that_makes_no_sense_is_named(clip: float, noise: float, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        ExamplePrivacy(clip, noise)


def test_what_a_plan_gives_away_is_its_rate_its_steps_and_its_noise() -> None:
    plan = TrainPlan(3, 16, 0.1, 0.0, 0, ExamplePrivacy(1.0, 1.25))
    release = plan.release(100)
    assert release is not None
    assert (release.rate, release.steps, release.noise) == (0.16, 21, 1.25)
    small = plan.release(5)
    assert small is not None
    assert (small.rate, small.steps) == (1.0, 3)
    assert TrainPlan(3, 16, 0.1, 0.0, 0).release(100) is None


def test_a_trainer_takes_as_many_steps_as_it_is_charged_for(trainer: Trainer) -> None:
    plan = TrainPlan(2, 16, 0.05, 0.9, 7, ExamplePrivacy(1.0, 1.0))
    release = plan.release(50)
    assert release is not None
    assert train(trainer, privacy=plan.privacy).steps == release.steps


def test_a_package_from_before_cannot_keep_examples_private() -> None:
    old = opened(resigned(first(), lambda body: body["graphs"].pop("clipped_gradient")))
    train(OnnxTrainer(old))
    with pytest.raises(UsageError, match="no clipped_gradient graph"):
        train(OnnxTrainer(old), privacy=ExamplePrivacy(1.0, 1.0))


class Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output = torch.nn.Linear(64, 11)


class More(DigitsNet):
    def __init__(self) -> None:
        super().__init__()
        self.extra = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(("module", "name"), [(Wide, r"conv1\.weight"), (More, r"extra\.bias")])
def test_a_module_of_another_model_is_refused(module: type[torch.nn.Module], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        TorchTrainer(opened(first()), module(), loss)


class Mixed(DigitsNet):
    """Its examples cannot be kept apart: each is normalized with the others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x))


def test_opacus_refuses_a_module_that_mixes_examples() -> None:
    mixing = TorchTrainer(opened(first()), Mixed(), loss)
    with pytest.raises(UsageError, match="keep the examples"):
        train(mixing, privacy=ExamplePrivacy(1.0, 1.0))


class ChannelsLast(DigitsNet):
    """The same network; what its second convolution sees lies in memory as fast kernels like it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.conv1(x * (1.0 / 16))))
        x = self.pool(self.relu(self.conv2(x.contiguous(memory_format=torch.channels_last))))
        logits: torch.Tensor = self.output(self.relu(self.hidden(self.flatten(x))))
        return logits


def test_a_convolutions_gradients_do_not_depend_on_how_its_input_lies_in_memory() -> None:
    # Opacus' own rule for convolutions gets this wrong, without a word.
    trainer = TorchTrainer(opened(first()), ChannelsLast(), loss)
    total = one_step(trainer, 24, ExamplePrivacy(1.5, 0.0))
    np.testing.assert_allclose(total, clipped_sum(24, 1.5), atol=1e-5)


def test_the_modules_own_values_do_not_matter_and_stay() -> None:
    module = DigitsNet()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train(TorchTrainer(opened(first()), module, loss))
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("missing", ["torch", "opacus"])
def test_without_torch_or_opacus_the_error_names_the_extra(missing: str) -> None:
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from umbel_proto.errors import MissingExtraError\n"
        "try:\n    import umbel.train.torch\n"
        "except MissingExtraError as exc:\n    print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code, missing], capture_output=True, check=True, text=True)
    assert done.stdout.strip().endswith("run  pip install 'umbel[torch]'.")


def test_a_device_trains_privately_without_torch() -> None:
    code = "import sys, umbel.train.onnx; print('torch' in sys.modules, 'opacus' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["False", "False"]


class Small(torch.nn.Module):
    """A network of which training changes the head only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(64, 12)
        self.output = torch.nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(torch.tanh(self.body(x.flatten(1) / 16)))
        return logits


@functools.cache
def headed() -> Package:
    task = replace(DIGITS, module=Small, committed=None, trainable=("output.weight", "output.bias"))
    return opened(build(task, key=RELEASE, calibration=digits().calibration.x[:64]))


HEADED: dict[str, Callable[[], Trainer]] = {
    "onnx": lambda: OnnxTrainer(headed()),
    "apart": lambda: ApartTrainer(headed()),
    # Another body than the package's: the package's is what counts.
    "torch": lambda: TorchTrainer(headed(), doubled(Small()), loss),
}


def doubled(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for value in module.parameters():
            value *= 2
    return module


@pytest.mark.parametrize("privacy", [None, DRAWN], ids=["open", "private"])
@pytest.mark.parametrize("name", HEADED)
def test_training_changes_the_trainable_parameters_and_reads_the_frozen_ones(
    name: str, privacy: ExamplePrivacy | None
) -> None:
    rows = 40
    x, y = digits().train[:2]
    plan = TrainPlan(3, rows, 0.5, 0.9, 7, privacy)
    result = HEADED[name]().train(headed().parameters(), x[:rows], y[:rows], plan)
    assert headed().manifest.dim == len(result.parameters) == 130
    net, inputs, labels = Small(), torch.tensor(x[:rows]), torch.tensor(y[:rows])
    optimizer = torch.optim.SGD(net.output.parameters(), lr=0.5, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        if privacy is None:
            loss(net(inputs), labels).mean().backward()
        else:
            head = list(net.output.parameters())
            for value in head:
                value.grad = torch.zeros_like(value)
            for row in range(rows):
                each = torch.autograd.grad(loss(net(inputs[[row]]), labels[[row]]).sum(), head)
                # The norm is over what is released: the frozen parameters' gradients count nothing.
                norm = sum(float(g.square().sum()) for g in each) ** 0.5
                for value, gradient in zip(head, each, strict=True):
                    value.grad += gradient * min(1.0, privacy.clip * SLACK / norm) / rows
        optimizer.step()
    arrays = headed().manifest.split(result.parameters)
    for key, value in net.output.named_parameters():
        np.testing.assert_allclose(arrays[f"output.{key}"], value.detach().numpy(), atol=2e-5)
    assert np.abs(result.parameters - headed().parameters()).max() > 0.01
