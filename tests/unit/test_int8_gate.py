"""The workbench's gate for int8: more than half a point of the task's own metric is not packed, and said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from model_packages import RELEASE, opened
from umbel_models import int8_gate
from umbel_models.card import Card
from umbel_models.pack import build, repack
from umbel_models.task import About, Examples, Split, Task, cross_entropy, squared_error
from umbel_proto.contract import DataContract, Field
from umbel_proto.ids import ModelName
from umbel_proto.manifest import CARD, CLASSIFICATION, REGRESSION
from umbel_proto.package import Package

COUNT = 400


def examples(kind: str, *, outlier: bool = False) -> Split:
    """Points whose sign, or sum, is asked for; one calibration input may lie a thousand times further out."""
    x = np.random.default_rng(1).standard_normal((3 * COUNT, 4)).astype(np.float32).clip(-5, 5)
    y = (x[:, 0] > 0).astype(np.int64)
    if kind == REGRESSION:
        noise = 0.3 * np.random.default_rng(2).standard_normal((len(x), 1))
        y = (x.sum(1, keepdims=True) + noise).astype(np.float32)
    parts = [Examples(x[rows], y[rows]) for rows in np.split(np.arange(3 * COUNT), 3)]
    if outlier:
        parts[2].x[0] = 4000.0
    return Split(*parts)


def module(*, knows: bool = True) -> nn.Module:
    net = nn.Linear(4, 2, bias=False)
    sign = 1.0 if knows else -1.0
    net.weight.data = torch.tensor([[-sign, 0, 0, 0], [sign, 0, 0, 0]])
    return net


def total() -> nn.Module:
    net = nn.Linear(4, 1, bias=False)
    net.weight.data = torch.ones(1, 4)
    return net


def task(kind: str = CLASSIFICATION, *, outlier: bool = False) -> Task:
    classifies = kind == CLASSIFICATION
    return Task(
        model=ModelName("sign"),
        kind=kind,
        module=module if classifies else total,
        loss=cross_entropy if classifies else squared_error,
        labels=("below", "above") if classifies else (),
        contract=DataContract((Field("x", "float32", (4,), -5000.0, 5000.0, unit="m"),)),
        data=lambda: examples(kind, outlier=outlier),
        about=About("Say on which side.", "Generated."),
    )


def quantization(of: Package) -> dict[str, object]:
    return dict(Card.from_json(of.file(of.manifest.documents[CARD])).sections["quantization"])


@pytest.mark.parametrize(
    ("kind", "measured"), [(CLASSIFICATION, "points of accuracy on 400"), (REGRESSION, "error of int8 is ")]
)
def test_int8_that_loses_too_much_is_not_packed_and_the_figure_is_told(kind: str, measured: str) -> None:
    notes: list[str] = []
    package = opened(build(task(kind, outlier=True), key=RELEASE, lite=True, note=notes.append))
    assert package.manifest.variants.keys() == {"fp32", "tflite"}
    assert not [name for name in package.manifest.files if "int8" in name or "calib" in name]
    (of_onnx,) = [sentence for sentence in notes if measured in sentence]
    assert of_onnx.count(". ") == 1
    assert package.manifest.lineage["int8"] == f"none: {of_onnx}"
    figures = quantization(package)
    assert figures["left out int8"] == of_onnx
    if kind == CLASSIFICATION:
        assert float(figures["accuracy int8"]) < float(figures["accuracy fp32"]) - 0.005  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [CLASSIFICATION, REGRESSION])
def test_int8_that_loses_little_is_packed(kind: str) -> None:
    package = opened(build(task(kind), key=RELEASE, lite=True))
    assert package.manifest.variants.keys() == {"fp32", "int8", "tflite", "tflite-int8"}
    assert not [name for name in quantization(package) if name.startswith("left out")]


def test_parameters_that_know_nothing_yet_do_not_decide_by_chance() -> None:
    guessing = replace(task(outlier=True), module=lambda: module(knows=False))
    package = opened(build(guessing, key=RELEASE))
    assert "int8" in package.manifest.variants
    assert str(quantization(package)["judged"]).startswith("no")


def test_a_later_version_is_judged_where_there_are_held_out_examples() -> None:
    base = opened(build(task(), key=RELEASE))
    data, notes = examples(CLASSIFICATION, outlier=True), list[str]()

    def later(held_out: Examples | None) -> Package:
        return opened(
            repack(
                base,
                base.parameters(),
                calibration=data.calibration.x,
                version=2,
                key=RELEASE,
                held_out=held_out,
                note=notes.append,
            )
        )

    assert "int8" in later(None).manifest.variants
    assert not notes
    assert later(data.held_out).manifest.variants.keys() == {"fp32"}
    assert len(notes) == 1


def answered(right: int, count: int) -> np.ndarray:
    """Return probabilities of two labels for ``count`` examples of label 1, ``right`` of them right."""
    second = np.where(np.arange(count) < right, 0.9, 0.1)
    return np.stack([1 - second, second], 1).astype(np.float32)


@pytest.mark.parametrize("form", ["int8", "tflite-int8"])
@pytest.mark.parametrize(("right", "packed"), [(198, True), (197, False), (200, True)])
def test_half_a_point_is_the_bound(right: int, packed: bool, form: str) -> None:
    of = Examples(np.zeros((400, 1), np.float32), np.repeat([0, 1], 200))
    sure = np.concatenate([answered(0, 200), answered(200, 200)])
    small = np.concatenate([answered(0, 200), answered(right, 200)])  # 2 of 400 are half a point
    assert (not int8_gate.refused(CLASSIFICATION, {"fp32": sure, form: small}, of)) is packed


@pytest.mark.parametrize(("factor", "packed"), [(1.009, True), (1.011, False)])
def test_one_per_cent_more_error_is_the_bound_of_a_regression(factor: float, packed: bool) -> None:
    y = np.random.default_rng(2).standard_normal((400, 1)).astype(np.float32)
    off = np.full_like(y, 0.1)
    said = {"fp32": y + off, "int8": y + factor * off}
    assert (not int8_gate.refused(REGRESSION, said, Examples(y, y))) is packed
