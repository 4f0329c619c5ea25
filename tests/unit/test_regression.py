"""Laws of models that answer with numbers: what torch says of them their packages say on a device, they learn as torch
does, are judged by their errors, and nothing that only a classifier has is made up for them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.dummy import DummyRegressor
from sklearn.metrics import mean_absolute_error, mean_squared_error
from torch import Tensor, nn
from typer.testing import CliRunner

from model_packages import RELEASE, first, opened, resigned
from regression_tasks import AUTOENCODER, DIABETES, Autoencoder, patients
from umbel._data.examples import Examples
from umbel._explain.explain import Explainer
from umbel._predict.model import Estimate, Model
from umbel._quantize.quantize import choose_quantized, quantize
from umbel._releases.choice import Measured, decide
from umbel._releases.package import choose_variant, verify_golden
from umbel._telemetry.log import NO_LABEL, ROW, Log
from umbel.engines import load_engine
from umbel.train import ExamplePrivacy, TrainPlan
from umbel.train.evaluate import evaluate
from umbel.train.onnx import OnnxTrainer
from umbel_models import show
from umbel_models.card import Card
from umbel_models.cli import app
from umbel_models.evaluation import evaluate_numbers
from umbel_models.federated import by_chance
from umbel_models.graphs.export import export
from umbel_models.graphs.truth import Truth
from umbel_models.graphs.verify import verify_opacus
from umbel_models.pack import build, repack
from umbel_models.task import Task, squared_error
from umbel_proto.answers import checked_answers
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.keys import SigningKey
from umbel_proto.manifest import BASELINE, CARD, QUANTIZATION, REGRESSION, Target
from umbel_proto.manifest_json import parse_manifest
from umbel_proto.package import Package, write_package
from umbel_server.learning.measure import quantities
from umbel_server.learning.plan import Metrics, Privacy, RunPlan

TASKS = {"diabetes": DIABETES, "autoencoder": AUTOENCODER}
STEP = TrainPlan(epochs=1, batch_size=32, learning_rate=0.1, momentum=0.0, seed=1)


@functools.cache
def package(name: str) -> Package:
    return opened(build(TASKS[name], key=RELEASE, lite=name == "autoencoder"))


def initial(name: str) -> nn.Module:
    return TASKS[name].module()


def card(of: Package) -> Card:
    return Card.from_json(of.file(of.manifest.documents[CARD]))


def trained_on(of: Package, epochs: int) -> NDArray[np.float32]:
    data = patients().train
    plan = replace(STEP, epochs=epochs, momentum=0.9)
    return OnnxTrainer(of).train(of.parameters(), data.x, data.y, plan).parameters


class Window:
    """A telemetry window that remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int | None, float | None]] = []

    @property
    def log(self) -> Log:
        log = Log(lambda _: self._told(log))
        log.due = 0
        return log

    def _told(self, log: Log) -> None:
        for _, confidence, label in np.frombuffer(log.taken()[0], ROW).tolist():
            assert label == NO_LABEL
            assert math.isnan(confidence)
            self.seen.append((None, None))

    def observe_batch(
        self,
        latency_ns: int,
        labels: Sequence[int | None],
        confidences: Sequence[float | None],
        batch: NDArray[Any],
    ) -> None:
        self.seen += zip(labels, confidences, strict=True)

    def count(self, name: str, by: int = 1) -> None:
        raise AssertionError

    def error(self) -> None:
        raise AssertionError


def test_the_command_builds_signs_and_shows_a_package(tmp_path: Path) -> None:
    key, out = tmp_path / "release.key", tmp_path / "diabetes.umbel"
    signing = SigningKey.generate()
    key.write_bytes(signing.to_pem())
    (tmp_path / "task.py").write_text("from regression_tasks import DIABETES as TASK\n")
    words = ["build", str(tmp_path / "task.py"), "--key", str(key), "--out", str(out), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["notes"] == []
    shown = CliRunner().invoke(app, ["show", str(out)]).stdout
    assert "numbers of shape (1,): progression standard deviations" in shown
    assert "automatic" not in shown


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_device_estimates_what_torch_computes(name: str) -> None:
    x = TASKS[name].data().held_out.x[:20]
    with torch.no_grad():
        expected = initial(name)(torch.from_numpy(x)).numpy()
    window = Window()
    engine = load_engine(package(name), "fp32")
    verify_golden(package(name), engine)
    model = Model(package(name), engine, window)
    said = model.estimate(x)
    assert isinstance(said, list)
    np.testing.assert_allclose([each.values for each in said], expected, rtol=1e-4, atol=1e-5)
    alone = model.estimate(x[0])
    assert isinstance(alone, Estimate)
    assert len({each.id for each in (*said, alone)}) == 21
    assert window.seen == [(None, None)] * 21
    assert (model.kind, model.labels) == (REGRESSION, ())


def test_a_model_of_numbers_has_no_predictions_and_one_of_labels_no_estimates() -> None:
    numbers = Model(package("diabetes"), load_engine(package("diabetes"), "fp32"))
    labels = Model(opened(first()), load_engine(opened(first()), "fp32"))
    x = patients().held_out.x
    for ask in (numbers.predict, numbers.predict_proba):
        with pytest.raises(UsageError, match="call estimate"):
            ask(x)
    with pytest.raises(UsageError, match="call predict"):
        labels.estimate(np.zeros((1, 8, 8)))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_step_on_the_device_is_torchs_step(name: str) -> None:
    task, module = TASKS[name], initial(name)
    train = task.data().train
    x, y = train.x[:32], train.y[:32]
    trained = OnnxTrainer(package(name)).train(package(name).parameters(), x, y, STEP).parameters
    task.loss(module(torch.from_numpy(x)), torch.from_numpy(y)).mean().backward()
    for key, value in package(name).manifest.split(trained).items():
        parameter = dict(module.named_parameters())[key]
        assert parameter.grad is not None
        expected = (parameter - 0.1 * parameter.grad).detach().numpy()
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_training_learns_as_much_as_a_linear_model_and_privately_too() -> None:
    held_out = patients().held_out
    examples = Examples(held_out.x, held_out.y)
    before = evaluate(package("diabetes"), package("diabetes").parameters(), examples)
    after = evaluate(package("diabetes"), trained_on(package("diabetes"), 60), examples)
    assert before.score < 0.1
    assert after.score > 0.4  # scikit-learn's ridge regression reaches about 0.48 here
    plan = replace(STEP, privacy=ExamplePrivacy(clip=1.0, noise=0.5), epochs=5)
    data = patients().train
    private = OnnxTrainer(package("diabetes")).train(package("diabetes").parameters(), data.x, data.y, plan)
    assert np.isfinite(private.parameters).all()


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_card_tells_the_errors_that_scikit_learn_computes(name: str) -> None:
    held_out = TASKS[name].data().held_out
    with torch.no_grad():
        said = initial(name)(torch.from_numpy(held_out.x)).numpy()
    mean = DummyRegressor(strategy="mean").fit(held_out.x, held_out.y).predict(held_out.x).reshape(said.shape)
    told = {metric.kind: metric.value for metric in card(package(name)).metrics if not metric.part}
    expected = {
        "examples": len(said),
        "mean squared error": mean_squared_error(held_out.y, said),
        "root mean squared error": mean_squared_error(held_out.y, said) ** 0.5,
        "mean absolute error": mean_absolute_error(held_out.y, said),
        "R2": 1 - mean_squared_error(held_out.y, said) / mean_squared_error(held_out.y, mean),
    }
    assert told == pytest.approx(expected, rel=1e-4)
    assert card(package(name)).kind == REGRESSION
    figures = card(package(name)).sections["quantization"]
    assert figures["root mean squared error fp32"] == pytest.approx(
        expected["root mean squared error"], rel=1e-4
    )
    assert abs(float(figures["growth of error int8"])) < 0.05


def test_the_baseline_counts_values_and_nothing_that_a_classifier_has() -> None:
    of = package("diabetes")
    names = {each["name"] for each in json.loads(of.file(of.manifest.documents[BASELINE]))["histograms"]}
    assert names == {"input", "input_mean", "value.0", *(f"feature.{number}" for number in range(10))}


def test_an_explanation_adds_up_to_how_far_a_number_moved() -> None:
    of, x = package("autoencoder"), AUTOENCODER.data().held_out.x[:5]
    chosen = np.array([0, 9, 20, 63, 36])
    explained = Explainer(of).explain(x, target=chosen)
    with torch.no_grad():
        moved = (Autoencoder()(torch.from_numpy(x)) - Autoencoder()(torch.zeros(5, 64))).numpy()
    total = explained.attributions.sum(1) - explained.residual
    np.testing.assert_allclose(total, moved[np.arange(5), chosen], rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match=r"Numbers of an answer .* 0\.\.63"):
        Explainer(of).explain(x, target=np.full(5, 64))


def test_a_later_version_is_quantized_and_judged_anew() -> None:
    parameters = trained_on(package("diabetes"), 20)
    data = repack(
        package("diabetes"),
        parameters,
        calibration=patients().calibration.x,
        version=2,
        key=RELEASE,
        held_out=patients().held_out,
    )
    later = opened(data)
    assert later.manifest.targets == DIABETES.targets
    told = {metric.kind: metric.value for metric in card(later).metrics}
    examples = Examples(*patients().held_out[:2])
    assert told["R2"] == pytest.approx(evaluate(later, parameters, examples).score, rel=1e-4)
    lines = show.lines(later.manifest, card(later), size=len(data), checked=True)
    assert any(line.startswith("R2 ") for line in lines)


def test_every_form_of_an_autoencoder_runs_and_the_selector_compares_numbers() -> None:
    of, held_out = package("autoencoder"), AUTOENCODER.data().held_out
    assert set(of.manifest.variants) == {"fp32", "int8", "tflite", "tflite-int8"}
    choice = choose_variant(of, held_back=Examples(held_out.x, held_out.y))
    for name, shown in choice.measured.items():
        said = load_engine(of, name).answers(held_out.x)
        assert shown.error == pytest.approx(mean_squared_error(held_out.y, said) ** 0.5, rel=1e-4)
        assert (shown.agreement, shown.accuracy) == (None, None)
    assert choice.measured["tflite"].difference == pytest.approx(0, abs=1e-4)


def test_a_device_quantizes_what_it_learned_and_compares_errors() -> None:
    of, data = package("diabetes"), patients()
    assert QUANTIZATION in of.manifest.documents
    parameters = trained_on(of, 20)
    tensors = quantize(of, parameters, data.calibration.x)
    choice = choose_quantized(of, parameters, tensors, Examples(data.held_out.x, data.held_out.y))
    errors = {name: shown.error for name, shown in choice.measured.items()}
    assert errors["int8"] == pytest.approx(errors["fp32"], rel=0.05)


@pytest.mark.parametrize(
    ("int8", "chosen"),
    [
        (
            Measured(50.0, difference=0.5, error=1.009),
            "int8",
        ),  # where the right numbers are known, they decide
        (Measured(50.0, difference=0.0, error=1.011), "fp32"),
        (Measured(96.0, difference=0.0, error=1.0), "fp32"),
        (Measured(50.0, difference=0.013), "int8"),
        (Measured(50.0, difference=0.015), "fp32"),
        (Measured(50.0, difference=float("nan")), "fp32"),
        (Measured(50.0, error=float("nan")), "fp32"),
    ],
)
def test_a_faster_form_is_chosen_unless_its_error_grows(int8: Measured, chosen: str) -> None:
    reference = Measured(100.0, difference=0.0, error=None if int8.error is None else 1.0)
    assert decide({"fp32": reference, "int8": int8}, reference="fp32") == chosen


@pytest.mark.parametrize(
    ("y", "sentence"),
    [
        (np.zeros(4, np.float32), r"shape \(4, 1\)"),
        (np.zeros((4, 2)), r"shape \(4, 1\)"),
        (np.array([["a"]] * 4), "needs numbers"),
        (np.full((4, 1), np.nan), "finite"),
        (np.full((4, 1), 1e300), "finite"),
    ],
)
def test_targets_that_do_not_fit_the_model_are_refused(y: NDArray[Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        checked_answers(package("diabetes").manifest, y, 4)
    with pytest.raises(UsageError, match=sentence):
        OnnxTrainer(package("diabetes")).train(
            package("diabetes").parameters(), patients().train.x[:4], y, STEP
        )


def test_a_manifest_survives_json_and_one_of_labels_names_no_kind() -> None:
    manifest = package("diabetes").manifest
    assert parse_manifest(manifest.to_json()) == manifest
    assert "kind" not in json.loads(opened(first()).manifest.to_json())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "classification"}, "has kind 'classification'"),
        ({"kind": "segmentation"}, "has kind 'segmentation'"),
        ({"labels": ["a", "b"]}, "labels"),
        ({"decision_threshold": 0.5}, "decision_threshold"),
        ({"targets": [{"name": "a", "unit": ""}] * 2}, "a target twice"),
        ({"targets": [{"name": n, "unit": ""} for n in "ab"]}, "names 2 targets"),
        ({"targets": [{"name": "a"}]}, "unit"),
        ({"outputs": [{"name": "values", "dtype": "int64", "shape": ["batch", 1]}]}, "not float32"),
        ({"outputs": [{"name": "values", "dtype": "float32", "shape": [1]}]}, "not float32"),
        ({"outputs": [{"name": "values", "dtype": "float32", "shape": ["batch", 0]}]}, "not float32"),
        ({"outputs": [{"name": "values", "dtype": "float32", "shape": ["batch", "batch"]}]}, "not float32"),
        ({"outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 1]}]}, "gives values"),
        ({"outputs": []}, "gives values"),
        (
            {"outputs": [{"name": "values", "dtype": "float32", "shape": ["batch", 2]}], "targets": []},
            "golden",
        ),
    ],
)
def test_a_signed_manifest_of_numbers_that_makes_no_sense_is_refused(
    change: dict[str, Any], sentence: str
) -> None:
    of = package("diabetes")
    files = {name: of.file(name) for name in of.manifest.files}
    data = write_package(of.manifest, files, RELEASE)
    with pytest.raises(PackageError, match=sentence):
        opened(resigned(data, lambda body: body.update(change)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "tagging"}, "each label a 1 among zeros"),
        ({"labels": ("a", "b")}, "leave them out"),
        ({"decision_threshold": 0.5}, "leave them out"),
        ({"kind": "classification", "targets": ()}, "names 0 labels"),
        ({"kind": "classification", "labels": ("a", "b")}, "names targets"),
    ],
)
def test_a_task_that_mixes_kinds_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        replace(DIABETES, **settings)


def test_what_is_made_for_labels_refuses_a_model_of_numbers() -> None:
    with pytest.raises(UsageError, match="tells labels apart"):
        DIABETES.require_labels("An assessment")


def test_devices_share_data_without_labels_evenly() -> None:
    whole = patients().train
    shards = by_chance(whole, 7, seed=1)
    assert {len(shard.y) for shard in shards} <= {42, 43}
    rows = np.concatenate([shard.x for shard in shards])
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(whole.x, axis=0))
    with pytest.raises(UsageError, match="fewer devices"):
        by_chance(whole, 16, seed=1)


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        (Metrics(), "no accuracy"),
        (Metrics(names=("loss",)), "loss_high"),
        (Metrics(names=("training_loss",)), "loss_high"),
    ],
)
def test_a_run_does_not_ask_for_what_numbers_cannot_tell(metrics: Metrics, sentence: str) -> None:
    plan = RunPlan(
        model=DIABETES.model,
        version=1,
        package_sha256="0" * 64,
        rounds=1,
        devices=3,
        privacy=Privacy(clip=1.0, noise_multiplier=0.0),
        metrics=metrics,
    )
    with pytest.raises(UsageError, match=sentence):
        quantities(plan, 0)
    assert quantities(replace(plan, metrics=Metrics(names=())), 0) == ()


def test_labels_of_every_position_are_targets_and_the_refusal_says_so() -> None:
    def positions(values: Tensor, y: Tensor) -> Tensor:
        return -(y * values.log_softmax(1)).sum(1).flatten(1).mean(1)

    module = nn.Conv1d(2, 3, 3, padding=1)
    with pytest.raises(UsageError, match="kind=REGRESSION"):
        Truth(module, positions, (2, 6))
    graphs = export(module, positions, (2, 6), kind=REGRESSION, targets=(0.0, 1.0))
    assert graphs.notes == ()


class Recurrent(nn.Module):
    """Forecasts a number by a GRU, with constants in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.gru(x.float())[0][:, -1]).float()
        return made


def test_what_an_export_fell_back_to_is_said() -> None:
    notes = " ".join(export(Recurrent(), squared_error, (4, 2), kind=REGRESSION).notes)
    assert "loop over the examples" in notes
    assert "gru, a GRU, has no rule" in notes
    assert "in float32" in notes
    assert "Opacus was not asked" in notes


def test_a_graph_of_other_sums_than_those_of_opacus_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    graph = export(module, squared_error, (3,), kind=REGRESSION).clipped
    other = Truth(module, lambda values, y: 1.01 * squared_error(values, y), (3,), kind=REGRESSION)
    with pytest.raises(PackageError, match=r"dpgrad\.onnx at batch 7"):
        verify_opacus(graph, other)
    assert verify_opacus(graph, Truth(module, squared_error, (3,), kind=REGRESSION)) == ""


def test_targets_of_another_shape_than_the_answers_are_refused() -> None:
    data = patients().held_out
    with pytest.raises(UsageError, match=r"shape \(42,\), and the model's answers \(42, 1\)"):
        evaluate_numbers(data.y[:42], data.take(np.arange(42))._replace(y=data.y[:42, 0]))


def test_a_task_that_names_its_numbers_names_all_of_them() -> None:
    task: Task = replace(AUTOENCODER, targets=(Target("first"),))
    with pytest.raises(UsageError, match="names 1 targets, and an answer has 64"):
        build(task, key=RELEASE)
