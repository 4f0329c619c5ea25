"""A Python file with one task becomes a package: exported, verified, trained on a device."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from model_packages import RELEASE
from umbel._explain.explain import Explainer
from umbel._releases.package import choose_variant
from umbel.train import TrainPlan
from umbel.train.onnx import OnnxTrainer
from umbel_models.card import Card
from umbel_models.cli import app
from umbel_models.load import load_task
from umbel_models.pack import build
from umbel_proto.errors import PackageError, UmbelError, UsageError
from umbel_proto.package import Package, read_package

TASK = """
import numpy as np
import torch
from torch import nn
from umbel_models.task import About, Examples, Split, Task, cross_entropy
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName

def data():
    x = np.random.default_rng(1).standard_normal((160, 4)).astype(np.float32).clip(-5, 5)
    whole = Examples(x, (x[:, 0] > 0).astype(np.int64), cohort=(x[:, 1] > 0).astype(np.int64))
    return Split(*(whole.take(rows) for rows in np.split(np.arange(160), [100, 140])))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))

def module():
    torch.manual_seed(3)
    return Net().eval()

SETTINGS = dict(
    model=ModelName("side"), module=module, loss=cross_entropy, labels=("left", "right"), data=data,
    contract=DataContract((Field("x", "float32", (4,), -5.0, 5.0, unit="m"),)), decision_threshold=0.5,
    about=About("Say which side.", "Generated."), cohorts=("low", "high"),
)
"""
WHOLE = TASK + "TASK = Task(**SETTINGS)\n"
HEAD = TASK + 'TASK = Task(**SETTINGS, trainable=("head.weight", "head.bias"))\n'


def written(folder: Path, text: str) -> str:
    path = folder / "task.py"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def head_only(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, str]:
    """The package of the command line, and what it said on the way."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "release.pem").write_bytes(RELEASE.to_pem())
    words = ["build", written(folder, HEAD), "--key", f"{folder}/release.pem", "--out", f"{folder}/m.umbel"]
    result = CliRunner().invoke(app, words)
    assert result.exception is None, result.exception
    return read_package((folder / "m.umbel").read_bytes(), release_key=RELEASE.public), result.stderr


def test_a_file_with_a_task_becomes_a_package_that_runs(head_only: tuple[Package, str]) -> None:
    package, progress = head_only
    assert package.manifest.model == "side"
    assert choose_variant(package).latency_us.keys() == package.manifest.variants.keys()
    assert "exporting and verifying" in progress
    card = Card.from_json(package.file("card.json"))
    assert {m.part for m in card.metrics if m.part.startswith("cohort")} == {"cohort low", "cohort high"}


def test_only_the_trainable_parameters_are_trained_and_travel(head_only: tuple[Package, str]) -> None:
    package, _ = head_only
    assert [parameter.name for parameter in package.manifest.parameters] == ["head.weight", "head.bias"]
    assert [parameter.name for parameter in package.manifest.frozen] == ["body.bias", "body.weight"]
    assert package.manifest.dim == 14
    x = np.random.default_rng(2).standard_normal((40, 4)).astype(np.float32)
    plan = TrainPlan(epochs=3, batch_size=10, learning_rate=0.1, momentum=0.9, seed=1)
    trained = OnnxTrainer(package).train(package.parameters(), x, (x[:, 0] > 0).astype(np.int64), plan)
    assert trained.parameters.shape == (14,)
    assert not np.array_equal(trained.parameters, package.parameters())


def test_a_model_with_frozen_parameters_is_explained(head_only: tuple[Package, str]) -> None:
    package, _ = head_only
    explained = Explainer(package).explain(np.ones((2, 4), np.float32))
    assert explained.attributions.shape == (2, 4)
    assert np.abs(explained.residual).max() < 0.1


def test_every_exported_graph_is_plain_onnx_of_an_old_version(head_only: tuple[Package, str]) -> None:
    package, _ = head_only
    names = {*package.manifest.graphs.values(), *(v.file for v in package.manifest.variants.values())}
    assert len(names) >= 4
    for name in names:
        model = onnx.load_from_string(package.file(name))
        assert (model.ir_version, [o.domain for o in model.opset_import]) == (9, [""])
        assert model.opset_import[0].version <= 18


def test_a_task_built_twice_gives_equal_bytes(tmp_path: Path, head_only: tuple[Package, str]) -> None:
    task = load_task(written(tmp_path, HEAD))
    data = build(task, key=RELEASE)
    assert read_package(data, release_key=RELEASE.public).sha256 == head_only[0].sha256


@pytest.mark.parametrize(
    ("change", "error", "sentences"),
    [
        # What a module computes only while it is traced, and what it computes later.
        (
            ("return self.head(", "self.calls += 1\n        return self.head((1 + self.calls % 2) * "),
            PackageError,
            ("Task side cannot be packed", "onnx"),
        ),
        (("nn.Linear(6, 2)", "nn.Bilinear(6, 6, 2)"), UsageError, ("head", "nn.Linear")),
        (('Field("x"', 'Field("window"'), UsageError, ("one field: x",)),
        (("TASK = Task(**SETTINGS", 'TASK = Task(**SETTINGS, trainable=("tail",)'), UsageError, ("tail",)),
        (("nn.Linear(6, 2)", "nn.Linear(6, 3)"), UsageError, ("3 logits", "2 labels")),
        (("nn.Linear(6, 2)", "nn.Linear(6, 1)"), UsageError, ("1 logits", "2 labels")),
        (
            ("return Net().eval()", "return Net().double()"),
            UsageError,
            ("body.weight (torch.float64)", "float()"),
        ),
    ],
)
def test_a_module_that_cannot_be_packed_writes_nothing_and_says_why(
    tmp_path: Path, change: tuple[str, str], error: type[UmbelError], sentences: tuple[str, ...]
) -> None:
    text = WHOLE.replace(*change)
    assert text != WHOLE
    (tmp_path / "release.pem").write_bytes(RELEASE.to_pem())
    out = tmp_path / "m.umbel"
    words = ["build", written(tmp_path, text), "--key", f"{tmp_path}/release.pem", "--out", str(out)]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, error)
    assert [sentence for sentence in sentences if sentence not in str(result.exception)] == []
    assert not out.exists()


@pytest.mark.parametrize("command", ["build", "split", "assess", "prune"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ("def data():", "def data():\n    open('no.csv')"),
            "its data fails, line 10: FileNotFoundError: .*'no.csv'",
        ),
        (("    return Split(*", "    return tuple("), "its data returns a tuple: return a Split"),
        (
            ("Split(*(whole.take(rows)", "Split(*([rows]"),
            "its data returns a Split with a list: return a Split",
        ),
        (
            ("(160, 4)", "(160, 3)"),
            r"its data gives examples \(train\) that break the contract: .*shape \(100, 3\)",
        ),
        ((".clip(-5, 5)", " * 9"), r"its data gives examples \(train\) that break the contract: .* over 5"),
        (
            ("(x[:, 0] > 0).astype(np.int64)", "x[:, 0]"),
            r"its data gives 100 examples \(train\) with labels y",
        ),
        (("(x[:, 0] > 0).astype(np.int64)", "(x[:, 0] > 0) + 1"), r"whole number in 0\.\.1"),
        (
            ("(x[:, 0] > 0).astype(np.int64)", "(x > 0).astype(np.int64)"),
            "Labels of every position are targets of a regression",
        ),
        (("cohort=(x[:, 1] > 0).astype(np.int64)", "cohort=x[:, 1]"), "no whole number as the cohort"),
    ],
)
def test_data_that_cannot_be_used_are_named_with_file_and_reason(
    tmp_path: Path, command: str, change: tuple[str, str], sentence: str
) -> None:
    refused(tmp_path, command, WHOLE.replace(*change), sentence)


@pytest.mark.parametrize("command", ["build", "assess", "prune"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ("    torch.manual_seed(3)", "    torch.load_the_seed(3)"),
            "its module fails, line 25: AttributeError",
        ),
        (
            ("    return Net().eval()", "    return Net"),
            "its module returns a type: return a torch.nn.Module",
        ),
        (
            ("loss=cross_entropy", "loss=lambda logits, y: logits[:, 7]"),
            "its loss fails, line 29: IndexError",
        ),
        (("nn.Linear(6, 2)", "nn.Linear(5, 2)"), "The module .*fails on .*examples of shape"),
    ],
)
def test_a_module_and_a_loss_that_raise_are_named_with_file_and_line(
    tmp_path: Path, command: str, change: tuple[str, str], sentence: str
) -> None:
    refused(tmp_path, command, WHOLE.replace(*change), sentence)


def refused(folder: Path, command: str, text: str, sentence: str) -> None:
    assert text != WHOLE
    (folder / "release.pem").write_bytes(RELEASE.to_pem())
    path = written(folder, text)
    before = sorted(folder.iterdir())
    key, out = ["--key", f"{folder}/release.pem"], ["--out", str(folder / "out")]
    words = {
        "build": [*key, *out],
        "split": out,
        "assess": ["--epochs", "1"],
        "prune": [*key, *out, "--epochs", "1"],
    }
    result = CliRunner().invoke(app, [command, path, *words[command]])
    assert isinstance(result.exception, UsageError), result.exception
    assert re.search(sentence, str(result.exception)), result.exception
    assert sorted(each for each in folder.iterdir() if each.name != "__pycache__") == before


def test_numbers_of_other_types_become_those_that_graphs_take(tmp_path: Path) -> None:
    text = WHOLE.replace("astype(np.float32)", "astype(np.float64)").replace(
        "astype(np.int64)", "astype(np.uint8)"
    )
    for part in load_task(written(tmp_path, text)).data():
        assert part.cohort is not None
        assert (part.x.dtype, part.y.dtype, part.cohort.dtype) == (np.float32, np.int64, np.int64)


def test_a_loss_that_a_graph_cannot_hold_is_the_exporters_to_explain(tmp_path: Path) -> None:
    text = WHOLE.replace(
        "loss=cross_entropy", "loss=lambda logits, y: logits[:, 0] if logits.sum() > 0 else logits[:, 1]"
    )
    refused(tmp_path, "build", text, r"decides by the values of its input.*torch\.where")


def test_a_task_file_may_import_its_neighbors(tmp_path: Path) -> None:
    (tmp_path / "umbel_test_neighbor.py").write_text(WHOLE)
    assert load_task(written(tmp_path, "from umbel_test_neighbor import TASK as T\n")).model == "side"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "holds no Task"),
        (WHOLE + 'OTHER = Task(**{**SETTINGS, "model": ModelName("other")})\n', r"2 tasks \(other, side\)"),
        ("x = 1\ny = (\n", "line 2: SyntaxError"),
        ("x = 1\n\nraise ValueError('no data')\n", "line 3: ValueError: no data"),
        ("import no_such_library\n", "line 1: ModuleNotFoundError"),
        (WHOLE.replace('"side"', '"My Side"'), "line 33: model 'My Side' is not a name"),
        (WHOLE.replace('("left", "right")', "(0, 1)"), "names labels that are no text"),
        (WHOLE.replace('"right")', '"left")'), "names the label 'left' 2 times: give each class a name"),
        (TASK + 'TASK = Task(**SETTINGS, targets=("a",))\n', "names targets that are no Target"),
    ],
)
def test_a_file_without_one_task_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_task(written(tmp_path, text))


def test_who_changes_a_task_that_is_there_hears_to_import_its_module(tmp_path: Path) -> None:
    (tmp_path / "umbel_test_given.py").write_text(WHOLE)
    change = "T = replace({}, decision_threshold=0.6)\n"
    taken = "from dataclasses import replace\nfrom umbel_test_given import TASK\n" + change.format("TASK")
    with pytest.raises(
        UsageError, match=r"2 tasks .*: give .*, and import the module of another, not its task"
    ):
        load_task(written(tmp_path, taken))
    named = "from dataclasses import replace\nimport umbel_test_given as given\n" + change.format(
        "given.TASK"
    )
    assert load_task(written(tmp_path, named)).decision_threshold == 0.6


def test_the_line_is_told_of_a_file_that_is_named_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text("x = 1\n\nraise ValueError('no data')\n")
    with pytest.raises(UsageError, match=r"task\.py cannot be run: line 3: ValueError: no data"):
        load_task("task.py")


def test_two_names_of_one_task_are_one_task(tmp_path: Path) -> None:
    assert load_task(written(tmp_path, WHOLE + "AGAIN = TASK\n")).model == "side"
