"""A package's confidence is calibrated: one temperature, fitted on labels, in every variant's graph.

Laws: the temperature is the one that makes the labels likeliest; it changes no label and no logit; every variant
means the same by it; it belongs to one set of parameters.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax
from scipy.stats import gamma

from model_packages import RELEASE, digits, first, opened, training
from umbel._releases.package import verify_golden
from umbel.engines import load_engine
from umbel_models.calibration import Scores, calibration_error, fitted
from umbel_models.card import Card
from umbel_models.pack import build, repack
from umbel_models.tasks.digits.task import DIGITS
from umbel_models.tempering import temperature_of, tempered
from umbel_models.variants import open_variant
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.package import Package

VARIANTS = ("fp32", "int8", "tflite", "tflite-int8")
TOO_SURE = 3.0


@functools.cache
def base() -> Package:
    return opened(build(DIGITS, key=RELEASE, calibration=digits().calibration.x, lite=True))


@functools.cache
def packed(
    *, labels: bool, too_sure: float = TOO_SURE, of: Package | None = None, version: int = 2
) -> Package:
    """Digits trained, and then made too sure of itself: the last layer gives logits ``too_sure`` times as large."""
    arrays = opened(first()).manifest.split(training().parameters)
    louder = {
        name: value * too_sure if name.startswith("output.") else value for name, value in arrays.items()
    }
    data = repack(
        of or base(),
        opened(first()).manifest.join(louder),
        calibration=digits().calibration.x,
        calibration_y=digits().calibration.y if labels else None,
        version=version,
        key=RELEASE,
        held_out=digits().held_out,
    )
    return opened(data)


def answers(package: Package, variant: str, x: np.ndarray) -> list[np.ndarray]:
    return open_variant(package.manifest, package.file, variant)(x)


def test_the_temperature_makes_the_labels_of_calibration_likeliest() -> None:
    x, y = digits().calibration[:2]
    logits = answers(packed(labels=False), "fp32", x)[1].astype(np.float64)

    def cost(inverse: float) -> float:
        return float(
            -log_softmax(logits * inverse, axis=1)[np.arange(len(y)), y].sum() - gamma(2).logpdf(inverse)
        )

    oracle = 1 / minimize_scalar(cost, bounds=(0.01, 10), method="bounded", options={"xatol": 1e-10}).x
    assert oracle > 1.5  # The model is too sure, or this test is of nothing.
    for variant in ("fp32", "int8"):
        graph = packed(labels=True).file(packed(labels=True).manifest.variants[variant].file)
        assert temperature_of(graph) == pytest.approx(oracle, rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_divides_its_logits_by_it_and_changes_nothing_else(variant: str) -> None:
    x = digits().held_out.x[:100]
    warm, plain = packed(labels=True), packed(labels=False)
    found = temperature_of(warm.file("infer.onnx"))
    # Int8 graphs of LiteRT round what they multiply: to a level of the logits' range, and of the probabilities'.
    coarse = variant == "tflite-int8"
    (probabilities, logits), (_, before) = answers(warm, variant, x), answers(plain, variant, x)
    np.testing.assert_allclose(logits, before, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        probabilities, scipy_softmax(logits / found, axis=1), atol=0.04 if coarse else 1e-5
    )
    verify_golden(warm, load_engine(warm, variant))


def test_confidence_is_worth_more_on_what_nothing_was_fitted_on_and_the_card_says_so() -> None:
    x, y = digits().held_out[:2]
    package = packed(labels=True)
    probabilities, logits = answers(package, "fp32", x)
    before, after = (
        calibration_error(each.astype(np.float64), y)
        for each in (scipy_softmax(logits.astype("f8"), axis=1), probabilities)
    )
    assert -np.log(probabilities[np.arange(len(y)), y]).mean() < (
        -log_softmax(logits.astype("f8"), axis=1)[np.arange(len(y)), y].mean()
    )
    card = Card.from_json(package.file("card.json")).sections["confidence"]
    assert card["calibration error before"] == pytest.approx(before, abs=1e-4)
    assert card["calibration error fp32"] == pytest.approx(after, abs=1e-4)
    assert card["temperature"] == pytest.approx(temperature_of(package.file("infer.onnx")), abs=1e-4)
    assert card["fitted on examples"] == len(digits().calibration.y)


def test_a_temperature_belongs_to_one_set_of_parameters() -> None:
    plain, cold = base().file("infer.onnx"), packed(labels=False).file("infer.onnx")
    assert cold == plain
    later = packed(labels=False, of=packed(labels=True), version=3)
    for variant in ("fp32", "int8"):
        file = later.manifest.variants[variant].file
        assert later.file(file) == base().file(file)
    again = packed(labels=True, too_sure=1.0, of=packed(labels=True), version=3)
    once = packed(labels=True, too_sure=1.0)
    assert again.file("infer.onnx") == once.file("infer.onnx") != packed(labels=True).file("infer.onnx")
    assert Card.from_json(later.file("card.json")).sections["confidence"]["temperature"] == 1


def test_a_model_that_knows_nothing_is_left_as_it_is() -> None:
    rng = np.random.default_rng(5)
    y = rng.integers(10, size=200)
    assert fitted(Scores(rng.normal(size=(200, 10)).astype("f4") * 4, y)) == 1.0
    assert fitted(Scores(np.eye(10, dtype="f4")[y] * 4, np.full(200, 3))) == 1.0
    assert fitted(Scores(np.eye(10, dtype="f4")[y] * 4, y)) != 1.0
    assert temperature_of(opened(build(DIGITS, key=RELEASE)).file("infer.onnx")) == 1.0  # before any training


def test_labels_of_calibration_are_checked() -> None:
    for wrong in (digits().calibration.y[:-1], digits().calibration.y + 10, digits().calibration.y / 2):
        with pytest.raises(UsageError, match=r"one label for each|whole numbers"):
            build(DIGITS, key=RELEASE, calibration=digits().calibration.x, calibration_y=wrong)


def test_a_graph_is_tempered_once_whatever_it_had() -> None:
    plain = base().file("infer.onnx")
    twice = tempered(tempered(plain, 3.0), 1.7)
    assert twice == tempered(plain, 1.7)
    assert tempered(twice, 1.0) == plain
    onnx.checker.check_model(onnx.load_from_string(_whole(twice)), full_check=True)
    with pytest.raises(PackageError, match="no softmax"):
        tempered(base().file("grad.onnx"), 2.0)


def _whole(graph: bytes) -> bytes:
    """The checker wants the file behind an external tensor."""
    model, arrays = onnx.load_from_string(graph), base().tensors("params.safetensors")
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return bytes(model.SerializeToString())
