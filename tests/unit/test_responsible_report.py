"""One call assesses a task and its model, and one command tells it; the figures fit into a card."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from typer.testing import CliRunner

from cohort_tables import network, table
from model_packages import RELEASE, digits, first, opened, release, training
from umbel_models.card import Card
from umbel_models.cli import app
from umbel_models.exported import parameters_sha256
from umbel_models.files import sections as read_sections
from umbel_models.fit import accuracy
from umbel_models.pack import repack
from umbel_models.responsible.mitigation import Recipe, measure
from umbel_models.responsible.plot import picture
from umbel_models.responsible.report import Assessment, assess
from umbel_models.responsible.synthetic import fit_copula, validate
from umbel_models.task import About, Examples, Split, Task, cross_entropy, find
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.contract import DataContract, Field
from umbel_proto.errors import UsageError
from umbel_proto.ids import ModelName
from umbel_proto.package import PARAMETERS, read_package

RUN = CliRunner()
RECIPE = Recipe(epochs=10, learning_rate=1e-2)
COLUMNS = ("skill", "care", "debt", "street", "school", "shoe", "hat")
TASK = Task(
    model=ModelName("loans"),
    module=network,
    loss=cross_entropy,
    labels=("no", "yes"),
    contract=DataContract((Field("x", "float32", (7,), -20.0, 20.0),)),
    decision_threshold=0.8,
    data=lambda: Split(table(1500, seed=1), table(1000, seed=2), table(200, seed=3)),
    about=About(purpose="Be assessed.", data="Generated."),
    cohorts=("old town", "new town"),
    columns=COLUMNS,
)


@functools.cache
def trained() -> nn.Module:
    return RECIPE.train(TASK, TASK.data().train, progress=lambda what: None)


@functools.cache
def found() -> Assessment:
    return assess(TASK, trained(), fairer=RECIPE, ratings=[[0, 0, 1], [1, 1, 1], [0, np.nan, 0]])


def test_every_section_fits_into_a_card_and_back() -> None:
    card = Card("loans", 1, TASK.about, "7 numbers", TASK.labels)
    for title, figures in found().sections.items():
        card = card.with_section(title, figures)
    assert Card.from_json(card.to_json()).sections == found().sections
    assert set(found().sections) == {
        "fairness",
        "fairer training",
        "calibration",
        "leakage",
        "annotators",
        "synthetic data",
        "robustness",
        "explanations",
        "surrogate tree",
    }


def test_figures_carry_the_tasks_own_names() -> None:
    assert "cohort new town, recall of yes" in found().sections["fairness"]
    assert "accuracy lost without skill" in found().sections["explanations"]
    within = found().slices["new town"]
    told = found().sections["explanations"]
    assert told["cohort new town, examples"] == within.examples
    assert told["cohort new town, accuracy lost without skill"] == round(within.lost["skill"].value, 4)
    assert "skill <= " in str(found().sections["surrogate tree"]["rules"])


def test_fairer_training_is_compared_on_the_same_held_out_data() -> None:
    outcomes = found().outcomes
    assert set(outcomes) == {"plain", "reweighed", "constrained", "adversarial"}
    assert outcomes["plain"] == measure(trained(), TASK.data().held_out)
    plain = outcomes["plain"]
    # Each narrows the gap it is made for; the label depends on the cohort here, so that nobody narrows both.
    assert outcomes["reweighed"].parity.high < plain.parity.low
    for name in ("constrained", "adversarial"):
        assert outcomes[name].odds.value < plain.odds.value
    assert all(each.accuracy.value > plain.accuracy.value - 0.05 for each in outcomes.values())


def test_a_task_brings_the_shifts_that_its_devices_may_meet() -> None:
    small = Split(table(300, seed=1), table(200, seed=2), table(100, seed=3))
    moved = small.held_out._replace(x=small.held_out.x + 2)
    own = replace(TASK, data=lambda: small, shifted=lambda: {"strikes": moved})
    shifted = assess(own, trained(), shifted={"floods": small.held_out}).robustness.shifted
    assert shifted["strikes"].value == accuracy(trained(), moved)
    assert shifted["floods"].value == accuracy(trained(), small.held_out)


def test_what_does_not_apply_is_left_out() -> None:
    def data() -> Split:
        return Split(*(Examples(part.x, part.y) for part in TASK.data()))

    bare = Task(
        **{
            name: getattr(TASK, name) for name in TASK.__dataclass_fields__ if name not in ("data", "columns")
        },
        data=data,
    )
    sections = assess(bare, trained(), fairer=RECIPE).sections
    assert not {"fairness", "fairer training", "annotators"} & set(sections)
    assert "accuracy lost without input 0" in sections["explanations"]
    assert not any(name.startswith("cohort ") for name in sections["explanations"])


def test_the_seed_says_whatever_is_drawn_at_random_and_nothing_else() -> None:
    small = replace(TASK, data=lambda: Split(table(300, seed=1), table(200, seed=2), table(100, seed=3)))
    ratings = np.random.default_rng(0).integers(0, 3, (30, 3))
    one, again, other = (assess(small, trained(), ratings=ratings, seed=seed).sections for seed in (3, 3, 4))
    assert one == again
    drawn = {"calibration", "annotators", "synthetic data", "robustness", "explanations"}
    assert {title for title in one if one[title] != other[title]} == drawn
    # One section draws twice: rows, and then how they are judged.
    train, held_out, _ = small.data()
    rows = fit_copula(train).sample(len(train.y), seed=3)
    assert one["synthetic data"] == validate(rows, train, held_out, seed=3).figures()


def test_the_picture_is_drawn() -> None:
    assert picture(found(), title="loans").startswith(b"\x89PNG")


def release_key(folder: Path) -> Path:
    path = folder / "release.pub"
    path.write_bytes(RELEASE.public.raw)
    return path


def test_the_command_assesses_a_package(tmp_path: Path) -> None:
    package = tmp_path / "digits.umbel"
    package.write_bytes(first())
    command = ["assess", "digits", "--package", str(package), "--release-key", str(release_key(tmp_path))]
    plot = tmp_path / "digits.png"
    done = RUN.invoke(app, [*command, "--plot", str(plot), "--json"], catch_exceptions=False)
    printed = json.loads(done.stdout)
    sections = printed["sections"]
    assert printed["parameters"] == opened(first()).manifest.files[PARAMETERS].sha256
    # The first package holds the parameters nobody trained yet.
    assert sections["robustness"]["accuracy"] < 0.3
    assert math.isfinite(sections["calibration"]["temperature"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_confidence_that_is_assessed_is_the_packages(tmp_path: Path) -> None:
    calibration = digits().calibration
    data = repack(
        opened(first()),
        training().parameters * np.float32(3),
        calibration=calibration.x,
        calibration_y=calibration.y,
        version=2,
        key=RELEASE,
        held_out=digits().held_out,
    )
    package = tmp_path / "digits.umbel"
    package.write_bytes(data)
    command = ["assess", "digits", "--package", str(package), "--release-key", str(release_key(tmp_path))]
    done = RUN.invoke(app, [*command, "--json"], catch_exceptions=False)
    measured = json.loads(done.stdout)["sections"]["calibration"]
    said = Card.from_json(opened(data).file("card.json")).sections["confidence"]
    assert float(said["temperature"]) > 2  # so the raw logits are much too sure
    assert measured["calibration error before"] == pytest.approx(said["calibration error fp32"], abs=2e-3)
    assert measured["temperature"] == pytest.approx(1, abs=0.2)


def test_the_command_trains_where_no_package_is_given(tmp_path: Path) -> None:
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("1,1,2\n2,2,\n3,3,3\n")
    shifted = tmp_path / "winter.npz"
    held_out = find("digits").data().held_out
    np.savez(shifted, x=held_out.x[::-1], y=held_out.y[::-1])
    command = ["assess", "digits", "--epochs", "3", "--ratings", str(ratings), "--shifted", str(shifted)]
    done = RUN.invoke(app, command, catch_exceptions=False)
    lines = done.stdout.splitlines()
    robust = [line for line in lines if line.startswith("  accuracy")]
    assert next(line for line in robust if " on winter" in line).split(": ")[1] == robust[0].split(": ")[1]
    assert any(line.startswith("  Krippendorff's alpha, nominal: ") for line in lines)
    assert "surrogate tree" in lines
    assert any(line.startswith("    |--- ") for line in lines)
    assert all(f"training, epoch {epoch} of 3" in done.stderr for epoch in (1, 2, 3))


def judged(folder: Path, parameters: str) -> str:
    """Return a file as the command prints it."""
    path = folder / "sections.json"
    path.write_text(json.dumps({"parameters": parameters, "sections": found().sections}))
    return str(path)


def test_a_package_is_built_with_the_sections_of_its_own_parameters(tmp_path: Path) -> None:
    sections = judged(tmp_path, opened(first()).manifest.files[PARAMETERS].sha256)
    key, out = tmp_path / "release.pem", tmp_path / "digits.umbel"
    key.write_bytes(RELEASE.to_pem())
    command = ["build", "digits", "--key", str(key), "--out", str(out), "--sections", sections]
    assert RUN.invoke(app, command, catch_exceptions=False).exit_code == 0
    package = read_package(out.read_bytes(), release_key=RELEASE.public)
    kept = Card.from_json(package.file(package.manifest.documents["card"])).sections
    assert {title: kept[title] for title in found().sections} == found().sections


def test_sections_of_other_parameters_are_refused(tmp_path: Path) -> None:
    package = opened(release(2))
    own, other = (opened(data).manifest.files[PARAMETERS].sha256 for data in (release(2), first()))
    assert own != other
    how = {"calibration": digits().calibration.x, "version": 3, "key": RELEASE, "sections": {"a": {"b": 1.0}}}
    repack(package, package.parameters(), sections_of=own, **how)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"{other[:12]}, and those that are packed are {own[:12]}"):
        repack(package, package.parameters(), sections_of=other, **how)  # type: ignore[arg-type]
    key, out = tmp_path / "release.pem", tmp_path / "digits.umbel"
    key.write_bytes(RELEASE.to_pem())
    command = ["build", "digits", "--key", str(key), "--out", str(out), "--sections", judged(tmp_path, own)]
    with pytest.raises(UsageError, match="umbel model assess --package"):
        RUN.invoke(app, command, catch_exceptions=False)
    assert not out.exists()


def test_a_modules_sections_are_of_the_parameters_that_its_package_holds() -> None:
    assert found().parameters == parameters_sha256(trained())
    assert parameters_sha256(DIGITS.module()) == opened(first()).manifest.files[PARAMETERS].sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no", "not JSON"),
        ("[]", "no sections"),
        ('{"a": {"b": 1}}', "does not say of which parameters"),
        ('{"parameters": "", "sections": {}}', "does not say of which parameters"),
        ('{"parameters": "ab", "sections": {"a": 1}}', "no sections"),
    ],
)
def test_sections_that_are_none_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "sections.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_sections(path)


def test_a_package_without_a_key_is_not_assessed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="go together"):
        RUN.invoke(app, ["assess", "digits", "--package", str(tmp_path / "x")], catch_exceptions=False)


def test_a_package_of_another_task_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "digits.umbel"
    package.write_bytes(first())
    command = ["assess", "credit", "--package", str(package), "--release-key", str(release_key(tmp_path))]
    with pytest.raises(UsageError, match="not those of credit"):
        RUN.invoke(app, command, catch_exceptions=False)


@pytest.mark.parametrize("text", ["1,yes\n", "1,2\n1\n"])
def test_ratings_that_are_no_table_are_refused_before_any_work(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match="no table of ratings"):
        RUN.invoke(app, ["assess", "digits", "--ratings", str(path)], catch_exceptions=False)
