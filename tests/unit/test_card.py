"""A model card holds what was measured, and reads back as it was written."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, log_loss, precision_score, recall_score

from model_packages import RELEASE, digits, first, opened, training
from umbel_models import baseline
from umbel_models.card import Card, Metric
from umbel_models.evaluation import evaluate, wilson
from umbel_models.pack import build, repack
from umbel_models.task import About, Examples
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.histogram import CONFIDENCE, INPUT, Histogram
from umbel_proto.manifest import BASELINE, CARD, DATASHEET
from umbel_proto.package import Package, read_package

ABOUT = About("Read digits.", "Digits of 13 people.", ("Other hands.", "Other pens."), "CC-BY-4.0")
EMPTY = Card("digits", 3, ABOUT, "x: float32", ("0", "1"))
texts = st.text(string.printable, max_size=12)
figures = st.dictionaries(
    texts.filter(bool), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts, max_size=4
)
names = st.text(string.ascii_letters + " ", min_size=1, max_size=9)


def probabilities(rows: int, classes: int = 3) -> Any:
    values = np.random.default_rng(rows).random((rows, classes)).astype(np.float32)
    return values / values.sum(1, keepdims=True)


def examples(rows: int) -> Examples:
    source = np.random.default_rng(rows + 1)
    x = source.random((rows, 4)).astype(np.float32)
    return Examples(x, source.integers(0, 3, rows), cohort=source.integers(0, 2, rows))


def invalid(raw: bytes) -> object:
    """What the official schema of CycloneDX, strictly read, finds wrong; None if nothing."""
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(raw.decode())


def figure(metrics: tuple[Metric, ...], kind: str, part: str = "") -> float:
    (value,) = [metric.value for metric in metrics if (metric.kind, metric.part) == (kind, part)]
    return value


def later(**values: Any) -> Package:
    data = repack(
        opened(first()),
        training().parameters,
        calibration=digits().calibration.x,
        version=2,
        key=RELEASE,
        **values,
    )
    return read_package(data, release_key=RELEASE.public)


def card_of(package: Package) -> Card:
    return Card.from_json(package.file(package.manifest.documents[CARD]))


@given(st.dictionaries(names, figures, max_size=3))
def test_a_card_reads_back_as_it_was_written(sections: dict[str, dict[str, Any]]) -> None:
    card = EMPTY
    for name, values in sections.items():
        card = card.with_section(name, values)
    again = Card.from_json(card.to_json())
    filled = {name: values for name, values in sections.items() if values}
    assert {name: dict(values) for name, values in again.sections.items()} == filled
    assert again.to_json() == card.to_json()
    assert again.about == ABOUT


def test_a_packages_card_is_valid_cyclonedx_by_the_official_schema() -> None:
    card = card_of(later(held_out=digits().held_out, sections={"robustness": {"FGSM": 0.5, "by": "hand"}}))
    assert card.metrics
    assert invalid(card.to_json()) is None
    body = json.loads(card.to_json())
    body["metadata"]["component"]["modelCard"]["modelParameters"]["umbel"] = 1
    assert "'umbel' was unexpected" in str(invalid(json.dumps(body).encode()))


@given(st.dictionaries(names, figures, max_size=3), st.lists(texts, max_size=2), texts, texts)
def test_whatever_a_card_says_it_is_valid_cyclonedx(
    sections: dict[str, dict[str, Any]], limits: list[str], said: str, license_: str
) -> None:
    about = About(said, said, tuple(limits), license_, datasheet=said)
    metrics = (Metric("accuracy", 0.5, said, (0.0, 1.0)), Metric("log loss", 1e-9))
    card = Card("digits", 3, about, said, (said, "1"), metrics)
    for name, values in sections.items():
        card = card.with_section(name, values)
    assert invalid(card.to_json()) is None


def test_a_number_and_a_text_that_looks_like_one_stay_apart() -> None:
    values = {"run": "2024", "rounds": 2024, "share": 1.0, "word": "true", "quoted": '"1"', "nan": "NaN"}
    again = Card.from_json(EMPTY.with_section("lineage", values).to_json())
    assert {key: (type(value), value) for key, value in again.sections["lineage"].items()} == {
        key: (type(value), value) for key, value in values.items()
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None, [1]])
def test_a_figure_that_is_no_number_and_no_text_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="Figure 'gap' of section 'fairness'"):
        EMPTY.with_section("fairness", {"gap": value})


def test_a_section_with_a_colon_is_refused() -> None:
    with pytest.raises(UsageError, match="colon"):
        EMPTY.with_section("a:b", {"gap": 1})


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"metadata": {"component": 3}}']
)
def test_a_card_that_is_no_card_is_refused(raw: bytes) -> None:
    with pytest.raises(PackageError, match="no model card"):
        Card.from_json(raw)


def test_markdown_says_what_the_json_says() -> None:
    metrics = (Metric("accuracy", 0.75, "label | 3", (0.7, 0.8)),)
    card = Card("digits", 3, ABOUT, "x", ("0", "1"), metrics).with_section("privacy", {"epsilon": 4.0})
    text = card.to_markdown()
    assert "| accuracy | label \\| 3 | 0.75 | 0.7 to 0.8 |" in text
    assert "## Privacy" in text
    assert "| epsilon | 4 |" in text
    assert "- Other pens." in text


def test_evaluation_says_what_scikit_learn_says() -> None:
    said, data = probabilities(200), examples(200)
    metrics = evaluate(said, data, ("a", "b", "c"), ("young", "old"))
    predicted = said.argmax(1)
    exact = said.astype(np.float64) / said.sum(1, dtype=np.float64, keepdims=True)
    assert figure(metrics, "examples") == 200
    assert figure(metrics, "accuracy") == pytest.approx(accuracy_score(data.y, predicted))
    assert figure(metrics, "log loss") == pytest.approx(log_loss(data.y, exact), rel=1e-6)
    for number, name in enumerate("abc"):
        only = {"labels": [number], "average": "macro"}
        assert figure(metrics, "recall", f"label {name}") == pytest.approx(
            recall_score(data.y, predicted, **only)
        )
        assert figure(metrics, "precision", f"label {name}") == pytest.approx(
            precision_score(data.y, predicted, **only)
        )
    for number, name in enumerate(("young", "old")):
        rows = data.cohort == number
        assert figure(metrics, "accuracy", f"cohort {name}") == pytest.approx(
            accuracy_score(data.y[rows], predicted[rows])
        )


@given(st.integers(1, 500), st.data())
def test_the_interval_of_a_share_is_wilsons(count: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, count))
    expected = binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (examples(3)._replace(y=np.array([0, 1, 3])), "label 3"),
        (examples(3)._replace(cohort=np.array([0, 1, 2])), "cohort 2"),
        (examples(3).take(np.zeros(3, bool)), "no example"),
    ],
)
def test_examples_that_cannot_be_judged_are_refused(data: Examples, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        evaluate(probabilities(len(data.y)), data, ("a", "b", "c"), ("young", "old"))


def test_a_first_package_has_the_figures_of_its_held_out_examples() -> None:
    card = card_of(opened(first()))
    assert figure(card.metrics, "examples") == len(digits().held_out.y)
    assert 0 <= figure(card.metrics, "accuracy") <= 1
    assert card.sections["privacy"]["guarantee"] == "none is claimed for these parameters"
    assert card.sections["quantization"]["share of equal answers int8"] > 0.9
    assert "13 people" in card.about.data


def test_a_later_package_has_figures_of_its_own_or_none() -> None:
    silent = card_of(later())
    assert silent.version == 2
    assert silent.metrics == ()
    judged = card_of(later(held_out=digits().held_out, lineage={"epsilon_server": 3.5, "run": "7"}))
    assert figure(judged.metrics, "accuracy") > 0.9
    assert judged.sections["privacy"] == {"epsilon_server": 3.5}
    assert judged.sections["lineage"]["run"] == "7"
    assert judged.sections["quantization"]["accuracy int8"] > 0.9


def test_sections_of_others_come_into_the_card() -> None:
    assert card_of(later(sections={"robustness": {"FGSM": 0.5}})).sections["robustness"] == {"FGSM": 0.5}


def test_a_datasheet_stays_with_the_model() -> None:
    about = replace(DIGITS.about, datasheet="# Digits\n")
    data = build(replace(DIGITS, about=about), key=RELEASE)
    package = read_package(data, release_key=RELEASE.public)
    assert package.file(package.manifest.documents[DATASHEET]) == b"# Digits\n"
    later_data = repack(
        package, package.parameters(), calibration=digits().calibration.x, version=2, key=RELEASE
    )
    assert read_package(later_data, release_key=RELEASE.public).file("datasheet.md") == b"# Digits\n"


def histograms(package: Package) -> dict[str, Histogram]:
    body = json.loads(package.file(package.manifest.documents[BASELINE]))
    assert body["format"] == 1
    return {
        item["name"]: Histogram(item["name"], tuple(item["edges"]), tuple(item["counts"]), item["sum"])
        for item in body["histograms"]
    }


def test_the_baseline_counts_every_input_and_answer_once() -> None:
    found = histograms(later(held_out=digits().held_out))
    rows = len(digits().held_out.y)
    assert found["input"].edges == INPUT
    assert found["confidence"].edges == CONFIDENCE
    assert found["input"].count == digits().held_out.x.size
    assert found["input_mean"].count == found["confidence"].count == found["prediction"].count == rows
    assert found["prediction"].counts == tuple(found[f"confidence.{label}"].count for label in range(10))
    assert found["input"].sum == pytest.approx(float(digits().held_out.x.sum()))
    assert found["channel.0.mean"].count == found["channel.0.deviation"].count == rows


def test_features_of_a_row_are_told_one_by_one_in_cells_of_equal_weight() -> None:
    x = np.random.default_rng(4).standard_normal((2000, 3)) * [1, 100, 0]
    found = {h.name: h for h in baseline.baseline(x, probabilities(2000))}
    for number in range(2):
        counts = np.array(found[f"feature.{number}"].counts)
        assert len(counts) == 20
        assert (np.abs(counts - 100) <= 1).all()
    assert found["feature.2"].edges == (0.0,)
    assert found["feature.2"].count == 2000


@pytest.mark.parametrize("shape", [(50, 3, 20), (50, 20, 3)])
def test_channels_are_told_apart_wherever_they_stand(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(5).standard_normal(shape)
    found = {h.name: h for h in baseline.baseline(x, probabilities(50))}
    assert {name for name in found if name.endswith(".mean")} == {f"channel.{k}.mean" for k in range(3)}
    for number, values in enumerate(np.moveaxis(x, shape.index(3), 0)):
        means = values.mean(1)
        assert found[f"channel.{number}.mean"].sum == pytest.approx(means.sum())
        assert found[f"channel.{number}.deviation"].sum == pytest.approx(values.std(1).sum())


def test_missing_values_are_in_no_cell() -> None:
    x = np.full((4, 2), np.nan)
    x[0] = 1.0
    found = {h.name: h for h in baseline.baseline(x, probabilities(4))}
    assert found["input"].count == 2
    assert found["input_mean"].count == 1
    assert found["feature.0"].count == 1
