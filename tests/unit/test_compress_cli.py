"""``umbel model prune``, ``distill``, ``adapt``, ``pretrain``: a package of what comes out, and what it saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import r2_score
from typer.testing import CliRunner

from model_packages import RELEASE
from regression_tasks import patients
from umbel.engines import load_engine
from umbel_models.card import Card
from umbel_models.cli import app
from umbel_proto.errors import UsageError
from umbel_proto.package import Package, read_package

TASK = """
import numpy as np
import torch
from torch import nn

from umbel_models.task import About, Examples, Split, Task, cross_entropy
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName


def windows(count, seed):
    chance = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = chance.normal(0, 0.5, (count, 2, 16)) + np.sin(np.arange(16) * (y[:, None, None] + 1) / 2)
    return Examples(np.clip(x, -4, 4).astype(np.float32), y)


def module():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3))


WAVES = Task(
    model=ModelName("waves"),
    module=module,
    loss=cross_entropy,
    labels=("slow", "middling", "fast"),
    contract=DataContract((Field("x", "float32", (2, 16), -4.0, 4.0, unit="m/s^2"),)),
    decision_threshold=0.8,
    data=lambda: Split(windows(240, 1), windows(120, 2), windows(24, 3)),
    about=About(purpose="Tell waves apart.", data="Generated."),
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compress")
    (root / "waves.py").write_text(TASK)
    (root / "release.pem").write_bytes(RELEASE.to_pem())
    return root


@pytest.fixture(scope="module")
def base(folder: Path) -> str:
    """A package of the trained model; what is trained without labels is trained with all of them here."""
    figures = run(folder, "pretrain", "--labels", "80", "--epochs", "5")
    assert set(figures) == {"80 labels each", "pretrained"}
    assert written(folder).manifest.dim == 435
    return str((folder / "out.umbel").rename(folder / "base.umbel"))


def run(folder: Path, *words: str) -> dict[str, Any]:
    at = [str(folder / "waves.py"), "--out", str(folder / "out.umbel"), "--key", str(folder / "release.pem")]
    result = CliRunner().invoke(app, [words[0], *at, *words[1:], "--json"])
    if result.exception is not None:
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def written(folder: Path) -> Package:
    return read_package((folder / "out.umbel").read_bytes(), release_key=RELEASE.public)


def test_a_pruned_package_has_fewer_channels_and_says_what_that_saved(folder: Path, base: str) -> None:
    figures = run(folder, "prune", "--fraction", "0.5", "--version", "4", "--package", base)
    package = written(folder)
    shapes = {parameter.name: parameter.shape for parameter in package.manifest.parameters}
    assert shapes == {"1.weight": (6, 32), "1.bias": (6,), "3.weight": (3, 6), "3.bias": (3,)}
    assert (package.manifest.version, package.manifest.lineage["compression"]) == (4, "pruned")
    whole, cut = figures["whole"], figures["pruned"]
    assert cut["parameters sent in a round"] == package.manifest.dim == 219
    assert whole["parameters sent in a round"] == 435
    assert cut["bytes, fp32"] < whole["bytes, fp32"]
    assert cut["accuracy, fp32"] > 0.9
    facts = Card.from_json(package.file("card.json")).sections["pruned"]
    assert float(facts["bytes, fp32, before"]) == whole["bytes, fp32"]


def test_an_adapted_package_begins_with_the_packages_parameters_and_sends_corrections_only(
    folder: Path, base: str
) -> None:
    figures = run(folder, "adapt", "--rank", "2", "--layer", "1", "--package", base)
    package = written(folder)
    assert [each.name for each in package.manifest.parameters] == ["1.down.weight", "1.up.weight"]
    assert len(package.manifest.frozen) == 4
    assert figures["rank 2"]["accuracy, fp32"] == figures["whole"]["accuracy, fp32"] > 0.9
    noise = [figures[name]["DP error of an update, clips"] for name in ("rank 2", "whole")]
    assert noise[0] < 0.5 * noise[1]


def test_a_distilled_package_holds_the_student(folder: Path, base: str) -> None:
    figures = run(folder, "distill", "--fraction", "0.75", "--package", base)
    assert written(folder).manifest.dim == 3 * 32 + 3 + 3 * 3 + 3
    assert figures["distilled"]["accuracy, fp32"] > 0.9


def test_a_pruned_model_that_answers_with_numbers_is_judged_by_r2(folder: Path) -> None:
    (folder / "diabetes.py").write_text("from regression_tasks import DIABETES as TASK\n")
    at = ["--out", str(folder / "out.umbel"), "--key", str(folder / "release.pem"), "--epochs", "60"]
    words = [str(folder / "diabetes.py"), *at]
    result = CliRunner().invoke(app, ["prune", *words, "--json"])
    figures, package = json.loads(result.stdout), written(folder)
    assert package.manifest.dim == 4 * 10 + 4 + 4 + 1
    held = patients().held_out
    said = load_engine(package, "fp32").answers(held.x)
    assert figures["pruned"]["r2, fp32"] == pytest.approx(r2_score(held.y, said), abs=1e-6)
    assert figures["pruned"]["r2, fp32"] > 0.3  # always saying the mean is 0
    facts = Card.from_json(package.file("card.json")).sections["pruned"]
    assert float(facts["r2, fp32, before"]) == figures["whole"]["r2, fp32"]
    for command in ("distill", "pretrain"):
        refused = CliRunner().invoke(app, [command, *words])
        assert isinstance(refused.exception, UsageError)
        assert "diabetes answers with numbers" in str(refused.exception)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["prune", "--by", "luck"], "choose taylor or l1"),
        (["prune", "--fraction", "1"], r"choose the part of channels to remove, in \[0, 1\)"),
        (["distill", "--fraction", "-1"], r"choose the part of channels to remove, in \[0, 1\)"),
        (["distill", "--soft", "1.5"], r"--soft is 1.5 and --temperature 3.0: choose a part in \[0, 1\]"),
        (["distill", "--temperature", "0"], "--temperature 0.0: choose .* a number above 0"),
        (["pretrain", "--epsilon", "0"], "--epsilon is 0.0: choose a number above 0"),
        (["adapt", "--learning-rate", "nan"], "--learning-rate is nan: choose a number above 0"),
        (["adapt", "--head"], "--layer and --head go with --rank"),
        (["distill", "--student", "digits"], "digits has other inputs or labels than waves"),
        (["distill", "--student", "nothing"], "There is no task 'nothing'"),
        (["adapt", "--package", "nowhere.umbel"], "nowhere.umbel cannot be read"),
        (["adapt", "--rank", "2", "--layer", "tail"], "tail"),
        (["pretrain", "--labels", "99"], "has 80 examples"),
        (["pretrain", "--tell", "words"], "choose one of spectra, moments"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence_before_anything_is_trained(
    folder: Path, words: list[str], sentence: str
) -> None:
    # Training so long would end no test.
    with pytest.raises(UsageError, match=sentence):
        run(folder, *words, "--epochs", "1000000")


@pytest.mark.parametrize("command", ["prune", "distill"])
def test_a_network_without_channels_to_remove_is_refused_before_it_is_trained(
    folder: Path, command: str
) -> None:
    alone = TASK.replace("nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3)", "nn.Linear(32, 3)")
    (folder / "alone.py").write_text(alone)
    words = [
        command,
        str(folder / "alone.py"),
        "--key",
        str(folder / "release.pem"),
        "--out",
        str(folder / "o"),
    ]
    result = CliRunner().invoke(app, [*words, "--epochs", "1000000"])
    assert isinstance(result.exception, UsageError)
    assert "No channel of this Sequential can be removed" in str(result.exception)
