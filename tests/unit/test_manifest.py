"""A manifest says what a package's files are: parameters that train and that do not, graphs, documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model_packages import RELEASE, first, opened, resigned
from umbel_models.pack import build
from umbel_models.show import card_of, lines
from umbel_models.tasks.digits.task import DIGITS
from umbel_proto.contract import Column, DataContract, Field
from umbel_proto.errors import PackageError, UsageError
from umbel_proto.manifest import (
    CALIBRATION,
    CARD,
    CLIPPED_GRADIENT,
    GRADIENT,
    QUANTIZATION,
    Manifest,
    Parameter,
)
from umbel_proto.manifest_json import parse_manifest
from umbel_proto.package import GOLDEN, MAX_DOCUMENT_BYTES, PARAMETERS, Package, read_package

HEAD = ("output.weight", "output.bias")


def with_head_only(body: dict[str, Any]) -> None:
    """Let only the last layer be trained."""
    body["frozen"] = [entry for entry in body["parameters"] if entry["name"] not in HEAD]
    body["parameters"] = [entry for entry in body["parameters"] if entry["name"] in HEAD]
    without_gradients(body)


def without_gradients(body: dict[str, Any]) -> None:
    for purpose in (GRADIENT, CLIPPED_GRADIENT):
        del body["graphs"][purpose]


@pytest.fixture(scope="module")
def head_only() -> Package:
    return opened(resigned(first(), with_head_only))


def manifest(**values: Any) -> Manifest:
    return replace(opened(first()).manifest, **{"graphs": {}, "documents": {}, **values})


def test_only_trainable_parameters_are_in_the_vector(head_only: Package) -> None:
    arrays = opened(first()).tensors(PARAMETERS)
    assert head_only.manifest.dim == sum(arrays[name].size for name in HEAD)
    expected = np.concatenate([arrays[p.name].ravel() for p in head_only.manifest.parameters])
    np.testing.assert_array_equal(head_only.parameters(), expected)


def test_splitting_a_vector_adds_the_frozen_parameters(head_only: Package) -> None:
    arrays = head_only.split(np.zeros(head_only.manifest.dim, np.float32))
    whole = opened(first()).tensors(PARAMETERS)
    assert arrays.keys() == whole.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, np.zeros_like(value) if name in HEAD else whole[name])
    assert head_only.frozen().keys() == whole.keys() - set(HEAD)


def test_a_frozen_parameter_is_no_part_of_an_update(head_only: Package) -> None:
    with pytest.raises(UsageError, match="names differ"):
        head_only.manifest.join(head_only.tensors(PARAMETERS))


def test_frozen_parameters_are_checked_like_the_others() -> None:
    arrays = opened(first()).tensors(PARAMETERS)
    arrays["conv1.bias"] = np.full_like(arrays["conv1.bias"], np.inf)
    data = resigned(first(), with_head_only, **{PARAMETERS: safetensors.numpy.save(arrays)})
    with pytest.raises(PackageError, match="not finite"):
        read_package(data, release_key=RELEASE.public)


def test_a_model_without_trainable_parameters_has_an_empty_vector() -> None:
    everything = opened(first()).manifest.parameters

    def freeze(body: dict[str, Any]) -> None:
        body.update(parameters=[], frozen=body["parameters"])
        without_gradients(body)

    package = opened(resigned(first(), freeze))
    assert package.manifest.frozen == everything
    assert package.parameters().shape == (0,)
    assert package.split(package.parameters()).keys() == {parameter.name for parameter in everything}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"frozen": (Parameter("hidden.bias", (32,)),)}, "twice"),
        ({"parameters": (), "graphs": {GRADIENT: "grad.onnx"}}, "no parameter to train"),
        ({"parameters": (), "graphs": {CLIPPED_GRADIENT: "dpgrad.onnx"}}, "no parameter to train"),
        ({"graphs": {"magic": "grad.onnx"}}, "magic.*update umbel"),
        ({"documents": {"poem": "card.json"}}, "poem.*update umbel"),
        ({"graphs": {CALIBRATION: "infer.onnx"}}, "calibration graph without"),
        ({"documents": {QUANTIZATION: "int8.json"}}, "calibration graph without"),
    ],
)
def test_a_manifest_that_makes_no_sense_cannot_be_made(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        manifest(**values)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda body: body.pop("frozen"), "frozen"),
        (lambda body: body["variants"]["int8"].update(weights="int4.safetensors"), r"int4\.safetensors"),
        (lambda body: body["variants"]["int8"].update(weights="grad.onnx"), "safetensors format"),
        (lambda body: body["variants"]["int8"].update(weights=None), "weights of a variant is NoneType"),
        (lambda body: body["documents"].update(card="card2.json"), r"card2\.json"),
        (lambda body: body["labels"].__setitem__(0, "\x1b[2J"), "cannot be printed"),
        (lambda body: body["labels"].__setitem__(0, "\ud800"), "cannot be printed"),
        (lambda body: body["lineage"].update({"a\nb": 1}), "cannot be printed"),
        (lambda body: body["files"].update({"../up": body["files"]["infer.onnx"]}), "a file's name"),
    ],
)
def test_the_fleets_own_key_does_not_make_nonsense_legal(
    change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    with pytest.raises(PackageError, match=sentence):
        read_package(resigned(first(), change), release_key=RELEASE.public)


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_beyond_a_float_is_refused(number: str) -> None:
    raw = manifest().to_json().replace(b'"lineage": {', f'"lineage": {{"a": {number}, '.encode())
    assert number.encode() in raw
    with pytest.raises(PackageError, match="range"):
        parse_manifest(raw)


def test_documents_are_found_by_purpose() -> None:
    described = manifest(documents={CARD: "card.json"})
    assert parse_manifest(described.to_json()) == described


@given(st.integers(0, 8))
def test_parting_and_splitting_are_inverse_wherever_the_line_is_drawn(line: int) -> None:
    package = opened(first())
    parameters = package.manifest.parameters
    parted = manifest(parameters=parameters[:line], frozen=parameters[line:])
    arrays = package.tensors(PARAMETERS)
    vector, frozen = parted.part(arrays)
    again = {**parted.split(vector), **frozen}
    assert json.dumps(sorted(again)) == json.dumps(sorted(arrays))
    for name, value in arrays.items():
        np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize("change", ["missing", "extra", "short", "double", "empty", "scalar"])
def test_golden_vectors_have_one_answer_of_each_variant_for_each_input(change: str) -> None:
    golden = opened(first()).tensors(GOLDEN)
    match change:
        case "missing":
            del golden["fp32.logits"]
        case "extra":
            golden["fp32.features"] = golden["fp32.logits"]
        case "short":
            golden["fp32.logits"] = golden["fp32.logits"][:, :9]
        case "double":
            golden["fp32.logits"] = golden["fp32.logits"].astype(np.float64)
        case "empty":
            golden = {name: value[:0] for name, value in golden.items()}
        case _:
            golden["x"] = np.array(1.0, np.float32)
    data = resigned(first(), lambda body: None, **{GOLDEN: safetensors.numpy.save(golden)})
    with pytest.raises(PackageError, match="golden vectors do not cover"):
        read_package(data, release_key=RELEASE.public)


def test_a_document_has_a_limit() -> None:
    data = resigned(first(), lambda body: None, **{"card.json": b" " * (MAX_DOCUMENT_BYTES + 1)})
    with pytest.raises(PackageError, match=r"card\.json has more than 4 MiB"):
        read_package(data, release_key=RELEASE.public)


def test_a_package_built_twice_is_equal() -> None:
    assert build(DIGITS, key=RELEASE, version=7) == build(DIGITS, key=RELEASE, version=7)


def with_columns(body: dict[str, Any]) -> None:
    column = {
        "minimum": 0.0,
        "maximum": 16.0,
        "values": [],
        "allow_missing": False,
        "unit": "",
        "action": "reject",
    }
    body["contract"][0] |= {
        "action": "reject",
        "max_age_s": 0.0,
        "stale": "reject",
        "columns": [{**column, "name": f"c{number}"} for number in range(8)],
    }


def test_a_contract_of_columns_is_read_and_written_the_same() -> None:
    made = opened(resigned(first(), with_columns)).manifest
    assert [column.name for column in made.contract.fields[0].columns] == [f"c{i}" for i in range(8)]
    assert parse_manifest(made.to_json()) == made


def test_a_contract_of_one_range_is_written_as_before_there_were_columns() -> None:
    (entry,) = json.loads(manifest().to_json())["contract"]
    assert sorted(entry) == ["allow_missing", "dtype", "maximum", "minimum", "name", "shape", "unit"]
    assert "label_thresholds" not in json.loads(manifest().to_json())


def test_a_label_may_have_a_threshold_of_its_own() -> None:
    made = opened(
        resigned(first(), lambda body: body.update(label_thresholds={"3": 0.95, "7": 0.5}))
    ).manifest
    assert made.thresholds == (0.8, 0.8, 0.8, 0.95, 0.8, 0.8, 0.8, 0.5, 0.8, 0.8)
    assert parse_manifest(made.to_json()) == made


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda body: body.update(label_thresholds={}), "none of them"),
        (lambda body: body.update(label_thresholds={"eleven": 0.5}), "label it does not know"),
        (lambda body: body.update(label_thresholds={"3": 1.5}), "outside"),
        (lambda body: body.update(label_thresholds={"3": 1}), "a threshold is int"),
        (lambda body: body["labels"].__setitem__(3, "7"), "names a label twice"),
        (
            lambda body: (with_columns(body), body["contract"][0].update(columns=[])),
            "further keys say nothing",
        ),
        (lambda body: (with_columns(body), body["contract"][0].pop("stale")), "lacks 'stale'"),
        (lambda body: (with_columns(body), body["contract"][0]["columns"].pop()), "7 columns"),
        (lambda body: (with_columns(body), body["contract"][0]["columns"][0].pop("unit")), "lacks 'unit'"),
        (lambda body: body["contract"][0].update(action="clip"), "should not have it"),
    ],
)
def test_contracts_and_thresholds_are_read_strictly(
    change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    with pytest.raises(PackageError, match=sentence):
        opened(resigned(first(), lambda body: change(body) and None))


def test_a_tasks_thresholds_and_columns_reach_the_package_and_who_reads_it() -> None:
    columns = [Column(f"c{i}", 0.0, 16.0, unit="grey", action="clip") for i in range(8)]
    field = Field.of_columns("x", "float32", columns, rows=(1, 8))
    task = replace(DIGITS, contract=DataContract((field,)), label_thresholds={"3": 0.95})
    data = build(task, key=RELEASE, calibration=DIGITS.data().calibration.x)
    made = opened(data).manifest
    assert made.contract.fields == (field,)
    assert made.thresholds[2:4] == (0.8, 0.95)
    card = card_of(data, made)
    assert card is not None
    assert "c0 0 to 16 grey, c1 0 to 16 grey" in card.input
    shown = lines(made, card, size=len(data), checked=True)
    assert "column      c7 0..16 grey, else clip" in shown
    assert "automatic   3 from 0.95" in shown
